"""The parts an index is made of: packed rows by ascending id, never changed once made.

Adding makes a new segment, removing makes a copy of a segment's mask; neighbours of similar size are merged, so
that there are few. Within a segment position order is id order, so a search needs no ids but to name its
results; results of several segments are merged by (distance, id).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..core.arrays import as_tensor
from ..retrieval import codes, hamming
from .pages import empty
from .prefixes import Prefixes

# Segments are merged while the older is at most this many times the newer ...
_RATIO = 8
# ... or both together hold so few rows that copying them costs nothing to speak of ...
_SMALL_ROWS = 4096
# ... but never beyond the larger of this many bytes and this part of the index: that bounds the extra memory.
_MERGE_BYTES = 64 * 2**20
_MERGE_PART = 16

_CHUNK_BYTES = hamming.DEFAULT_CHUNK_BYTES

# Bytes of codes a segment contributes to a block of `ordered_blocks`.
_BLOCK_BYTES = 2**20

_NOT_ASCENDING = "the ids are not ascending: the file of this index, loaded with verify=False, is damaged"

# Rows that a filter leaves are gathered where they are at most one in so many; else a mask is cheaper.
_GATHER_PART = 16


def without_repeats(values: np.ndarray) -> np.ndarray:
    """The distinct values in ascending order (`numpy.unique` hashes them, fifty times as slow)."""
    if (values[1:] > values[:-1]).all():
        return values
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])]


def copied(rows: torch.Tensor, order: np.ndarray | None = None) -> torch.Tensor:
    """A copy of rows in C order, sorted by `order`."""
    out = empty_like(rows, len(rows))
    if order is None:
        out.copy_(rows)
    else:
        torch.index_select(rows, 0, torch.from_numpy(order), out=out)
    return out


def empty_like(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Memory for `count` rows of the kind of `rows`."""
    return torch.from_numpy(empty((count, rows.shape[1]), np.dtype(str(rows.dtype).removeprefix("torch."))))


def copy_rows(rows: torch.Tensor, length: int, order: np.ndarray | None = None) -> torch.Tensor:
    """A copy of packed rows in C order, sorted by `order`, with zeros beyond the length."""
    out = copied(rows, order)
    last = codes.num_bytes(length) - 1
    if length % 8:
        out[:, last:] = codes.mask_tail(out[:, last:], length - 8 * last)
    return out


@dataclass(frozen=True, eq=False)
class Segment:
    """Packed rows with strictly ascending ids.

    codes: (rows, bytes) uint8. ids: (rows,) int64, or None where they are the run first, first + 1, ....
    alive: (rows,) bool, False where the row was removed, or None. count: rows that are alive.
    prefixes: those of the codes; segments that differ in `alive` alone share them.
    vectors: (rows, d), what the index keeps beside the codes, or None.
    """

    codes: torch.Tensor
    first: int
    ids: np.ndarray | None = None
    alive: np.ndarray | None = None
    prefixes: Prefixes | None = None
    vectors: torch.Tensor | None = None
    count: int = field(init=False)

    def __post_init__(self):
        if self.prefixes is None:
            object.__setattr__(self, "prefixes", Prefixes(self.codes))
        count = len(self.codes) if self.alive is None else int(np.count_nonzero(self.alive))
        object.__setattr__(self, "count", count)

    @classmethod
    def of(cls, rows, ids: np.ndarray, vectors: torch.Tensor | None = None) -> Segment:
        """A segment of at least one row; ascending ids without a gap are not stored."""
        first = int(ids[0])
        run = int(ids[-1]) - first + 1 == len(ids)
        return cls(as_tensor(rows), first, None if run else ids, vectors=vectors)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        held = (self.codes, self.prefixes, self.ids, self.alive, self.vectors)
        return sum(array.nbytes for array in held if array is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of an item's code and vector."""
        return self.codes.shape[1] + (0 if self.vectors is None else self.vectors[:1].nbytes)

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        return positions + self.first if self.ids is None else self.ids[positions]

    def alive_ids(self) -> np.ndarray:
        if self.ids is None:
            positions = np.arange(len(self)) if self.alive is None else np.flatnonzero(self.alive)
            return positions + self.first
        return self.ids if self.alive is None else self.ids[self.alive]

    def ends(self) -> tuple[int, int]:
        """The lowest and the highest id that is alive."""
        first, last = 0, len(self) - 1
        if self.alive is not None:
            first, last = int(self.alive.argmax()), last - int(self.alive[::-1].argmax())
        return int(self.ids_at(np.int64(first))), int(self.ids_at(np.int64(last)))

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `ids` are alive here, their positions): two int64 arrays of one length."""
        if self.ids is None:
            which = np.flatnonzero((ids >= self.first) & (ids - self.first < len(self)))
            positions = ids[which] - self.first
        else:
            positions = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
            which = np.flatnonzero(self.ids[positions] == ids)
            positions = positions[which]
        if self.alive is not None:
            kept = self.alive[positions]
            which, positions = which[kept], positions[kept]
        return which, positions

    def without(self, positions: np.ndarray) -> Segment:
        alive = np.ones(len(self), dtype=bool) if self.alive is None else self.alive.copy()
        alive[positions] = False
        return Segment(self.codes, self.first, self.ids, alive, self.prefixes, self.vectors)

    def rank(self, bound: int) -> int:
        """How many rows, removed ones too, have an id of at most `bound`."""
        if self.ids is None:
            return min(max(bound - self.first + 1, 0), len(self))
        return int(np.searchsorted(self.ids, bound, side="right"))

    def stored(self, vectors: bool) -> torch.Tensor:
        """The vectors, or the codes."""
        return self.vectors if vectors else self.codes

    def take(self, start: int, stop: int, vectors: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(ids, rows, or vectors) that are alive among positions start to stop; views where that needs no copy."""
        rows = self.stored(vectors)[start:stop].numpy()
        if self.alive is None:
            return (np.arange(start, stop) + self.first if self.ids is None else self.ids[start:stop]), rows
        kept = np.flatnonzero(self.alive[start:stop])
        return self.ids_at(kept + start), rows[kept]

    def chosen(self) -> Chosen:
        """All that is alive."""
        mask = None if self.alive is None else torch.from_numpy(self.alive)
        return Chosen(self, self.codes, mask, None, self.count)

    def masked(self, allowed: np.ndarray) -> Chosen:
        """Those of the rows that are alive where `allowed` (count,) is set."""
        if self.alive is None:
            return self._where(allowed)
        mask = np.zeros(len(self), dtype=bool)
        mask[self.alive] = allowed
        return self._where(mask)

    def holding(self, ids: np.ndarray) -> Chosen:
        """The rows of `ids`, which may repeat, in any order."""
        if self.ids is not None:
            _, positions = self.find(ids)
        else:
            positions = ids - self.first
            inside = positions.view(np.uint64) < len(self)  # what is below 0 is far above
            if not inside.all():
                positions = positions[inside]
        if _GATHER_PART * len(positions) <= len(self):
            positions = without_repeats(positions)
            return self._at(positions if self.alive is None else positions[self.alive[positions]])
        mask = np.zeros(len(self), dtype=bool)
        mask[positions] = True
        return self._where(mask if self.alive is None else mask & self.alive)

    def _where(self, mask: np.ndarray) -> Chosen:
        count = int(np.count_nonzero(mask))
        if _GATHER_PART * count <= len(self):
            return self._at(np.flatnonzero(mask))
        return Chosen(self, self.codes, torch.from_numpy(np.ascontiguousarray(mask)), None, count)

    def _at(self, positions: np.ndarray) -> Chosen:
        return Chosen(self, self.codes[torch.from_numpy(positions)], None, positions, len(positions))


@dataclass(slots=True, eq=False)  # every search makes one: frozen takes a microsecond
class Chosen:
    """The rows of a segment that a search may return: all of `rows`, or those where `mask` is set."""

    segment: Segment
    rows: torch.Tensor
    mask: torch.Tensor | None
    positions: np.ndarray | None
    count: int

    def ids_of(self, found: torch.Tensor) -> torch.Tensor:
        if self.positions is None and self.segment.ids is None:
            return found + self.segment.first if self.segment.first else found
        found = found.numpy()
        return torch.from_numpy(self.segment.ids_at(found if self.positions is None else self.positions[found]))

    def prefix(self, width: int) -> torch.Tensor:
        """The first `width` bytes of `rows`, side by side where that pays."""
        return self.segment.prefixes.of(width) if self.positions is None else self.rows[:, :width]

    def nearest(self, queries, k: int, length: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(distances, ids), both (Q, min(k, count))."""
        k = min(k, self.count)
        distances, found = hamming.nearest(queries, self.rows, k, length, self.mask, _CHUNK_BYTES, backend)
        return distances, self.ids_of(found)

    def within(self, queries, radius: int, length: int, backend: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(neighbours of each query, distances, ids)."""
        offsets, distances, found = hamming.within(
            queries, self.rows, radius, length, self.mask, _CHUNK_BYTES, backend
        )
        return offsets.diff().numpy(), distances.numpy(), self.ids_of(found).numpy()


# ---------------------------------------------------------------------------------------------- merged results


def sort_by_group_and_id(groups: np.ndarray, ids: np.ndarray, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (group, id) in ascending order along the last axis; groups lie from 0 to `highest`, ids from 0.

    One int64 key holds both; where the ids are too large for that, their ranks stand in.
    """
    table = None
    bits = int(ids.max(initial=0)).bit_length()
    if bits + highest.bit_length() > 63:
        table, ranks = np.unique(ids, return_inverse=True)
        ids, bits = ranks.reshape(ids.shape), len(table).bit_length()
    keys = np.sort(groups.astype(np.int64) << bits | ids, axis=-1)
    groups, ids = keys >> bits, keys & ((1 << bits) - 1)
    return groups, ids if table is None else table[ids]


def nearest(chosen: Sequence[Chosen], queries, k: int, length: int, backend: str):
    """The k nearest of what was chosen: int32 and int64 tensors (Q, c) with c = k, or as many as there are."""
    chosen = [part for part in chosen if part.count]
    if len(chosen) == 1:
        return chosen[0].nearest(queries, k, length, backend)
    best = np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.int64)
    for part in chosen:
        found = (array.numpy() for array in part.nearest(queries, k, length, backend))
        found = (np.concatenate(pair, axis=1) for pair in zip(best, found))
        best = tuple(array[:, :k] for array in sort_by_group_and_id(*found, length))
    distances, ids = best
    return torch.from_numpy(distances.astype(np.int32, copy=False)), torch.from_numpy(ids)


def within(chosen: Sequence[Chosen], queries, radius: int, length: int, backend: str):
    """All rows within `radius`: (neighbours of each query (Q,), distances, ids)."""
    parts = [part.within(queries, radius, length, backend) for part in chosen if part.count]
    if not parts:
        return np.zeros(len(queries), np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([np.repeat(np.arange(len(queries)), counts) for counts, _, _ in parts])
    groups = rows * (length + 1) + np.concatenate([distances for _, distances, _ in parts])
    ids = np.concatenate([ids for _, _, ids in parts])
    groups, ids = sort_by_group_and_id(groups, ids, len(queries) * (length + 1))
    return sum(counts for counts, _, _ in parts), groups % (length + 1), ids


# ------------------------------------------------------------------------------------------------ maintenance


def ordered_blocks(segments: Sequence[Segment], vectors: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, packed rows, or vectors) of all that is alive, by ascending id, in blocks of bounded size."""
    cursors, last = [0] * len(segments), -1
    step = max(1, _BLOCK_BYTES // segments[0].stored(vectors)[:1].nbytes) if segments else 0
    while any(cursor < len(segment) for cursor, segment in zip(cursors, segments)):
        # Up to the bound no segment gives more than `step` rows, and the one that sets it gives that many.
        long = [(s, c + step - 1) for s, c in zip(segments, cursors) if c + step < len(s)]
        bound = min((int(s.ids_at(np.int64(position))) for s, position in long), default=None)
        stops = [len(s) if bound is None else max(c, s.rank(bound)) for s, c in zip(segments, cursors)]
        if stops == cursors:
            raise ValueError(_NOT_ASCENDING)
        parts = [s.take(c, stop, vectors) for s, c, stop in zip(segments, cursors, stops) if c < stop]
        cursors = stops
        ids, rows = parts[0] if len(parts) == 1 else _in_order(parts)
        if not len(ids):
            continue
        if ids[0] <= last or (ids[1:] <= ids[:-1]).any():
            raise ValueError(_NOT_ASCENDING)
        last = int(ids[-1])
        yield ids, rows


def _in_order(parts) -> tuple[np.ndarray, np.ndarray]:
    ids, rows = (np.concatenate(arrays) for arrays in zip(*parts))
    order = ids.argsort()
    return ids[order], rows[order]


def merge(segments: Sequence[Segment]) -> Segment:
    """One segment with all that is alive in `segments`."""
    count, like = sum(s.count for s in segments), segments[0]
    lowest, highest = (bound(ends) for bound, ends in zip((min, max), zip(*(s.ends() for s in segments))))
    ids = None if highest - lowest + 1 == count else empty((count,), np.int64)
    rows = _gathered(segments, empty_like(like.codes, count), False, ids)
    if like.vectors is None:
        return Segment(rows, lowest, ids)
    return Segment(rows, lowest, ids, vectors=_gathered(segments, empty_like(like.vectors, count), True))


def _gathered(segments, out: torch.Tensor, vectors: bool, ids: np.ndarray | None = None) -> torch.Tensor:
    """`out`, filled with all that is alive; `ids` with its ids."""
    rows, done = out.numpy(), 0
    for block_ids, block in ordered_blocks(segments, vectors):
        rows[done : done + len(block)] = block
        if ids is not None:
            ids[done : done + len(block)] = block_ids
        done += len(block)
    return out


def _join(segments: Sequence[Segment]) -> Segment:
    """The merge of neighbours, in which ids stay a run if they are one, removed rows included."""
    holes = any(s.alive is not None for s in segments)
    run = all(b.ids is None and b.first == a.first + len(a) for a, b in itertools.pairwise(segments))
    if not (holes and run and segments[0].ids is None):
        return merge(segments)
    alive = [np.ones(len(s), dtype=bool) if s.alive is None else s.alive for s in segments]
    rows, vectors = (_end_to_end([s.stored(kind) for s in segments]) for kind in (False, True))
    return Segment(rows, segments[0].first, None, np.concatenate(alive), vectors=vectors)


def _end_to_end(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    if parts[0] is None:
        return None
    return torch.cat(parts, out=empty_like(parts[0], sum(map(len, parts))))


def tidy(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same rows in few segments: half-empty ones compacted, neighbours of similar size merged.

    One call makes at most one merge, so that the old and the new together take little memory.
    """
    out = [merge([s]) if 2 * s.count <= len(s) else s for s in segments if s.count]
    limit = max(_MERGE_BYTES, sum(len(s) * s.row_bytes for s in out) // _MERGE_PART)
    group = _to_merge(out, limit)
    if group:
        out[group] = [_join(out[group])]
    return tuple(out)


def _to_merge(segments: Sequence[Segment], limit: int) -> slice | None:
    """The newest neighbours that should be one segment, else the first two, else None."""
    start, stop = len(segments) - 1, len(segments)
    while start > 0 and _mergeable(segments[start - 1], segments[start:], limit):
        start -= 1
    if stop - start > 1:
        return slice(start, stop)
    # What smaller limits or removals have left.
    for i in range(stop - 1):
        if _mergeable(segments[i], segments[i + 1 : i + 2], limit):
            return slice(i, i + 2)
    return None


def _mergeable(older: Segment, newer: Sequence[Segment], limit: int) -> bool:
    a, b = len(older), sum(map(len, newer))
    return (a <= _RATIO * b or a + b <= _SMALL_ROWS) and (a + b) * older.row_bytes <= limit
