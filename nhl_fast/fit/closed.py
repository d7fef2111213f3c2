"""Layers in closed form: random projections, principal components, and ITQ nested by blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..core import check
from ..retrieval.codes import pack_outputs
from ..retrieval.recall import neighbor_recall
from ..retrieval.vectors import nearest_vectors
from .rows import Moments

# Rows that judge which rotation a block takes, by their neighbours in the sample.
_JUDGES, _NEIGHBORS = 1000, 10
# How many times more neighbours all components must find than the next ones alone.
_WORTH = 1.02


class Components(NamedTuple):
    """Principal components that vary: directions (d, r) float32, variances (r,) float64, largest first."""

    directions: torch.Tensor
    variances: torch.Tensor


def components(found: Moments) -> Components:
    """The r principal components whose variance is not rounding (float64 on the CPU, equal on every device)."""
    variances, directions = torch.linalg.eigh(found.covariance)
    variances, directions = variances.flip(0), directions.flip(1)
    # The products of float32 rows carry an error of about 1e-7 of the largest.
    rank = int((variances > variances[0].clamp(min=0) * 1e-6).sum())
    if rank == 0 or variances[0] <= found.mean.square().sum() * 1e-12:
        raise ValueError("features: expected rows that differ, got rows that are all the same")
    # An eigenvector's sign is the solver's choice: the largest entry of each is positive.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return Components((directions * largest.sign())[:, :rank].float(), variances[:rank])


def random_weight(width: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """(L, d): Gaussian projections, the signs of which keep angles (Charikar, STOC 2002)."""
    return torch.randn(length, width, generator=generator)


def pca_weight(parts: Components, length: int) -> torch.Tensor:
    """(L, d): the leading components."""
    if length > len(parts.variances):
        raise ValueError(
            f"code_lengths: expected at most {len(parts.variances)} bits for method 'pca', the directions in which "
            f"the features vary, got {length}; 'itq', 'learned' and 'random' give longer codes"
        )
    return parts.directions[:, :length].T.contiguous()


def rotation(rows: torch.Tensor, bits: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """(c, bits) with orthonormal columns (c >= bits) such that rows (n, c) @ it lie near the corners +-1.

    Iterative quantization: the signs for the rotation, then the rotation for the signs (Gong and Lazebnik, CVPR
    2011), from a random start; with bits < c the columns span a part of the space.
    """
    start = torch.randn(rows.shape[1], bits, generator=generator)
    turn = torch.linalg.qr(start)[0].to(rows.device)
    for _ in range(steps):
        corners = torch.where(rows @ turn > 0, 1.0, -1.0)
        left, _, right = torch.linalg.svd(rows.T @ corners, full_matrices=False)
        turn = left @ right
    return turn


def turned(rows: torch.Tensor, bits: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """`rotation`, several side by side where `bits` are more than the columns of rows: (c, bits)."""
    width = rows.shape[1]
    parts = [min(width, bits - start) for start in range(0, bits, width)]
    return torch.cat([rotation(rows, count, steps, generator) for count in parts], dim=1)


class Judge:
    """Which of several weights finds more neighbours of sample rows among the sample."""

    def __init__(self, rows: torch.Tensor, generator: torch.Generator):
        """rows: (n, r), the sample's components."""
        count = min(_JUDGES, len(rows) // 2)
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        self.queries, self.database = rows[order[:count]], rows[order[count:]]
        self.k = min(_NEIGHBORS, len(self.database))
        # Products of components are those of the centred features: the mean says nothing of who is near.
        self.neighbors = nearest_vectors(self.queries, self.database, self.k)[1]

    def recall(self, weight: torch.Tensor) -> float:
        """Of a weight (b, r) over the components, the recall of all its bits."""
        q, d = (pack_outputs(rows @ weight.T) for rows in (self.queries, self.database))
        b = len(weight)
        found = neighbor_recall(
            q, d, lengths=(b,), k=self.k, candidates=(self.k,), ties="expected", neighbors=self.neighbors
        )
        return found.recall[b][self.k]


def itq_weight(parts: Components, rows: torch.Tensor, code_lengths, steps: int, generator) -> torch.Tensor:
    """(L, d): ITQ nested by blocks.

    The bits from one length to the next rotate the components of the same numbers, so that they repeat nothing that
    the shorter code knows; or all components so far, which long codes need, since late components hardly vary. What
    finds more neighbours of a sample's rows is taken, all components only where they find clearly more: what they
    repeat is lost to the lengths that follow. One length alone is plain ITQ.

    Args:
        rows: (n, d) centred sample.
        steps: alternations of a rotation.
    """
    values = rows @ parts.directions.to(rows.device)
    rank = values.shape[1]
    lengths = check.code_lengths(code_lengths)
    judge = Judge(values, generator) if len(lengths) > 1 and len(rows) >= 4 else None
    weight = values.new_zeros(0, rank)
    for start, stop in zip((0, *lengths), lengths):
        own, all_so_far = (start, stop), (0, min(stop, rank))
        if judge is None or stop > rank:
            spans = [all_so_far]
        else:
            spans = [own, own, all_so_far] if start else [own, own]  # from two random starts
        found = []
        for low, high in spans:
            block = values.new_zeros(stop - start, rank)
            block[:, low:high] = turned(values[:, low:high], stop - start, steps, generator).T
            tried = torch.cat([weight, block])
            recall = judge.recall(tried) if len(spans) > 1 else 0.0
            found.append((recall / (_WORTH if start and (low, high) == all_so_far else 1.0), tried))
        weight = max(found, key=lambda one: one[0])[1]
    return (weight @ parts.directions.to(rows.device).T).cpu()
