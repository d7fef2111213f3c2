"""A second look at the candidates of a search over codes: longer prefixes, raw outputs, or the vectors themselves."""

from __future__ import annotations

import torch

from .. import native
from ..core import check
from ..core.arrays import as_tensor
from ..core.operation import Operation
from . import codes
from .hamming import DEFAULT_CHUNK_BYTES, spans
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
        backend: "auto", "reference", "cpp" or "cuda" (float32 scores on the CPU, or of what lies on one CUDA device,
            of given candidates).

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
_NOT_FINITE = "vectors: expected finite numbers, got NaN or infinity"


def _refuses(queries, ids, rows, length, dtype, unit) -> str | None:
    if ids is None:
        return "candidates: None, all items"
    if dtype != torch.float32:
        return f"scores are {dtype}, C++ computes float32"
    if not isinstance(rows, torch.Tensor):
        return "vectors: rows chosen by their ids"
    if rows.device != queries.device:
        return f"queries are on {queries.device}, the others on {rows.device}, C++ and CUDA take one device"
    return None if rows.stride(1) == 1 or rows.shape[1] == 1 else "rows of numbers that do not lie side by side"


def _refuses_cpp(queries, *rest) -> str | None:
    if queries.device.type != "cpu":
        return f"queries are on {queries.device}, C++ runs on the CPU"
    return _refuses(queries, *rest)


def _refuses_cuda(queries, *rest) -> str | None:
    if queries.device.type != "cuda":
        return f"queries are on {queries.device}, the kernels run on a CUDA device"
    return _refuses(queries, *rest)


@RESCORE.serves("cuda", on="cuda", refuses=_refuses_cuda, traced=False)
@RESCORE.serves("cpp", on="cpu", refuses=_refuses_cpp, traced=False)
def _scores_native(queries, ids, rows, length, dtype, unit) -> torch.Tensor:
    if length is not None:
        return native.score_codes(queries, rows, ids, length)
    scores, finite = native.score_vectors(queries, rows, ids, unit)
    if queries.is_cuda:  # asserted there: nothing waits for the device
        check.values(~scores.isnan().any(), _NOT_FINITE)
    elif not finite:
        raise ValueError(_NOT_FINITE)
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
