"""`nhl.search`, flat or coarse to fine, and `nhl.funnel_search`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...core import check
from ...core.arrays import as_tensor, check_output
from .. import codes, hamming
from ..hamming import DEFAULT_CHUNK_BYTES
from ..outputs import check_outputs
from ..rescore import rescore as rescored
from ..vectors import METRICS
from .scores import check_scores
from .stages import Stages, check_stages, nearest_among


def search(
    queries,
    database,
    k: int,
    length: int | None = None,
    *,
    allow=None,
    funnel: Sequence[tuple[int, int]] | None = None,
    rescore=None,
    metric: str = "cosine",
    beyond: str = "raise",
    output: str = "tensor",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest database items of every query, by distance, then by ascending id.

    Args:
        queries: (Q, bytes) packed uint8 rows, tensor or NumPy array; one code (bytes,) gives results (k,).
        database: (n, bytes) packed uint8 rows on the same device; an item's id is its row number.
        k: neighbours a query, 1 to n.
        length: code length in bits (a prefix of the rows); None for all bits.
        allow: (n,) bool mask; items where it is False are left out.
        funnel: stages (bits, candidates), as ((64, 500),): the first one searches all items by its prefix (whole
            bytes), each other one the candidates that the one before left, and the last candidates are ranked by
            `length` bits, or by `rescore`. Bits increase, up to `length`; candidates don't, down to k. Exact where
            the k nearest are among the candidates. None: the exact search. `NestedIndex` keeps prefixes side by side,
            which is faster.
        rescore: what ranks the funnel's last candidates in place of the distance: the queries' raw outputs (Q, L)
            against the codes, or a pair (vectors of the queries (Q, d), vectors of the items (n, d)); see
            `nhl_fast.rescore`.
        metric: "cosine" or "product", of the vectors.
        beyond: what a k beyond n does: "raise", "cut" (k is n) or "pad" (as where `allow` leaves too few).
        output: "tensor", or "numpy" for arrays.
        chunk_bytes: bound on the memory taken beyond a small multiple of the result.
        backend: "auto", "reference", "cpp" or "cuda".

    Returns:
        (distances, ids): int32 and int64 tensors (Q, k); with `rescore` (scores, ids), by descending score. Where
        fewer than k items are left, by `allow`, the rest of the row is -1 in both (scores: -inf).

    Raises:
        TypeError, ValueError: an argument does not fit (k beyond n among them), naming it.
    """
    if funnel is None and rescore is None and isinstance(metric, str) and metric == "cosine":
        return hamming.search(
            queries,
            database,
            k,
            length,
            allow=allow,
            beyond=beyond,
            output=output,
            chunk_bytes=chunk_bytes,
            backend=backend,
        )
    return _staged(queries, database, k, length, allow, funnel, rescore, metric, beyond, output, chunk_bytes, backend)


@check.memory
@torch.no_grad()
def _staged(
    queries, database, k, length, allow, funnel, rescore, metric, beyond, output, chunk_bytes, backend
) -> tuple[torch.Tensor, torch.Tensor]:
    check.one_of(metric, "metric", METRICS)
    if funnel is None and rescore is None:
        options = {"allow": allow, "beyond": beyond, "output": output, "chunk_bytes": chunk_bytes, "backend": backend}
        return hamming.search(queries, database, k, length, **options)
    queries, database, (length,), one = hamming.check_pair(queries, database, length, "length")
    check_output(output)
    count, width = hamming.check_k(k, len(database), f"n = {len(database)}, the database's items", beyond)
    stages = check_stages(funnel, length, count, len(database))
    scores = check_scores(rescore, metric, len(queries), one, len(database), database)
    allow = hamming.check_allow(allow, database)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    ids = candidates(queries, database, stages, allow, chunk_bytes, backend)
    if scores is None:
        found = nearest_among(queries, database, ids, count, length, chunk_bytes, backend)
    else:
        found = scores.rank(ids, database, count, length, chunk_bytes)
    return shaped(found, width, one, output)


def shaped(found, width: int, one: bool, output: str):
    """`hamming.shaped`, of scores too, which are padded with -inf."""
    values, ids = found
    if values.is_floating_point() and width > values.shape[1]:
        values = torch.nn.functional.pad(values, (0, width - values.shape[1]), value=-torch.inf)
        ids = torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1)
    return hamming.shaped((values, ids), width, one, output)


def candidates(queries, database, stages: Stages, allow, chunk_bytes: int, backend: str) -> torch.Tensor:
    """What the stages leave, int64 (Q, c); -1 where `allow` leaves fewer."""
    bits, count = stages[0]
    _, ids = hamming.nearest(queries, database, count, bits, allow, chunk_bytes, backend)
    for bits, count in stages[1:]:
        _, ids = nearest_among(queries, database, ids, count, bits, chunk_bytes, backend)
    return ids


@check.memory
@torch.no_grad()
def funnel_search(
    queries,
    database,
    k: int,
    funnel: Sequence[tuple[int, int]] = ((64, 500),),
    *,
    length: int | None = None,
    vectors=None,
    query_vectors=None,
    metric: str = "cosine",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest items found coarse to fine: many candidates by a short prefix, ranked again by what costs more.

    Args:
        queries: (Q, bytes) packed uint8 rows, or raw outputs (Q, L), which are packed for the stages and rank what
            these leave by <u, code>.
        database: (n, bytes) packed uint8 rows.
        k: neighbours a query.
        funnel: stages (bits, candidates): bits increase, candidates don't, and the last ones are at least k. The
            first stage searches the whole database, each other one the candidates that the one before left.
        length: bits of the last ranking; None for all. Not used with `vectors`.
        vectors, query_vectors: (n, d) and (Q, d): rank what the stages leave by these instead (see `rescore`).
        metric: "cosine" or "product", of the vectors.
        chunk_bytes: bound on the memory taken beyond the result.
        backend: of the first stage's search, "auto", "reference", "cpp" or "cuda".

    Returns:
        (distances, ids), int32 and int64 (Q, k), by distance, then ascending id, for packed queries; (scores, ids),
        as `rescore` gives them, for raw outputs or vectors.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    database = codes.check_packed(database, "database")
    raw = check.present(check.tensor(as_tensor(queries, "queries"), "queries"), "queries")
    # A matrix of -1 and +1 is a code (check_packed packs it), whatever its dtype.
    raw = raw if raw.is_floating_point() and raw.itemsize > 1 and bool((raw.abs() != 1).any()) else None
    outputs = None if raw is None else check_outputs(raw, "queries", database)
    packed = codes.check_packed(queries, "queries") if outputs is None else codes.pack_outputs(outputs)
    if (vectors is None) != (query_vectors is None):
        raise ValueError("query_vectors: expected them together with vectors, and only then")
    k = check.positive_int(k, "k", maximum=len(database))
    available = packed.shape[1] if outputs is None else codes.num_bytes(outputs.shape[1])
    width = min(available, database.shape[1])
    stages = check_stages(funnel, 8 * width, k, len(database), whole_bytes=False)
    length = None if length is None else codes.check_length(length, width)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    ids = candidates(packed, database, stages, None, chunk_bytes, backend)
    if vectors is not None:
        return rescored(query_vectors, ids, vectors=vectors, k=k, metric=metric, chunk_bytes=chunk_bytes)
    if outputs is not None:
        return rescored(outputs, ids, codes=database, k=k, length=length, chunk_bytes=chunk_bytes)
    return nearest_among(packed, database, ids, k, 8 * width if length is None else length, chunk_bytes, backend)
