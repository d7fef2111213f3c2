"""The Hamming engine's operators `torch.ops.nhl_fast.*`: pack, distances, histograms, evaluate, topk, radius, ..."""

from __future__ import annotations

import torch

from .calls import ops


def pack(x: torch.Tensor) -> torch.Tensor:
    """(N, ceil(L / 8)) uint8: `numpy.packbits(x > 0, axis=1)` of a floating-point (N, L) tensor of any strides."""
    return ops.pack(x.detach())


def distances(queries: torch.Tensor, database: torch.Tensor, lengths) -> torch.Tensor:
    """(m, Q, n) int32 distances of packed rows over the first b bits, for every b in `lengths` in one pass."""
    return ops.distances(_rows(queries), _rows(database), list(lengths))


def topk(
    queries: torch.Tensor,
    database: torch.Tensor,
    k: int,
    length: int,
    allow: torch.Tensor | None = None,
    base: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest rows of `database` to every query, by (distance, id).

    Args:
        queries, database: packed uint8 rows (Q, bytes), (n, bytes); read in place, a read-only memory map included.
        k: neighbours a query; where fewer are left, the rest of the row is -1.
        length: code length in bits, a prefix of the rows.
        allow: (n,) bool, items to consider; None for all.
        base: the id of the first row, for a database searched in parts.

    Returns:
        (distances (Q, k) int32, ids (Q, k) int64).
    """
    allow = allow if allow is None else allow.contiguous()
    return ops.topk(_rows(queries), _rows(database), k, length, allow, base)


def topk_buckets(queries, rows, ids, starts, k: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk` of rows that are sorted by a prefix of p <= 12 bits, then by id.

    Args:
        queries: packed uint8 rows (Q, bytes).
        rows: (n + 64, 4, 8, 16 or 32) uint8, of which the last 64 are none.
        ids: (n,) int32, of the rows.
        starts: (2^p + 1,) int64: rows of prefix v are starts[v] to starts[v + 1].
        k, length: as for `topk`; p <= length.
    """
    return ops.topk_buckets(_rows(queries), rows, ids, starts, k, length)


def topk_among(queries, database, candidates, k: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of each query's candidates, (Q, c) int64 rows of `database` or -1 for none; see `topk`."""
    return ops.topk_among(_rows(queries), _rows(database), candidates.contiguous(), k, length)


def score_vectors(queries, vectors, candidates, unit: bool) -> tuple[torch.Tensor, bool]:
    """((Q, c) float32 inner products of queries with their candidates' vectors, whether these are all finite).

    Args:
        queries: (Q, d) float32.
        vectors: (n, d) float16, bfloat16, float32 or int8 rows, read in place; a memory map's too.
        candidates: (Q, c) int64 rows of `vectors`.
        unit: divide by the vectors' norms (a zero row gives 0).
    """
    return ops.score_vectors(queries.contiguous(), vectors, candidates.contiguous(), unit)


def score_codes(outputs, codes, candidates, length: int) -> torch.Tensor:
    """(Q, c) inner products of float32 raw outputs (Q, L) with their candidates' first `length` bits as +-1."""
    return ops.score_codes(outputs.contiguous(), _rows(codes), candidates.contiguous(), length)


def radius(
    queries: torch.Tensor,
    database: torch.Tensor,
    radius: int,
    length: int,
    allow: torch.Tensor | None = None,
    base: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every row within `radius` of each query: (offsets (Q + 1,), distances, ids), by (distance, id); see `topk`."""
    allow = allow if allow is None else allow.contiguous()
    return ops.radius(_rows(queries), _rows(database), radius, length, allow, base)


def histograms(queries, database, query_labels, database_labels, lengths) -> list[torch.Tensor]:
    """For every length b, (Q, b + 1, 2) int64: [q, d, 1] relevant and [q, d, 0] other items at distance d.

    Labels are int64 class ids or multi-hot rows, in any mixture, as `evaluate` takes them.
    """
    labels = _relevance_labels(query_labels, database_labels)
    counts = ops.histograms(_rows(queries), _rows(database), *labels, list(lengths))
    return _split_counts(counts, len(queries), lengths)


def evaluate(queries, database, query_labels, database_labels, lengths, cutoff: int, ranks=()):
    """(histograms, precision, retrieved, hits, recall), and gains with `ranks`: see `ranking.RankSums`.

    Args:
        queries, database: packed uint8 rows (Q, bytes), (n, bytes).
        query_labels, database_labels: class ids (N,) or multi-hot rows (N, C), in any mixture.
        lengths: strictly increasing code lengths.
        cutoff: K of the precision sums.
        ranks: strictly increasing, at most n, where the gains end.
    """
    labels = _relevance_labels(query_labels, database_labels)
    arguments = (_rows(queries), _rows(database), *labels, list(lengths), cutoff)
    counts, *sums = ops.evaluate_gains(*arguments, list(ranks)) if ranks else ops.evaluate(*arguments)
    return _split_counts(counts, len(queries), lengths), *sums


def _rows(codes: torch.Tensor) -> torch.Tensor:
    """Rows whose bytes are adjacent: the tensor itself unless it is transposed or strided within its rows."""
    return codes if codes.stride(1) == 1 or codes.shape[1] == 1 else codes.contiguous()


def _split_counts(counts: torch.Tensor, num_queries: int, lengths) -> list[torch.Tensor]:
    parts = counts.split([2 * (b + 1) * num_queries for b in lengths])
    return [part.view(num_queries, b + 1, 2) for b, part in zip(lengths, parts)]


def _relevance_labels(query_labels: torch.Tensor, database_labels: torch.Tensor):
    """Both label sets in the form the operators take: the narrowest ids, or sets as words of 64 classes."""
    if query_labels.ndim == 1 and database_labels.ndim == 1:
        both = (query_labels, database_labels)
        if all(t.is_cuda for t in both):  # looking at them would wait for the device
            return tuple(t.long().contiguous() for t in both)
        highest = max((int(t.max()) for t in both if t.numel()), default=0)
        lowest = min((int(t.min()) for t in both if t.numel()), default=0)
        fits = [t for t in (torch.uint8, torch.int16, torch.int32) if lowest >= 0 and highest <= torch.iinfo(t).max]
        return tuple(t.to(fits[0] if fits else torch.int64).contiguous() for t in both)
    classes = next(t.shape[1] for t in (query_labels, database_labels) if t.ndim == 2)
    return label_words(query_labels, classes), label_words(database_labels, classes)


def label_words(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Label sets as bit masks: (N, ceil(C / 64)) int64, class c at bit c % 64 of word c // 64.

    Args:
        labels: class ids (N,) or multi-hot rows (N, C) of any dtype.
        num_classes: C, at least 1.
    """
    if labels.ndim == 1:
        out = torch.zeros(len(labels), -(-num_classes // 64), dtype=torch.int64, device=labels.device)
        labels = labels.long()[:, None]
        return out.scatter_(1, labels // 64, torch.ones_like(labels) << labels % 64)
    bits = torch.nn.functional.pad((labels != 0).to(torch.uint8), (0, -num_classes % 64))
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=labels.device)
    return (bits.view(len(labels), -1, 8) * place).sum(-1, dtype=torch.uint8).view(torch.int64)
