"""Rows of main memory on a device, block by block: the next block is under way while one is searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch


class Block(NamedTuple):
    """What is copied at a time: packed rows (n, bytes) in main memory, and whatever the caller knows them by."""

    rows: torch.Tensor
    key: object


class Lane:
    """A device that shares the host's memory: nothing is pinned, a copy is done when it returns.

    The calls are those of `CudaLane`, whose words say what they do.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def staging(self, size: int) -> torch.Tensor:
        """(size,) bytes in main memory that the device reads on its own."""
        return torch.empty(size, dtype=torch.uint8)

    def buffer(self, size: int) -> torch.Tensor:
        """(size,) bytes on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, out: torch.Tensor, rows: torch.Tensor, after) -> object:
        """Copy staged rows beside what else runs, after the mark `after`; returns a mark of the copy's end."""
        out.copy_(rows)
        return None

    def mark(self) -> object:
        """What the current stream has been given so far, as a mark."""
        return None

    def wait(self, mark) -> None:
        """What is given to the current stream from here on comes after the mark."""

    def wait_here(self, mark) -> None:
        """The host waits for the mark."""

    def end(self) -> None:
        """What is given to the current stream from here on comes after all copies."""


class CudaLane(Lane):
    """A CUDA device: pinned memory, copies on a stream of their own."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._current = torch.cuda.current_stream(device)
        self._copies = torch.cuda.Stream(device)
        # The allocator may give buffers that earlier work of the current stream still reads.
        self._opened = False

    def staging(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, out: torch.Tensor, rows: torch.Tensor, after) -> torch.cuda.Event:
        if not self._opened:
            self._copies.wait_stream(self._current)
            self._opened = True
        if after is not None:
            self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            out.copy_(rows, non_blocking=True)
        return self._copies.record_event()

    def mark(self) -> torch.cuda.Event:
        return self._current.record_event()

    def wait(self, mark) -> None:
        self._current.wait_event(mark)

    def wait_here(self, mark) -> None:
        mark.synchronize()

    def end(self) -> None:
        self._current.wait_stream(self._copies)


def lane_of(device: torch.device) -> Lane:
    """The lane to a device."""
    return (CudaLane if device.type == "cuda" else Lane)(device)


def stream(blocks: Iterable[Block], size: int, lane: Lane) -> Iterator[tuple[Block, torch.Tensor]]:
    """(block, its rows on the lane's device) for each; the rows hold until the next one is asked for.

    Takes two buffers there and two in main memory, pinned.

    Args:
        size: the most bytes of a block.
    """
    staging, buffers = ([make(size) for _ in range(2)] for make in (lane.staging, lane.buffer))
    copied, used = [None, None], [None, None]
    try:
        for i, block in enumerate(blocks):
            slot, taken = i % 2, block.rows.numel()
            if copied[slot] is not None:
                lane.wait_here(copied[slot])  # else the copy would read what is written now
            staged, rows = (buffer[slot][:taken].view(block.rows.shape) for buffer in (staging, buffers))
            staged.copy_(block.rows)
            copied[slot] = lane.copy(rows, staged, used[slot])
            if copied[slot] is not None:
                lane.wait(copied[slot])
            yield block, rows
            used[slot] = lane.mark()
    finally:
        lane.end()  # the buffers go back to the current stream
