"""Vectors row by row, in memory or mapped from a file, and their exact nearest neighbours.

Rows are read in tiles and turned to float32 (float64 where they are) there, so that an array larger than memory
is read once, in order, and the extra memory stays within `chunk_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..core import check
from ..core.arrays import as_tensor
from .hamming import DEFAULT_CHUNK_BYTES, spans

METRICS = ("cosine", "product")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SomeRows:
    """Rows of vectors (n, d) by their ids, read when they are asked for: in place of a copy of what is large."""

    def __init__(self, vectors: torch.Tensor, ids: torch.Tensor):
        self.vectors, self.ids = vectors, ids
        self.shape, self.dtype, self.device = (len(ids), vectors.shape[1]), vectors.dtype, vectors.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows) -> torch.Tensor:
        return self.vectors[self.ids[rows]]


def check_vectors(value, name: str, width: int | None = None, integers: bool = True) -> torch.Tensor:
    """`value` as a tensor (n, d) that shares its memory: floating point or, with `integers`, int8."""
    if isinstance(value, SomeRows):
        return value
    value = check.present(check.tensor(as_tensor(value, name), name), name)
    if value.dtype not in _FLOATS and not (integers and value.dtype == torch.int8):
        allowed = "float16, bfloat16, float32, float64" + (" or int8" if integers else "")
        raise TypeError(f"{name}: expected vectors of {allowed}, got {check.describe(value)}")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name}: expected vectors of shape (n, d), not empty, got {check.describe(value)}")
    if width is not None and value.shape[1] != width:
        raise ValueError(f"{name}: expected {width} numbers a row, got {check.describe(value)}")
    return value


def working_dtype(*vectors: torch.Tensor) -> torch.dtype:
    """What scores are computed in: float64 where any of the vectors are, else float32."""
    return torch.float64 if any(v.dtype == torch.float64 for v in vectors) else torch.float32


def as_numbers(rows: torch.Tensor, name: str, dtype: torch.dtype, device=None, unit: bool = False) -> torch.Tensor:
    """A tile of rows in `dtype`, finite; of length 1 (a zero row stays zero) if `unit`."""
    rows = check.finite(rows.to(device=device, dtype=dtype), name)
    return torch.nn.functional.normalize(rows, eps=torch.finfo(dtype).tiny) if unit else rows


def tile_rows(row_bytes: int, chunk_bytes: int) -> int:
    """Rows of a tile that takes half of `chunk_bytes`, at least one."""
    return max(1, chunk_bytes // 2 // max(1, row_bytes))


def tiles(
    vectors: torch.Tensor, name: str, dtype, device, unit: bool, rows: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(slice, rows of it in `dtype`) over all vectors, in order."""
    for span in spans(len(vectors), rows):
        yield span, as_numbers(vectors[span], name, dtype, device, unit)


def largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of every row, (values, columns), by descending value, then ascending column: no tie is open."""
    k = min(k, scores.shape[1])
    values, columns = scores.topk(k, dim=1)
    # Which of several equal values at the last place topk takes is its own affair.
    open_rows = ((scores >= values[:, -1:]).sum(1) > k).nonzero().flatten()
    if len(open_rows):
        values[open_rows], columns[open_rows] = (
            part[:, :k] for part in scores[open_rows].sort(dim=1, descending=True, stable=True)
        )
    columns, order = columns.sort(dim=1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, again)


class Best:
    """The k best (score, id) of every query while items come by, in ascending order of their ids."""

    def __init__(self, num_queries: int, k: int, like: torch.Tensor):
        self.k = k
        self.scores = like.new_empty(num_queries, 0)
        self.ids = torch.empty(num_queries, 0, dtype=torch.int64, device=like.device)
        self._added: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, span: slice, scores: torch.Tensor, first: int) -> None:
        """Scores (rows of `span`, items) of the items from id `first` on; the spans of one tile cover all queries."""
        values, ids = largest(scores, self.k)
        ids += first
        if self.ids.shape[1]:
            values, places = largest(torch.cat([self.scores[span], values], dim=1), self.k)
            ids = torch.cat([self.ids[span], ids], dim=1).gather(1, places)
        self._added.append((values, ids))

    def end_tile(self) -> None:
        """All queries have seen the tile's items."""
        self.scores, self.ids = (torch.cat(parts) for parts in zip(*self._added))
        self._added = []


@check.memory
@torch.no_grad()
def nearest_vectors(
    queries,
    database,
    k: int,
    *,
    metric: str = "cosine",
    own: torch.Tensor | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    names: tuple[str, str] = ("queries", "database"),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest vectors of every query, exactly.

    Args:
        queries, database: (Q, d) and (n, d) vectors, floating point or int8, tensors or NumPy arrays (memory maps are
            read tile by tile, once). Work is done on the device of `queries`.
        k: neighbours a query, 1 to n (n - 1 with `own`).
        metric: "cosine", or "product" for inner products.
        own: (Q,) the queries' own rows in the database, which are left out.
        chunk_bytes: bound on the memory taken beyond the result.
        names: of the first two arguments, for errors.

    Returns:
        (scores, ids): float (Q, k) and int64 (Q, k), by descending score, then ascending id.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    queries = check_vectors(queries, names[0])
    database = check_vectors(database, names[1], queries.shape[1])
    check.one_of(metric, "metric", METRICS)
    k = check.positive_int(k, "k")
    if k > len(database) - (own is not None):
        raise ValueError(f"k: expected at most {len(database) - (own is not None)}, the database's rows, got {k}")
    dtype, device, unit = working_dtype(queries, database), queries.device, metric == "cosine"
    size = dtype.itemsize
    items = min(len(database), max(k, tile_rows(4 * queries.shape[1] * size, chunk_bytes), 1024))
    step = max(1, chunk_bytes // 2 // (items * (2 * size + 1)))
    best = Best(len(queries), k, torch.empty(0, dtype=dtype, device=device))
    rows = [(span, as_numbers(queries[span], names[0], dtype, device, unit)) for span in spans(len(queries), step)]
    for tile, columns in tiles(database, names[1], dtype, device, unit, items):
        for span, part in rows:
            scores = part @ columns.T
            if own is not None:
                places = own[span] - tile.start
                inside = ((places >= 0) & (places < scores.shape[1])).nonzero().flatten()
                scores[inside, places[inside]] = -torch.inf
            best.add(span, scores, tile.start)
        best.end_tile()
    return best.scores, best.ids
