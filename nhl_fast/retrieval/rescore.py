"""A second look at the candidates of a search over codes: longer prefixes, raw outputs, or the vectors themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import native
from ..core import check
from ..core.arrays import as_tensor
from ..core.operation import Operation
from . import codes
from .hamming import DEFAULT_CHUNK_BYTES, search, spans
from .outputs import check_outputs, nearest_by_outputs, scores_of
from .vectors import METRICS, as_numbers, check_vectors, largest, working_dtype


@check.memory
@torch.no_grad()
def rescore(
    queries,
    candidates,
    *,
    codes=None,
    vectors=None,
    k: int | None = None,
    length: int | None = None,
    metric: str = "cosine",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank each query's candidates again, by numbers that say more than their codes' distance.

    Args:
        queries: with `codes` the raw outputs (Q, L) of the queries: the score is their inner product with the +-1 of
            an item's code, about as good as a code of twice the bits. With `vectors` the queries' vectors (Q, d).
        candidates: (Q, c) int64 ids, as `search` returns them; -1 stands for none. None with `codes`: all items.
        codes: (n, bytes) packed uint8 rows of the database.
        vectors: (n, d) the database's vectors, float16, bfloat16, float32, float64 or int8, in memory or mapped: only
            the candidates' rows are read.
        k: how many to keep; None for all candidates.
        length: with `codes`, the bits to use; None for all.
        metric: with `vectors`, "cosine" or "product".
        chunk_bytes: bound on the memory taken beyond the result.
        backend: "auto", "reference" or "cpp" (float32 scores on the CPU, of given candidates).

    Returns:
        (scores, ids): float (Q, k) and int64 (Q, k), by descending score, then ascending id; where there are fewer
        candidates the rest of the row is -inf and -1. Scores are float32, float64 where queries or vectors are.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    if (codes is None) == (vectors is None):
        raise ValueError(f"vectors: expected either codes or vectors, got {'neither' if codes is None else 'both'}")
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    if codes is not None:
        return _by_outputs(queries, candidates, codes, k, length, chunk_bytes, backend)
    if length is not None:
        raise ValueError(f"length: expected None with vectors, got {check.shown(length)}")
    check.one_of(metric, "metric", METRICS)
    vectors = check_vectors(vectors, "vectors")
    queries = check_vectors(queries, "queries", vectors.shape[1])
    candidates = check_candidates(candidates, "candidates", len(queries), len(vectors), queries.device)
    dtype, unit = working_dtype(queries, vectors), metric == "cosine"
    scores = RESCORE.pick(backend, queries.device, (queries, candidates, vectors, None, dtype, unit)).function

    def score(span, ids):
        part = as_numbers(queries[span], "queries", dtype, None, unit)
        return scores(part, ids, vectors, None, dtype, unit)

    return _ranked(score, candidates, k, 3 * vectors.shape[1] * dtype.itemsize, dtype, chunk_bytes)


def _scores(queries, ids, rows, length, dtype, unit) -> torch.Tensor:
    """(Q, c) inner products of queries with their candidates' rows: vectors, or the first `length` bits as +-1.

    `ids` None: the candidates are all items, which are scanned and not looked up.
    """
    if length is not None:
        return scores_of(queries, rows[ids], length)
    rows = as_numbers(rows[ids.flatten().to(rows.device)], "vectors", dtype, queries.device, unit)
    return torch.bmm(rows.view(*ids.shape, -1), queries[:, :, None]).squeeze(2)


RESCORE = Operation("rescore", _scores)


def _refuses(queries, ids, rows, length, dtype, unit) -> str | None:
    if ids is None:
        return "candidates: None, all items"
    if dtype != torch.float32:
        return f"scores are {dtype}, C++ computes float32"
    if not isinstance(rows, torch.Tensor):
        return "vectors: rows chosen by their ids"
    if rows.device.type != "cpu" or queries.device.type != "cpu":
        return f"queries are on {queries.device}, the others on {rows.device}, C++ runs on the CPU"
    return None if rows.stride(1) == 1 or rows.shape[1] == 1 else "rows of numbers that do not lie side by side"


@RESCORE.serves("cpp", on="cpu", refuses=_refuses, traced=False)
def _scores_native(queries, ids, rows, length, dtype, unit) -> torch.Tensor:
    if length is not None:
        return native.score_codes(queries, rows, ids, length)
    scores, finite = native.score_vectors(queries, rows, ids, unit)
    if not finite:
        raise ValueError("vectors: expected finite numbers, got NaN or infinity")
    return scores


def _by_outputs(queries, candidates, packed, k, length, chunk_bytes, backend):
    packed = codes.check_packed(packed, "codes")
    queries = check_outputs(queries, "queries", packed)
    length = queries.shape[1] if length is None else check.positive_int(length, "length")
    if length > queries.shape[1]:
        raise ValueError(f"length: expected at most {queries.shape[1]}, the outputs of queries, got {length}")
    if candidates is not None:
        candidates = check_candidates(candidates, "candidates", len(queries), len(packed), queries.device)
    found = RESCORE.pick(backend, queries.device, (queries, candidates, packed, length, queries.dtype, False))
    if candidates is None:
        k = check.positive_int(k, "k")
        if k > len(packed):
            raise ValueError(f"k: expected at most {len(packed)}, the database's items, got {k}")
        return nearest_by_outputs(queries, packed, k, length, chunk_bytes)

    def score(span, ids):
        return found.function(queries[span], ids, packed, length, queries.dtype, False)

    return _ranked(score, candidates, k, (9 + queries.element_size()) * length, queries.dtype, chunk_bytes)


def check_candidates(value, name: str, num_queries: int, num_items: int, device) -> torch.Tensor:
    """`value` as int64 ids (Q, c) of the database's items, -1 for none, on `device`."""
    value = check.present(check.tensor(as_tensor(value, name), name), name)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 ids, got {check.describe(value)}")
    if value.ndim != 2 or len(value) != num_queries or value.shape[1] == 0:
        raise ValueError(f"{name}: expected ids of shape ({num_queries}, c), got {check.describe(value)}")
    value = value.to(device, torch.int64)
    check.values(
        ((value >= -1) & (value < num_items)).all(), f"{name}: expected ids from 0 to {num_items - 1}, or -1 for none"
    )
    return value


def _ranked(score, candidates: torch.Tensor, k, candidate_bytes: int, dtype, chunk_bytes: int):
    """The k best candidates by `score(span, ids)`, a tile of queries at a time."""
    count = candidates.shape[1]
    k = count if k is None else check.positive_int(k, "k")
    if k > count:
        raise ValueError(f"k: expected at most {count}, the candidates of a query, got {k}")
    candidates = candidates.sort(dim=1).values  # ascending, so that equal scores come by ascending id
    scores = torch.empty(len(candidates), k, dtype=dtype, device=candidates.device)
    ids = torch.empty_like(candidates[:, :k])
    for span in spans(len(candidates), max(1, chunk_bytes // (count * candidate_bytes))):
        part = candidates[span]
        found = score(span, part.clamp(min=0)).masked_fill_(part < 0, -torch.inf)
        scores[span], places = largest(found, k)
        ids[span] = part.gather(1, places)
    return scores, ids


def hamming_again(queries: torch.Tensor, database: torch.Tensor, candidates: torch.Tensor, k, length, chunk_bytes):
    """The k candidates (Q, c) nearest in the first `length` bits: (distances, ids), by distance, then id."""
    signs = codes.unpack_codes(queries, length).float()  # their product is length - 2 distances, exactly
    prefixes = database[:, : codes.num_bytes(length)]
    products, ids = rescore(signs, candidates, codes=prefixes, k=k, chunk_bytes=chunk_bytes)
    return products.sub_(length).div_(-2).masked_fill_(ids < 0, -1).to(torch.int32), ids


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
    stages = _stages(funnel, min(available, database.shape[1]), k, len(database))
    length = None if length is None else codes.check_length(length, min(available, database.shape[1]))
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    bits, count = stages[0]
    _, ids = search(packed, database, count, bits, chunk_bytes=chunk_bytes, backend=backend)
    for bits, count in stages[1:]:
        _, ids = hamming_again(packed, database, ids, count, bits, chunk_bytes)
    if vectors is not None:
        return rescore(query_vectors, ids, vectors=vectors, k=k, metric=metric, chunk_bytes=chunk_bytes)
    if outputs is not None:
        return rescore(outputs, ids, codes=database, k=k, length=length, chunk_bytes=chunk_bytes)
    last = 8 * min(available, database.shape[1]) if length is None else length
    return hamming_again(packed, database, ids, k, last, chunk_bytes)


def _stages(funnel, available_bytes: int, k: int, num_items: int) -> list[tuple[int, int]]:
    """The stages, checked; more candidates than there are items mean all of them."""
    if isinstance(funnel, str) or not isinstance(funnel, Sequence) or len(funnel) == 0:
        raise TypeError(f"funnel: expected pairs (bits, candidates), got {check.describe(funnel)}")
    stages: list[tuple[int, int]] = []
    for stage in funnel:
        if isinstance(stage, str) or not isinstance(stage, Sequence) or len(stage) != 2:
            raise TypeError(f"funnel: expected pairs (bits, candidates), got {check.describe(stage)}")
        bits = codes.check_length(stage[0], available_bytes, "funnel")
        count = min(check.positive_int(stage[1], "funnel", minimum=k), num_items)
        if stages and (bits <= stages[-1][0] or count > stages[-1][1]):
            raise ValueError(
                f"funnel: expected more bits and no more candidates than {stages[-1]}, got {(bits, count)}"
            )
        stages.append((bits, count))
    return stages
