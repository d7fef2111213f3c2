"""Searches of rows that lie on devices, or are streamed to them: results equal those of main memory, to the last id.

Every device finds its own best, and the first merges them. Nothing waits for a device where the rows are resident
(a radius search does: the size of its result is not known before).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from ..retrieval import hamming
from .placement import Part, Piece, Placed, Site
from .stream import Block, lane_of, stream

_CHUNK_BYTES = hamming.DEFAULT_CHUNK_BYTES
# So many blocks' results are merged at once.
_JOINED = 16


def nearest(placed: Placed, parts: Sequence[Sequence[Part]], queries, k: int, length: int, backend: str):
    """The k nearest of what `parts` (of each segment) allow: int32 and int64 tensors (Q, c) on the first device.

    c = k, or as many as there are.
    """

    def search(queries, rows, mask, count):
        return hamming.nearest(queries, rows, min(k, count), length, mask, _CHUNK_BYTES, backend)

    def joined(found, ascending=False):
        return found[0] if len(found) == 1 else hamming.merge_nearest(found, k, ascending)

    distances, ids = _everywhere(placed, parts, queries, search, joined) or (
        torch.empty(len(queries), 0, dtype=dtype, device=placed.placement.sites[0].device)
        for dtype in (torch.int32, torch.int64)
    )
    return distances, ids


def within(placed: Placed, parts: Sequence[Sequence[Part]], queries, radius: int, length: int, backend: str):
    """All that `parts` allow within `radius`: (offsets (Q + 1,), distances, ids) on the first device."""

    def search(queries, rows, mask, count):
        return hamming.within(queries, rows, radius, length, mask, _CHUNK_BYTES, backend)

    def joined(found, ascending=False):
        return found[0] if len(found) == 1 else hamming.merge_within(found, length)

    found = _everywhere(placed, parts, queries, search, joined)
    if found is not None:
        return found
    device = placed.placement.sites[0].device
    sizes = ((len(queries) + 1, torch.int64), (0, torch.int32), (0, torch.int64))
    return tuple(torch.zeros(size, dtype=dtype, device=device) for size, dtype in sizes)


def _everywhere(placed: Placed, parts, queries, search, joined):
    """What `search` finds on all devices, joined on the first; None where there is nothing to search.

    Args:
        search: search(queries, rows, mask, count) gives a tuple, whose last is places of rows.
        joined: joined(list of such tuples, ascending) makes one of them, by distance, then by the last.
    """
    sites, parts = placed.placement.sites, list(itertools.chain(*parts))
    turns = []
    for site in sites:
        own = [part for part in parts if part.piece.site is site]
        local = queries.to(site.device, non_blocking=True)
        turns.append(_on(site, own, local, search, joined, placed.placement.block_bytes) if own else iter(()))
    best = [None] * len(sites)
    for step in itertools.zip_longest(*turns):  # devices take turns, so that they stream side by side
        best = [new or old for new, old in zip(step, best)]
    home = sites[0].device
    best = [tuple(part.to(home, non_blocking=True) for part in one) for one in best if one is not None]
    return joined(best) if best else None


def _on(site: Site, parts: Sequence[Part], queries, search, joined, block_bytes: int) -> Iterator[tuple | None]:
    """None after all that is resident and after every block that is streamed; in the end, the best of one device."""
    best = []
    for part in (part for part in parts if part.piece.rows is not None):
        if site.device.type == "cuda":
            for tensor in part.tensors():  # another thread may drop the last reference while the device still reads
                tensor.record_stream(torch.cuda.current_stream(site.device))
        *found, places = search(queries, part.piece.rows, part.mask, part.count)
        best.append((*found, _resident_ids(part.piece, places)))
    yield None
    blocks = [block for part in parts if part.piece.rows is None for block in _blocks(part, block_bytes)]
    size = max((block.rows.numel() for block in blocks), default=0)
    for part, own in itertools.groupby(stream(blocks, size, lane_of(site.device)) if blocks else (), key=_part_of):
        of_part = []
        for block, rows in own:
            _, start, mask, count = block.key
            mask = mask if mask is None else mask.to(site.device, non_blocking=True)
            *found, places = search(queries, rows, mask, count)
            of_part.append((*found, places + start))
            if len(of_part) == _JOINED:
                of_part = [joined(of_part, ascending=True)]
            yield None
        *found, places = joined(of_part, ascending=True)
        best.append((*found, _streamed_ids(part.piece, places)))
    yield joined(best)


def _blocks(part: Part, block_bytes: int) -> Iterator[Block]:
    """What is streamed of a part, where anything may be returned; the key is (part, first row, mask, count)."""
    rows = part.piece.host_rows()
    for span in hamming.spans(len(rows), max(1, block_bytes // rows.shape[1])):
        mask = None if part.mask is None else part.mask[span]
        count = span.stop - span.start if mask is None else int(mask.count_nonzero())
        if count:
            yield Block(rows[span], (part, part.piece.start + span.start, mask, count))


def _part_of(streamed: tuple[Block, torch.Tensor]) -> Part:
    return streamed[0].key[0]


def _resident_ids(piece: Piece, places: torch.Tensor) -> torch.Tensor:
    """Ids of places in a piece, without a wait."""
    return places + (piece.segment.first + piece.start) if piece.ids is None else piece.ids[places]


def _streamed_ids(piece: Piece, places: torch.Tensor) -> torch.Tensor:
    """Ids of places in a piece's segment; ids that are no run are in main memory, and the host waits."""
    if piece.segment.ids is None:
        return places + piece.segment.first
    return torch.from_numpy(piece.segment.ids_at(places.cpu().numpy())).to(places.device)
