"""A database in shards: on the ranks of a process group, in files, or both. Exact, and no rank holds all codes.

The database is the shards one after the other: rank 0's in their order, then rank 1's, and so on; an item's id is its
row number there. Shards are read one at a time, memory maps in place, each once for all queries (twice under "id"),
and the next one's pages are asked for meanwhile: so a mapped file larger than memory, cut by `cut_rows`, is read in a
stream. The queries are the same on every rank, and so are the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..core import check, ranks
from ..core.arrays import as_tensor, read_ahead
from ..core.labels import check_form, similarity
from ..core.names import MEANS_OVER
from . import codes, ranking, tie_groups
from .hamming import DEFAULT_CHUNK_BYTES, hamming_distances, merge_nearest, search, spans
from .metrics import (
    NO_RELEVANT,
    RetrievalResult,
    check_label_pair,
    check_ranks,
    ranked_average_precision,
    tied_average_precision,
)
from .ties import RULES

Progress = Callable[[int, int], object]
STREAM_ROWS = 2**22


def cut_rows(codes, labels=None, rows: int = STREAM_ROWS) -> list:
    """Rows, a memory map's too, as shards of at most `rows`: of codes, or of pairs of codes and labels.

    Raises:
        TypeError, ValueError: `rows` is no positive integer, or there are other labels than codes.
    """
    step = check.positive_int(rows, "rows")
    if labels is not None and len(labels) != len(codes):
        raise ValueError(f"labels: expected {len(codes)} rows, one a code, got {check.describe(labels)}")
    parts = [slice(start, start + step) for start in range(0, len(codes), step)]
    return [codes[part] if labels is None else (codes[part], labels[part]) for part in parts]


@check.memory
@torch.no_grad()
def search_shards(
    queries,
    shards: Sequence,
    k: int,
    length: int | None = None,
    *,
    process_group=None,
    progress: Progress | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest items of a database in shards, by distance, then by ascending id: as `search` of the whole.

    Args:
        queries: (Q, bytes) packed uint8 rows, the same on every rank.
        shards: this rank's shards, (n_s, bytes) packed uint8 rows each; tensors, arrays or memory maps.
        k, length, chunk_bytes, backend: as for `search`; k is at most the number of items in all shards.
        process_group: None (the shards here are the database), "auto" or a group, all of whose ranks call.
        progress: called after each shard: progress(items searched, items of all shards here).

    Returns:
        (distances, ids): int32 and int64 tensors (Q, k), equal on all ranks.
    """
    group = ranks.resolve_group(ranks.check_group(process_group))
    error, parts = None, None
    try:
        k = check.positive_int(k, "k")
        _check_progress(progress)
        queries = codes.check_packed(queries, "queries")
        given = _sequence(shards)
        shards = [codes.check_packed(shard, "shards") for shard in given]
        start, total = 0, sum(map(len, shards))
        parts = []
        for number, shard in enumerate(shards, 1):
            for following in given[number : number + 1]:
                read_ahead(following)
            if len(shard):
                options = {"chunk_bytes": chunk_bytes, "backend": backend}
                distances, ids = search(queries, shard, min(k, len(shard)), length, **options)
                parts.append((distances, ids + start))
                parts = [merge_nearest(parts, k, ascending=True)]
            start += len(shard)
            if progress is not None:
                progress(start, total)
    except Exception as problem:
        error = problem
    ranks.agree(error, group)
    counts = [int(count) for count in ranks.gathered(torch.tensor([total], device=queries.device), group)]
    if k > sum(counts):
        raise ValueError(f"k: expected at most {sum(counts)}, the items in all shards, got {k}")
    everyone = []
    own = _padded(parts, len(queries), k, queries.device)
    for rank, found in enumerate(ranks.gathered(own, group)):
        distances, ids = found[..., 0], found[..., 1]
        everyone.append((distances, ids + sum(counts[:rank])))
    distances, ids = merge_nearest(everyone, k, ascending=True)
    return distances.int(), ids


_FAR = torch.iinfo(torch.int64).max // 2


def _padded(parts, rows: int, k: int, device) -> torch.Tensor:
    """(Q, k, 2) int64 of distances and ids; what is missing is far away."""
    own = torch.full((rows, k, 2), _FAR, dtype=torch.int64, device=device)
    for distances, ids in parts:
        own[:, : distances.shape[1]] = torch.stack([distances.long(), ids], -1)
    return own


@check.memory
@torch.no_grad()
def evaluate_shards(
    q_codes,
    q_labels,
    shards: Sequence,
    lengths=None,
    topk: int | None = None,
    ties: str = "id",
    *,
    denominator: str = "retrieved",
    ndcg=(),
    mean_over: str = "all",
    process_group=None,
    progress: Progress | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> RetrievalResult:
    """`evaluate_retrieval` of a database in shards, under every rule for ties.

    Args:
        q_codes, q_labels: of the queries, the same on every rank.
        shards: this rank's shards as pairs (codes (n_s, bytes), labels); tensors, arrays or memory maps.
        lengths, topk, ties, denominator, ndcg, mean_over, chunk_bytes, backend: as for `evaluate_retrieval`.
        process_group: None (the shards here are the database), "auto" or a group, all of whose ranks call.
        progress: called after each shard of the first reading: progress(items counted, items of all shards here).

    Returns:
        `RetrievalResult` on the CPU, equal on all ranks. Counts are those of the whole database; sums of fractions
        (under "id") differ by the order of summation alone.
    """
    group = ranks.resolve_group(ranks.check_group(process_group))
    error, own, counted, here = None, [], [], None
    try:
        _check_progress(progress)
        rule = RULES[check.one_of(ties, "ties", tuple(RULES))]
        check.one_of(denominator, "denominator", tie_groups.DENOMINATORS)
        check.one_of(mean_over, "mean_over", MEANS_OVER)
        gain_ends = check_ranks(ndcg, check.MAX_INT)
        topk = topk if topk is None else check.positive_int(topk, "topk")
        q_codes = codes.check_packed(q_codes, "q_codes")
        if len(q_codes) == 0:
            raise ValueError(f"q_codes: expected at least one row, got {check.describe(q_codes)}")
        lengths = codes.check_lengths(lengths, q_codes.shape[1])
        for shard in _sequence(shards):
            if not isinstance(shard, (tuple, list)) or len(shard) != 2:
                raise TypeError(f"shards: expected pairs of codes and labels, got {check.describe(shard)}")
            rows = codes.check_packed(shard[0], "shards: codes")
            codes.check_lengths(lengths, rows.shape[1])
            check_form(as_tensor(shard[1], "db_labels"), len(rows), name="db_labels")
            if len(rows):
                own.append((rows, *shard))
        used = codes.num_bytes(lengths[-1])
        q_codes = q_codes[:, :used]
        here = torch.zeros(len(q_codes), sum(b + 1 for b in lengths), 2, dtype=torch.int64)
        done, total = 0, sum(len(rows) for rows, *_ in own)
        for number, (rows, _, labels) in enumerate(own, 1):
            for _, *following in own[number : number + 1]:
                for array in following:
                    read_ahead(array)
            both = _labels(q_codes, q_labels, rows, labels)
            arguments = (q_codes, rows[:, :used], *both, lengths, None, chunk_bytes)
            counts = torch.cat(ranking.COLLECT(*arguments, backend=backend)[0], 1).long().cpu()
            here += counts
            if rule.ranked:
                counted.append(counts)
            done += len(rows)
            if progress is not None:
                progress(done, total)
    except Exception as problem:
        error = problem
    ranks.agree(error, group)
    everywhere = ranks.gathered(here, group)
    whole = sum(everywhere)
    n = int(whole[0, : lengths[0] + 1].sum())
    if n == 0:
        raise ValueError("shards: expected at least one item in all shards")
    gain_ends = check_ranks(gain_ends, n)
    if mean_over == "relevant" and not whole[..., 1].any():
        raise ValueError(NO_RELEVANT)
    cutoff = n if topk is None else min(n, topk)
    options = {"ranks": gain_ends, "mean_over": mean_over}
    widths = [b + 1 for b in lengths]
    histograms = list(whole.split(widths, 1))
    if not rule.ranked:
        rows = [tied_average_precision(h, cutoff, rule, denominator, chunk_bytes) for h in histograms]
        return RetrievalResult(lengths, topk, ties, denominator, torch.stack(rows), histograms, None, **options)
    before = sum(everywhere[: 0 if group is None else group.rank()], torch.zeros_like(here))
    sums = _Sums(len(lengths), histograms[0][..., 1].sum(1), n, cutoff, gain_ends)
    for (rows, _, labels), counts in zip(own, counted):
        starts = [_starts(*(t.split(widths, 1)[j] for t in (whole, before, counts))) for j in range(len(lengths))]
        shard = rows, *_labels(q_codes, q_labels, rows, labels)
        sums.add(q_codes, shard, lengths, starts, chunk_bytes, backend)
        before = before + counts
    sums = ranking.RankSums(*(ranks.added_up(part, group) for part in sums.parts))
    average_precision = ranked_average_precision(histograms[0], sums, cutoff, denominator)
    return RetrievalResult(lengths, topk, ties, denominator, average_precision, histograms, sums, **options)


def _labels(q_codes, q_labels, rows, labels) -> tuple[torch.Tensor, ...]:
    """Labels of the queries and of a shard, checked, where the codes are."""
    both = check_label_pair(q_labels, labels, len(q_codes), len(rows))
    return tuple(side.to(q_codes.device) for side in both)


def _check_progress(value) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"progress: expected a function of two numbers, got {check.describe(value)}")


def _sequence(shards) -> Sequence:
    if not isinstance(shards, (list, tuple)):
        raise TypeError(f"shards: expected a list of shards, got {check.describe(shards)}")
    return shards


def _starts(whole: torch.Tensor, before: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(Q, b + 1, 2) int64: by how much an item's place in its shard's ranking is less than in the whole one's.

    [..., 0] of its rank among all items, [..., 1] of its number among the relevant ones. `before` counts the items of
    earlier shards, which come first at an equal distance.
    """

    def nearer(counts):
        return counts.cumsum(1) - counts

    shift = nearer(whole) + before - nearer(own)
    return torch.stack([shift.sum(-1), shift[..., 1]], -1)


class _Sums:
    """The parts of `RankSums`, added up shard by shard; on the CPU."""

    def __init__(self, m: int, relevant: torch.Tensor, n: int, cutoff: int, gain_ends: tuple[int, ...]):
        self.cutoff, self.n, queries = cutoff, n, len(relevant)
        self.share = relevant.double().reciprocal()
        precision, retrieved = (
            torch.zeros(m, queries, dtype=torch.float64),
            torch.zeros(m, queries, dtype=torch.int64),
        )
        gains = torch.zeros(m, queries, len(gain_ends), dtype=torch.float64)
        self.gain_ends = gain_ends
        self.discounts = tie_groups.discounts(gain_ends[-1]) if gain_ends else None
        self.parts = (precision, retrieved, *(torch.zeros(m, n, dtype=torch.float64) for _ in range(2)))
        self.parts += (gains,) if gain_ends else ()

    def add(self, q_codes, shard, lengths, starts, chunk_bytes: int, backend: str) -> None:
        """Take in a shard: its relevant items' ranks in the whole database."""
        rows, ours, theirs = shard
        precision, retrieved, hits, recall, *gains = self.parts
        step = max(1, chunk_bytes // (len(rows) * (4 * len(lengths) + 32)))
        for part in spans(len(q_codes), step):
            queries = q_codes[part]
            relevant = similarity(ours[part], theirs).cpu()
            distances = hamming_distances(queries, rows, lengths, chunk_bytes=chunk_bytes, backend=backend)
            for j, found in enumerate(distances.cpu()):
                order = ranking.stable_order(found)
                row, place = relevant.gather(1, order).nonzero(as_tuple=True)
                count = relevant.sum(1)
                number = torch.arange(1, len(row) + 1) - (count.cumsum(0) - count)[row]
                distance = found.gather(1, order)[row, place].long()
                shift = starts[j][part][row, distance]
                rank, number = place + shift[:, 0], number + shift[:, 1]
                inside = rank < self.cutoff
                weight = (number.double() / (rank + 1)).mul_(inside)
                precision[j, part] += torch.bincount(row, weight, minlength=len(queries))
                retrieved[j, part] += torch.bincount(row[inside], minlength=len(queries))
                hits[j] += torch.bincount(rank, minlength=self.n)
                recall[j] += torch.bincount(rank, self.share[part][row], minlength=self.n)
                for i, end in enumerate(self.gain_ends):
                    gained = self.discounts[rank[rank < end]]
                    gains[0][j, part, i] += torch.bincount(row[rank < end], gained, minlength=len(queries))
