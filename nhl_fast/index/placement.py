"""Where an index's rows are searched: on which devices, how much of them stays there, and what is streamed.

Main memory holds everything; a device holds copies of what fits. A segment's rows never change, so that what was
placed once serves until its segment goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core import check
from .segments import Chosen, Segment
from .state import State

# A block that is streamed: a few milliseconds of a bus, a hundred times a launch.
_BLOCK_BYTES = 64 * 2**20
# Of the memory that is free when an index is placed, searches keep the rest.
_FREE_PART = 0.8
# Segments of fewer rows a device are not divided: launches would cost more than they save.
_LEAST_ROWS = 4096


def check_devices(value) -> tuple[torch.device, ...]:
    """One device, or a list of them, that are here.

    Raises:
        TypeError, ValueError: no device, one that is neither the CPU nor CUDA's, a mixture, or a card named twice.
        RuntimeError: PyTorch sees no CUDA device.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError("device: expected at least one device, got none")
    devices = [check.device(one) for one in values]
    for device, name in zip(devices, values):
        if device is None:
            raise TypeError(f"device: expected a device such as 'cpu' or 'cuda', got {check.describe(name)}")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: expected the CPU or a CUDA device, got {str(device)!r}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"device: {str(device)!r} was asked for, but PyTorch sees no CUDA device")
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"device: expected devices of one type, got {', '.join(map(str, devices))}")
    if devices[0].type == "cpu":
        return tuple(torch.device("cpu") for _ in devices)
    numbers = [torch.cuda.current_device() if device.index is None else device.index for device in devices]
    if max(numbers) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of {torch.cuda.device_count()} CUDA devices, got 'cuda:{max(numbers)}'"
        )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"device: expected each CUDA device once, got {', '.join(map(str, devices))}")
    return tuple(torch.device("cuda", number) for number in numbers)


@dataclass(frozen=True, eq=False)
class Site:
    """A device, and the bytes of it that an index may take."""

    device: torch.device
    limit: int


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows start to stop of a segment: on a device (with their ids, unless these are a run), or streamed to it.

    rows: (stop - start, bytes) uint8 on the device, or None. ids: int64 there, or None.
    """

    segment: Segment
    start: int
    stop: int
    site: Site
    rows: torch.Tensor | None = None
    ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def row_cost(self) -> int:
        """Bytes of a row on a device: codes, ids where they are no run, and one of a mask of removed items."""
        return self.segment.codes.shape[1] + (0 if self.segment.ids is None else 8) + 1

    @property
    def cost(self) -> int:
        """Bytes on the device."""
        return 0 if self.rows is None else len(self) * self.row_cost

    def host_rows(self) -> torch.Tensor:
        return self.segment.codes[self.start : self.stop]

    def resident(self) -> Piece:
        """The same with its rows on the device; the host waits for the copy, so that any stream may read it."""
        ids, device = self.segment.ids, self.site.device
        if ids is not None:
            ids = torch.from_numpy(np.array(ids[self.start : self.stop], np.int64)).to(device)
        return replace(self, rows=self.host_rows().to(device), ids=ids)


@dataclass(slots=True, eq=False)
class Part:
    """The rows of a piece that a search may return: all of them, or those where `mask` is set.

    mask: (rows,) bool; on the device where the rows are, else in main memory. count: how many may be returned.
    """

    piece: Piece
    mask: torch.Tensor | None
    count: int

    def tensors(self) -> Iterator[torch.Tensor]:
        """What of it is on the device."""
        if self.piece.rows is not None:
            yield from (t for t in (self.piece.rows, self.piece.ids, self.mask) if t is not None)


class Placed:
    """A state's rows as they lie on the devices: a value, as the state is.

    pieces: of each segment, in the order of their rows. parts: of each segment what a search without a filter reads.
    """

    def __init__(self, placement: Placement, state: State, pieces: Sequence[tuple[Piece, ...]], before: dict):
        """`before`: {segment: (its pieces, their parts)} of what lay there, to take over."""
        self.placement, self.state, self.pieces = placement, state, tuple(pieces)
        self.parts = tuple(
            before[segment][1] if before.get(segment, (None,))[0] == own else self._parts(segment.chosen(), own)
            for segment, own in zip(state.segments, self.pieces)
        )

    def used(self, site: Site) -> int:
        """Bytes of a device."""
        return sum(piece.cost for piece in itertools.chain(*self.pieces) if piece.site is site)

    @property
    def nbytes(self) -> int:
        """Bytes of all devices."""
        return sum(map(self.used, self.placement.sites))

    @property
    def streamed(self) -> int:
        """How many rows are streamed."""
        return sum(len(piece) for piece in itertools.chain(*self.pieces) if piece.rows is None)

    def choose(self, chosen: Sequence[Chosen]) -> tuple[tuple[Part, ...], ...]:
        """The parts for what was chosen of each segment."""
        return tuple(map(self._parts, chosen, self.pieces))

    def _parts(self, chosen: Chosen, pieces: tuple[Piece, ...]) -> tuple[Part, ...]:
        if not chosen.count:
            return ()
        if chosen.positions is not None:
            return (self._gathered(chosen, pieces[0].site),)
        return tuple(part for part in (_part(piece, chosen.mask) for piece in pieces) if part.count)

    def _gathered(self, chosen: Chosen, site: Site) -> Part:
        """Copies of a few rows of a segment; on the device where they take no more than a block."""
        ids = chosen.segment.ids_at(chosen.positions)
        piece = Piece(Segment(chosen.rows, int(ids[0]), ids), 0, len(ids), site)
        fits = len(piece) * piece.row_cost <= self.placement.block_bytes
        return Part(piece.resident() if fits else piece, None, chosen.count)


def _part(piece: Piece, mask: torch.Tensor | None) -> Part:
    if mask is None:
        return Part(piece, None, len(piece))
    mask = mask[piece.start : piece.stop]
    count = int(mask.count_nonzero())
    if count == len(piece):
        return Part(piece, None, count)
    return Part(piece, mask if piece.rows is None else mask.to(piece.site.device), count)


@dataclass(frozen=True, eq=False)
class Placement:
    """Devices, and how many bytes are streamed at a time."""

    sites: tuple[Site, ...]
    block_bytes: int

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return tuple(site.device for site in self.sites)

    @classmethod
    def of(cls, devices: tuple[torch.device, ...], device_bytes: int | None, row_bytes: int) -> Placement:
        """`device_bytes` None: as much of each device as is free, less a part for searches.

        Raises:
            TypeError, ValueError: device_bytes is no integer, or below four rows.
        """
        least = 4 * row_bytes
        if device_bytes is not None:
            device_bytes = check.positive_int(device_bytes, "device_bytes", minimum=least)
        sites = tuple(Site(d, max(least, _free(d)) if device_bytes is None else device_bytes) for d in devices)
        return cls(sites, max(row_bytes, min(_BLOCK_BYTES, min(site.limit for site in sites) // 4)))

    def place(self, state: State, before: Placed | None = None) -> Placed:
        """`state` on the devices. `before` lies there already, and takes its memory until it is dropped."""
        room = {site: site.limit - 2 * self.block_bytes - (before.used(site) if before else 0) for site in self.sites}
        old = list(zip(before.state.segments, before.pieces, before.parts)) if before else []
        lying = {id(segment.codes): pieces for segment, pieces, _ in old}  # removed items leave the codes as they are
        placed = []
        for segment in state.segments:
            pieces = lying.get(id(segment.codes)) or self._shares(segment, room)
            pieces = (fitted for piece in pieces for fitted in self._fitted(piece, room))
            placed.append(tuple(p if p.segment is segment else replace(p, segment=segment) for p in pieces))
        return Placed(self, state, placed, {segment: (pieces, parts) for segment, pieces, parts in old})

    def _shares(self, segment: Segment, room: dict[Site, int]) -> list[Piece]:
        """A segment divided among the devices; a small one goes to the one with the most room."""
        count = len(self.sites)
        if len(segment) < count * _LEAST_ROWS:
            return [Piece(segment, 0, len(segment), max(self.sites, key=room.get))]
        bounds = [len(segment) * i // count for i in range(count + 1)]
        return [Piece(segment, *ends, site) for *ends, site in zip(bounds, bounds[1:], self.sites)]

    def _fitted(self, piece: Piece, room: dict[Site, int]) -> list[Piece]:
        """A piece with as many of its rows on its device as there is room for, if that is worth it."""
        if piece.rows is not None:
            return [piece]
        fits = min(len(piece), max(0, room[piece.site]) // piece.row_cost)
        if fits < len(piece) and fits * piece.row_cost < self.block_bytes:
            return [piece]
        room[piece.site] -= fits * piece.row_cost
        middle = piece.start + fits
        first = [replace(piece, stop=middle).resident()]
        return first if fits == len(piece) else [*first, replace(piece, start=middle)]


def _free(device: torch.device) -> int:
    """Bytes for an index on a device: a part of what is free; main memory has no bound."""
    if device.type == "cpu":
        return 2**62
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_FREE_PART * (free + cached))
