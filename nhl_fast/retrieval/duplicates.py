"""All pairs of codes within a radius of one another: by a join where that is cheaper, else by a scan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_output, check_output
from ..core.backend import check_backend
from . import codes, join
from .convert import to_rows
from .hamming import DEFAULT_CHUNK_BYTES, within

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Bytes of a pair that is found: distance and id, in the engine and as a result, and what the checks of it take.
_PAIR_BYTES = 64
# Rows that tell how many pairs are near.
_SAMPLE = 2**12
# A scan of at most so many seconds is not worth a plan.
_SHORT = 0.15
# Pairs found that are looked at together.
_BATCH = 2**16


@check.memory
@torch.no_grad()
def near_duplicates(
    codes,
    radius: int,
    length: int | None = None,
    *,
    output: str = "tensor",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> Pairs:
    """All pairs of rows that differ in at most `radius` bits: exact, and far faster than comparing all where it can.

    Rows that share some bits exactly, or nearly, are the only ones that can be near (see `nhl_fast.retrieval.join`);
    where that leaves most pairs, as for a large radius, all are compared. The way is chosen by an estimate of the
    cost from a sample; both give the same pairs.

    Args:
        codes: (n, bytes) packed uint8 rows, or hashes of any form that `as_codes` takes.
        radius: largest distance that counts, 0 or more.
        length: code length in bits (a prefix of the rows); None for all bits.
        output: "tensor", or "numpy" for arrays.
        chunk_bytes: bound on the memory taken beyond a small multiple of the result, two copies of the codes and 10
            bytes a row.
        backend: "auto", "reference", "cpp" or "cuda".

    Returns:
        (i, j, distance): int64, int64 and int32, a pair an entry, i < j, by ascending i, then j.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    check_output(output)
    blocks = near_duplicate_blocks(codes, radius, length, chunk_bytes=chunk_bytes, backend=backend)
    found = list(blocks)
    if not found:
        empty = torch.empty(0, dtype=torch.int64)
        return as_output((empty, empty.clone(), empty.to(torch.int32)), output)
    i, j, distances = (torch.cat(parts) for parts in zip(*found))
    del found
    order = j.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]
    return as_output((i[order], j[order], distances[order]), output)


@check.memory
def near_duplicate_blocks(
    codes,
    radius: int,
    length: int | None = None,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> Iterator[Pairs]:
    """`near_duplicates` a block of pairs at a time, in no order, for more pairs than memory holds.

    Arguments are checked at the call, before the first block is asked for.
    """
    return _blocks(*_check(codes, radius, length, chunk_bytes, backend))


def _check(rows, radius, length, chunk_bytes, backend):
    rows = to_rows(rows, "codes")
    length = 8 * rows.shape[1] if length is None else codes.check_length(length, rows.shape[1])
    radius = min(check.positive_int(radius, "radius", minimum=0), length)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    check_backend(backend)
    return codes.mask_tail(rows, length).contiguous(), radius, length, chunk_bytes, backend


def _blocks(rows: torch.Tensor, radius: int, length: int, chunk_bytes: int, backend: str) -> Iterator[Pairs]:
    if len(rows) < 2:
        return
    cells = max(1, chunk_bytes // _PAIR_BYTES)
    blocks: tuple[join.Block, ...] = ()
    threads = torch.get_num_threads()
    scanning = join.scan_seconds(len(rows), length, threads, cells)
    if rows.is_cpu and scanning > _SHORT:  # a card compares all before a join is set up
        near = _share_near(rows, radius, length, backend) * len(rows) ** 2 / 2
        seconds, planned = join.plan(rows.numpy(), length, radius, threads, near)
        blocks = planned if seconds < join.scan_seconds(len(rows), length, threads, cells, near) else ()
    if not blocks:
        yield from scan(rows, radius, length, cells, backend)
    else:
        yield from joined(rows, radius, length, blocks, cells, backend)


def _share_near(rows, radius, length, backend) -> float:
    """Which part of all pairs is near, by some of the rows."""
    some = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), _SAMPLE), replace=False))
    some = rows[torch.from_numpy(some)]
    found = len(_near(some, some, radius, length, backend)[0]) - len(some)  # each has found itself
    return found / max(1, len(some) * (len(some) - 1))


def scan(rows: torch.Tensor, radius: int, length: int, cells: int, backend: str) -> Iterator[Pairs]:
    """Every row against those after it, at most `cells` pairs a call."""
    n = len(rows)
    for start, stop, first, last in tiles(n, n, cells):
        i, j, distances = _near(rows[start:stop], rows[first:last], radius, length, backend)
        later = j + first > i + start
        if bool(later.any()):
            yield i[later] + start, j[later] + first, distances[later]


def tiles(queries: int, items: int, cells: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, first, last): rows start to stop of the queries against items first to last.

    The queries are the first of the items; together the tiles have every pair of a query and a later item.
    """
    width = max(1, min(items, join.SCANNED, cells))
    step = max(1, cells // width)
    for start in range(0, queries, step):
        for first in range(start, items, width):
            yield start, min(start + step, queries), first, min(first + width, items)


def _near(queries, items, radius, length, backend) -> Pairs:
    """(query, item, distance) of all pairs within the radius."""
    # The engine's own bounds hold for the pairs of a tile.
    offsets, distances, found = within(queries, items, radius, length, None, DEFAULT_CHUNK_BYTES, backend)
    return torch.repeat_interleave(offsets.diff()), found, distances


def joined(rows: torch.Tensor, radius: int, length: int, blocks, cells: int, backend: str) -> Iterator[Pairs]:
    """The pairs of rows that some block lets meet, each once."""
    packed = rows.numpy()
    words = join.words_of(packed)
    for number, block in enumerate(blocks):
        keys = block.keys(packed)
        order = keys.argsort(kind="stable")
        starts = np.concatenate([[0], np.bincount(keys, minlength=1 << block.key_bits)]).cumsum()
        del keys
        batch, size = [], 0
        for pairs in _meetings(rows[torch.from_numpy(order)], starts, block.ball(), radius, length, cells, backend):
            batch.append(pairs)
            size += len(pairs[0])
            if size >= _BATCH:
                yield from _first_met(batch, order, words, blocks, number)
                batch, size = [], 0
        yield from _first_met(batch, order, words, blocks, number)


def _meetings(rows, starts: np.ndarray, ball: np.ndarray, radius, length, cells, backend) -> Iterator[tuple]:
    """(i, j, distance), arrays, of rows by ascending key within the radius, each pair once: positions of rows."""
    for key in np.flatnonzero(starts[1:] > starts[:-1]).tolist():
        start, stop = int(starts[key]), int(starts[key + 1])
        others = list(join.parts(starts, key, ball))
        if not others and stop - start == 1:
            continue
        spans = [(start, stop), *others]
        items = rows[start:stop] if not others else torch.cat([rows[a:b] for a, b in spans])
        for begin, end, first, last in tiles(stop - start, len(items), cells):
            i, j, distances = _near(items[begin:end], items[first:last], radius, length, backend)
            if len(i) == end - begin and first == begin:
                continue  # each row has found itself
            i, j = i.numpy() + begin, j.numpy() + first
            later = j > i
            if later.any():
                yield i[later] + start, _positions(j[later], spans), distances.numpy()[later]


def _positions(found: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Where in all rows the items of these spans lie, one after another."""
    first, last = np.array(spans).T
    ends = (last - first).cumsum()
    which = np.searchsorted(ends, found, side="right")
    return found + (last - ends)[which]


def _first_met(batch, order: np.ndarray, words: np.ndarray, blocks, number: int) -> Iterator[Pairs]:
    if not batch:
        return
    i, j, distances = (np.concatenate(arrays) for arrays in zip(*batch))
    i, j = order[i], order[j]
    kept = join.first_met(words[i] ^ words[j], blocks, number)
    if len(kept):
        i, j, distances = i[kept], j[kept], distances[kept]
        yield tuple(map(torch.from_numpy, (np.minimum(i, j), np.maximum(i, j), distances)))
