"""The vectors that a layer is fitted to: read once in chunks for their moments, and a sample of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..core import check
from ..retrieval.vectors import as_numbers, check_vectors, tiles

CHUNK_BYTES = 64 * 2**20


def check_features(value, name: str = "features") -> torch.Tensor:
    """`value` as vectors (n, d) of at least two rows, memory shared (a memory map stays one)."""
    value = check_vectors(value, name)
    if len(value) < 2:
        raise ValueError(f"{name}: expected at least 2 rows, got {check.describe(value)}")
    return value


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d), float64, on the CPU."""

    mean: torch.Tensor
    covariance: torch.Tensor


def moments(features: torch.Tensor, device: torch.device, unit: bool = False) -> Moments:
    """Mean and covariance of all rows (at length 1, if `unit`), in one pass.

    A chunk's products are float32 (float64 for float64 rows) around the first chunk's mean, so that nothing cancels;
    their sums are float64.
    """
    n, d = features.shape
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    shift, total, products = None, None, None
    for _, rows in tiles(features, "features", dtype, device, unit, max(1, CHUNK_BYTES // (8 * d))):
        if shift is None:
            shift = rows.double().mean(0).to(dtype)
            total = torch.zeros(d, dtype=torch.float64, device=device)
            products = torch.zeros(d, d, dtype=torch.float64, device=device)
        rows = rows - shift
        total += rows.sum(0, dtype=torch.float64)
        products += (rows.T @ rows).double()
    mean = total / n
    covariance = products / n - torch.outer(mean, mean)
    return Moments((mean + shift.double()).cpu(), ((covariance + covariance.T) / 2).cpu())


def sample(features: torch.Tensor, count: int, generator: torch.Generator, device, unit: bool = False):
    """`count` distinct random rows in their order (all where there are fewer), float32, at length 1 if `unit`."""
    n = len(features)
    if n <= count:
        ids = torch.arange(n)
    elif n <= 8 * count:
        ids = torch.randperm(n, generator=generator)[:count].sort().values
    else:  # no permutation of what may be billions
        ids = torch.randint(n, (2 * count,), generator=generator).unique()
        ids = ids[torch.randperm(len(ids), generator=generator)[:count]].sort().values
    rows = features[ids.to(features.device)]
    return as_numbers(rows, "features", torch.float32, device, unit)
