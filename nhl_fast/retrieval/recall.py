"""Recall of the nearest neighbours: how many of a query's true neighbours its code finds, at every prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core import check
from ..core.arrays import as_tensor
from . import codes
from .hamming import DEFAULT_CHUNK_BYTES, hamming_distances, search, spans
from .outputs import check_outputs, nearest_by_outputs
from .vectors import METRICS, check_vectors, nearest_vectors

TIES = ("id", "expected")


@dataclass(frozen=True)
class NeighborRecall:
    """What `neighbor_recall` gives.

    Attributes:
        lengths, candidates, k: as asked for.
        recall: {length: {candidates: mean over the queries}}.
        per_query: (m, len(candidates), Q) float64.
        neighbors: (Q, k) int64, the true neighbours, nearest first: hand them to the next call.
    """

    lengths: tuple[int, ...]
    candidates: tuple[int, ...]
    k: int
    recall: dict[int, dict[int, float]]
    per_query: torch.Tensor
    neighbors: torch.Tensor


@check.memory
@torch.no_grad()
def neighbor_recall(
    q_codes,
    db_codes,
    q_features=None,
    db_features=None,
    lengths: Sequence[int] | None = None,
    k: int = 10,
    candidates: Sequence[int] = (10, 100),
    *,
    asymmetric: bool = False,
    metric: str = "cosine",
    ties: str = "id",
    neighbors=None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> NeighborRecall:
    """The share of a query's k true neighbours among the first candidates that its code finds, at every prefix.

    Args:
        q_codes: (Q, bytes) packed uint8 rows; with `asymmetric` the queries' raw outputs (Q, L), floating point.
        db_codes: (n, bytes) packed uint8 rows on the same device.
        q_features, db_features: (Q, d) and (n, d), what the codes stand for: the true neighbours are the k nearest of
            them, exactly. NumPy arrays, memory maps among them, are read tile by tile.
        lengths: strictly increasing code lengths; None for all bits of the rows.
        k: true neighbours a query.
        candidates: strictly increasing numbers of items that are looked at.
        asymmetric: rank by the inner product of a query's raw outputs with the +-1 of an item's code.
        metric: "cosine" or "product", of the features.
        ties: "id" (items at equal distance by ascending id, as `search` returns them) or "expected" (the mean over
            their orders). Raw outputs hardly tie: there "id" is the only rule.
        neighbors: (Q, k) ids of the true neighbours where they are known; the features are not read then.
        chunk_bytes: bound on the memory taken beyond the result.
        backend: "auto", "reference", "cpp" or "cuda", of the search over codes.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    db_codes = codes.check_packed(db_codes, "db_codes")
    if check.flag(asymmetric, "asymmetric"):
        q_codes = check_outputs(q_codes, "q_codes", db_codes)
        width = q_codes.shape[1]
    else:
        q_codes = codes.check_packed(q_codes, "q_codes")
        width = 8 * min(q_codes.shape[1], db_codes.shape[1])
    if q_codes.device != db_codes.device:
        raise ValueError(f"db_codes: expected device {q_codes.device}, that of q_codes, got {db_codes.device}")
    lengths = check.code_lengths((width,) if lengths is None else lengths, "lengths")
    if lengths[-1] > width:
        raise ValueError(f"lengths: expected at most {width} bits, those of the codes, got {lengths[-1]}")
    k = check.positive_int(k, "k", maximum=len(db_codes))
    candidates = check.code_lengths(candidates, "candidates")
    if candidates[-1] > len(db_codes):
        raise ValueError(f"candidates: expected at most {len(db_codes)}, the database's items, got {candidates[-1]}")
    check.one_of(metric, "metric", METRICS)
    check.one_of(ties, "ties", TIES)
    if asymmetric and ties != "id":
        raise ValueError(f"ties: expected 'id' with asymmetric=True, got {ties!r}")
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    neighbors = _neighbors(neighbors, q_codes, db_codes, q_features, db_features, k, metric, chunk_bytes)
    if ties == "expected":
        found = _expected(q_codes, db_codes, neighbors, lengths, candidates, chunk_bytes, backend)
    else:
        ranked = (_ranked(q_codes, db_codes, candidates[-1], b, asymmetric, chunk_bytes, backend) for b in lengths)
        found = torch.stack([_found(ids, neighbors, candidates) for ids in ranked])
    means = found.mean(2).tolist()
    recall = {b: dict(zip(candidates, row)) for b, row in zip(lengths, means)}
    return NeighborRecall(lengths, candidates, k, recall, found, neighbors)


def _neighbors(given, q_codes, db_codes, q_features, db_features, k, metric, chunk_bytes) -> torch.Tensor:
    """The true neighbours (Q, k): those given, checked, or the nearest by the features."""
    shape, n = (len(q_codes), k), len(db_codes)
    if given is not None:
        given = check.tensor(as_tensor(given, "neighbors"), "neighbors")
        if given.shape != shape or given.is_floating_point() or given.dtype == torch.bool:
            raise ValueError(f"neighbors: expected integer ids of shape {shape}, got {check.describe(given)}")
        given = given.to(q_codes.device, torch.int64)
        check.values(((given >= 0) & (given < n)).all(), f"neighbors: expected ids from 0 to {n - 1}")
        return given
    if q_features is None and db_features is None:
        raise ValueError("neighbors: expected ids, or q_features and db_features in their place, got none of them")
    for value, name, rows in ((q_features, "q_features", len(q_codes)), (db_features, "db_features", n)):
        if value is None:
            raise ValueError(f"{name}: expected the features, got None (or give neighbors)")
        if len(value := check_vectors(value, name)) != rows:
            raise ValueError(f"{name}: expected {rows} rows, one a code, got {check.describe(value)}")
    queries = check_vectors(q_features, "q_features").to(q_codes.device)
    check_vectors(db_features, "db_features", queries.shape[1])
    names = ("q_features", "db_features")
    return nearest_vectors(queries, db_features, k, metric=metric, chunk_bytes=chunk_bytes, names=names)[1]


def _ranked(queries, database, count, length, asymmetric, chunk_bytes, backend) -> torch.Tensor:
    """The first `count` ids of the code's ranking, (Q, count)."""
    if asymmetric:
        return nearest_by_outputs(queries, database, count, length, chunk_bytes)[1]
    return search(queries, database, count, length, chunk_bytes=chunk_bytes, backend=backend)[1]


def _found(ranked: torch.Tensor, neighbors: torch.Tensor, candidates) -> torch.Tensor:
    """(len(candidates), Q): the share of the true neighbours among the first candidates of the ranking."""
    ranked, order = ranked.sort(dim=1)
    place = torch.searchsorted(ranked, neighbors.contiguous()).clamp(max=ranked.shape[1] - 1)
    rank = torch.where(ranked.gather(1, place) == neighbors, order.gather(1, place), ranked.shape[1])
    return torch.stack([(rank < c).double().mean(1) for c in candidates])


def _expected(queries, database, neighbors, lengths, candidates, chunk_bytes, backend) -> torch.Tensor:
    """(m, len(candidates), Q): the mean over all orders of items at equal distance."""
    m, longest = len(lengths), lengths[-1]
    out = torch.empty(m, len(candidates), len(queries), dtype=torch.float64, device=queries.device)
    wanted = torch.tensor(candidates, device=queries.device)
    items = max(1, min(len(database), chunk_bytes // 2 // (12 * m)))
    step = max(1, chunk_bytes // 2 // (12 * m * items))
    for span in spans(len(queries), step):
        rows = torch.arange(span.stop - span.start, device=queries.device)[:, None]
        counts = torch.zeros(m, len(rows), longest + 1, dtype=torch.int64, device=queries.device)
        true = torch.empty(m, len(rows), neighbors.shape[1], dtype=torch.int64, device=queries.device)
        for part in spans(len(database), items):
            distances = hamming_distances(
                queries[span], database[part], lengths, chunk_bytes=chunk_bytes, backend=backend
            ).long()
            bins = (distances + (longest + 1) * rows).flatten(1)
            for j in range(m):
                counts[j] += torch.bincount(bins[j], minlength=len(rows) * (longest + 1)).view(len(rows), -1)
            inside = (neighbors[span] >= part.start) & (neighbors[span] < part.stop)
            place = (neighbors[span] - part.start).clamp(0, part.stop - part.start - 1).expand(m, -1, -1)
            true = torch.where(inside, distances.gather(2, place), true)
        nearer = (counts.cumsum(2) - counts).gather(2, true)[:, None]
        share = (wanted[:, None, None] - nearer) / counts.gather(2, true)[:, None]
        out[:, :, span] = share.double().clamp(0, 1).mean(3)
    return out
