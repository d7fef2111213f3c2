"""One pass over queries x database: what every ranking metric is computed from.

Per query and length, a histogram over distances of (irrelevant, relevant) items; it fixes every metric that
does not depend on the order inside a tie. For ties broken by id, also the ranks of the relevant items in the
stable order, reduced at once to sums.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import numpy as np
import torch

from .. import native
from ..core.labels import similarity, to_multi_hot
from ..core.operation import Operation
from . import tie_groups
from .hamming import prefix_products, signs, spans, tile_shape, too_long


@dataclass
class RankSums:
    """Sums over the relevant items' ranks under (distance, id), for m lengths; on the CPU.

    Attributes:
        precision: (m, Q) float64, the sum of precision@r over the ranks r <= K that hold a relevant item.
        retrieved: (m, Q) int64, relevant items at ranks <= K.
        hits: (m, n) float64, how many queries have a relevant item at rank r (column r - 1), K aside.
        recall: (m, n) float64, the same with each query weighing 1 / (its relevant items).
        gains: (m, Q, len(ranks)) float64, the sum of 1 / log2(r + 1) over the ranks r up to each of `ranks` that hold
            a relevant item; None where they were not asked for.
    """

    precision: torch.Tensor
    retrieved: torch.Tensor
    hits: torch.Tensor
    recall: torch.Tensor
    gains: torch.Tensor | None = None


def collect(
    queries: torch.Tensor,
    database: torch.Tensor,
    query_labels: torch.Tensor,
    database_labels: torch.Tensor,
    lengths: tuple[int, ...],
    cutoff: int | None,
    chunk_bytes: int,
    ranks: tuple[int, ...] = (),
) -> tuple[list[torch.Tensor], RankSums | None]:
    """Histograms and, where `cutoff` is given, rank sums.

    Args:
        queries, database: packed uint8 rows (Q, bytes) and (n, bytes), Q and n at least 1.
        query_labels, database_labels: int64 ids (N,) or multi-hot rows (N, C), in any mixture.
        lengths: strictly increasing code lengths.
        cutoff: K of the rank sums, at most n; None leaves them out (and no ranking is made).
        chunk_bytes: bound on the memory taken beyond the result (one query's row of distances is the least).
        ranks: strictly increasing, at most n: where the gains of the rank sums end.

    Returns:
        (histograms, sums): per length b an int32 tensor (Q, b + 1, 2) on the CPU, [q, d, 1] the relevant and
        [q, d, 0] the other items at distance d from query q; and `RankSums` or None.
    """
    num_queries, n, longest = len(queries), len(database), lengths[-1]
    device = queries.device
    classes = max((t.shape[1] for t in (query_labels, database_labels) if t.ndim == 2), default=None)

    def operand(labels: torch.Tensor) -> torch.Tensor:
        return labels if classes is None else to_multi_hot(labels, classes)

    def columns(span: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return signs(database[span], longest).T.contiguous(), operand(database_labels[span])

    # A row: signs (the bits, int8, float32 twice), counts, labels. A pair: product, keys, base, relevance.
    row_bytes = 10 * longest + 32 * (longest + 1) + 8 * (classes or 1)
    tile_rows, tile_items = tile_shape(num_queries, n, row_bytes, 28, chunk_bytes // 2, device)
    item_spans = spans(n, tile_items)
    whole = columns(item_spans[0]) if len(item_spans) == 1 else None

    histograms = [torch.zeros(num_queries, b + 1, 2, dtype=torch.int32, device=device) for b in lengths]
    ranker = _Ranker(lengths, num_queries, n, cutoff, ranks, chunk_bytes // 4, device) if cutoff else None
    for block in spans(num_queries, ranker.rows if ranker else num_queries):
        for item_span in item_spans:
            item_columns, item_labels = whole or columns(item_span)
            for part in spans(block.stop - block.start, tile_rows):
                query_span = slice(block.start + part.start, block.start + part.stop)
                relevant = similarity(operand(query_labels[query_span]), item_labels)
                query_signs = signs(queries[query_span], longest)
                count = _HistogramTile(relevant, longest)
                if ranker:
                    ranker.relevant[part, item_span] = relevant
                for j, (b, product) in enumerate(prefix_products(query_signs, item_columns, lengths)):
                    histograms[j][query_span] += count(b, product)
                    if ranker:
                        ranker.distances[j, part, item_span] = (b - product).mul_(0.5)
        if ranker:
            ranker.reduce(block)
    return [h.cpu() for h in histograms], ranker.sums() if ranker else None


class _HistogramTile:
    """Counts (irrelevant, relevant) by distance for a tile.

    The key of a pair is row * width + longest - <q, d> + relevant, and b - <q, d> = 2 * distance: so keys need
    one subtraction a length, and the counts of length b are a window of each row.
    """

    def __init__(self, relevant: torch.Tensor, longest: int):
        self.rows, self.longest, self.width = len(relevant), longest, 2 * longest + 2
        first = torch.arange(self.rows, dtype=torch.int32, device=relevant.device) * self.width + longest
        self.base = relevant.to(torch.int32).add_(first[:, None])

    def __call__(self, b: int, product: torch.Tensor) -> torch.Tensor:
        keys = self.base - product.to(torch.int32)
        counts = torch.bincount(keys.view(-1), minlength=self.rows * self.width).view(self.rows, self.width)
        return counts[:, self.longest - b : self.longest + b + 2].reshape(self.rows, b + 1, 2)


class _Ranker:
    """Holds whole rows of distances for a block of queries and reduces their rankings to `RankSums`."""

    def __init__(self, lengths, num_queries: int, n: int, cutoff: int, ranks, chunk_bytes: int, device: torch.device):
        m = len(lengths)
        # The smallest dtype: integer radix sorts cost one pass a byte.
        dtype = next(t for t in (torch.uint8, torch.int16, torch.int32) if lengths[-1] <= torch.iinfo(t).max)
        self.rows = max(1, min(num_queries, chunk_bytes // (n * (m * dtype.itemsize + 1))))
        # Order and gathered relevance a pair, and, should all be relevant, the arrays over relevant ranks.
        self.step = max(1, chunk_bytes // (n * 80))
        self.cutoff, self.ranks = cutoff, ranks
        self.discounts = tie_groups.discounts(ranks[-1]).to(device) if ranks else None
        self.gains = torch.zeros(m, num_queries, len(ranks), dtype=torch.float64, device=device)
        self.distances = torch.empty(m, self.rows, n, dtype=dtype, device=device)
        self.relevant = torch.empty(self.rows, n, dtype=torch.bool, device=device)
        self.precision = torch.zeros(m, num_queries, dtype=torch.float64, device=device)
        self.retrieved = torch.zeros(m, num_queries, dtype=torch.int64, device=device)
        self.hits = torch.zeros(m, n, dtype=torch.float64, device=device)
        self.recall = torch.zeros(m, n, dtype=torch.float64, device=device)

    def reduce(self, block: slice) -> None:
        """Rank the queries of `block`, whose distances and relevance are in the first rows."""
        n = self.relevant.shape[1]
        for part in spans(block.stop - block.start, self.step):
            relevant = self.relevant[part]
            rows, count = len(relevant), relevant.sum(1)
            first = count.cumsum(0) - count
            target = slice(block.start + part.start, block.start + part.stop)
            for j, distances in enumerate(self.distances):
                row, rank = relevant.gather(1, stable_order(distances[part])).nonzero(as_tuple=True)
                number = torch.arange(1, len(row) + 1, device=row.device) - first[row]
                weight = (number.double() / (rank + 1)).mul_(rank < self.cutoff)
                self.precision[j, target] = torch.bincount(row, weight, minlength=rows)
                self.retrieved[j, target] = torch.bincount(row[rank < self.cutoff], minlength=rows)
                for i, end in enumerate(self.ranks):
                    inside = rank < end
                    gained = self.discounts[rank[inside]]
                    self.gains[j, target, i] = torch.bincount(row[inside], gained, minlength=rows)
                self.hits[j] += torch.bincount(rank, minlength=n)
                self.recall[j] += torch.bincount(rank, count.double().reciprocal()[row], minlength=n)

    def sums(self) -> RankSums:
        sums = (self.precision, self.retrieved, self.hits, self.recall, *([self.gains] if self.ranks else []))
        return RankSums(*(part.cpu() for part in sums))


def stable_order(keys: torch.Tensor) -> torch.Tensor:
    """The stable ascending argsort of each row of an integer matrix, int64."""
    if keys.device.type == "cpu":
        # NumPy sorts 8- and 16-bit integers by radix, some twenty times faster than torch's stable sort.
        return torch.from_numpy(np.argsort(keys.numpy(), axis=1, kind="stable"))
    return keys.argsort(dim=1, stable=True)


COLLECT = Operation("evaluate_retrieval", collect, strict=True)


@COLLECT.serves("cuda", on="cuda", refuses=too_long("cuda", 4))
@COLLECT.serves("cpp", on="cpu", refuses=too_long("cpp", 4))
def _collect_native(queries, database, query_labels, database_labels, lengths, cutoff, chunk_bytes, ranks=()):
    labels = (query_labels, database_labels)
    if not cutoff:
        return [h.cpu() for h in native.histograms(queries, database, *labels, lengths)], None
    parts = [
        native.evaluate(queries[some], database, query_labels[some], database_labels, lengths, cutoff, ranks)
        for some in spans(len(queries), most_queries(queries.device))
    ]
    histograms = [_joined(of_length, 0).cpu() for of_length in zip(*(part[0] for part in parts))]
    precision, retrieved, hits, recall, *gains = zip(*(part[1:] for part in parts))
    by_rank = (functools.reduce(torch.Tensor.add_, of_parts) for of_parts in (hits, recall))
    precision, retrieved, *gains = (_joined(of_parts, 1) for of_parts in (precision, retrieved, *gains))
    return histograms, RankSums(*(s.cpu() for s in (precision, retrieved, *by_rank, *gains)))


def _joined(parts, dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def most_queries(device: torch.device) -> int:
    """Queries at a time: CUDA's sums over them are of integers, which hold fewer than 2^17."""
    return 1 << 16 if device.type == "cuda" else sys.maxsize
