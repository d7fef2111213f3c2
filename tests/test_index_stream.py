"""Blocks on their way to a device, on a simulated one that runs what it is given whenever it likes."""

import contextlib
import random

import pytest
import torch

from nhl_fast.index.stream import Block, CudaLane, Lane, stream


class SimulatedLane(Lane):
    """Two streams that run at random as late as what they wait for allows; `careless` leaves a kind of wait out."""

    def __init__(self, seed: int, careless: str = ""):
        super().__init__(torch.device("cpu"))
        self.random, self.careless = random.Random(seed), careless
        self.queues, self.done = {"current": [], "copies": []}, {"current": 0, "copies": 0}

    def give(self, queue: str, work, after=None):
        """Put work at the end of a stream, to run after a mark of the other one; returns its own mark."""
        self.queues[queue].append((work, after))
        self.run_some()
        return queue, len(self.queues[queue])

    def ready(self, queue: str) -> bool:
        if self.done[queue] == len(self.queues[queue]):
            return False
        after = self.queues[queue][self.done[queue]][1]
        return after is None or self.done[after[0]] >= after[1]

    def step(self, queue: str) -> None:
        self.queues[queue][self.done[queue]][0]()
        self.done[queue] += 1

    def run_some(self) -> None:
        for _ in range(self.random.choice((0, 0, 0, 1, 4))):
            ready = [queue for queue in self.queues if self.ready(queue)]
            if ready:
                self.step(self.random.choice(ready))

    def copy(self, out, rows, after):
        return self.give("copies", lambda: out.copy_(rows), None if self.careless == "used" else after)

    def mark(self):
        return self.give("current", lambda: None)

    def wait(self, mark):
        if self.careless != "copied":
            self.give("current", lambda: None, mark)

    def wait_here(self, mark):
        while self.careless != "staging" and self.done[mark[0]] < mark[1]:
            ready = [queue for queue in self.queues if self.ready(queue)]
            self.step(mark[0] if mark[0] in ready else ready[0])

    def end(self):
        self.give("current", lambda: None, ("copies", len(self.queues["copies"])))
        while ready := [queue for queue in self.queues if self.ready(queue)]:
            self.step(self.random.choice(ready))


class SimulatedStream:
    """What `CudaLane` asks of a torch.cuda.Stream, and of its events."""

    def __init__(self, device: SimulatedLane, queue: str):
        self.device, self.queue = device, queue

    def wait_event(self, event) -> None:
        self.device.give(self.queue, lambda: None, event.at)

    def wait_stream(self, other) -> None:
        self.device.give(self.queue, lambda: None, (other.queue, len(self.device.queues[other.queue])))

    def record_event(self) -> "SimulatedStream":
        event = SimulatedStream(self.device, self.queue)
        event.at = self.device.give(self.queue, lambda: None)
        return event

    def synchronize(self) -> None:
        self.device.wait_here(self.at)


def cuda_lane(device: SimulatedLane, monkeypatch) -> CudaLane:
    """`CudaLane` on the simulated device."""
    inside = []

    class OnDevice(torch.Tensor):
        def copy_(self, rows, non_blocking=False):
            assert non_blocking
            out = self.as_subclass(torch.Tensor)
            device.give(inside[-1].queue, lambda: out.copy_(rows))

    @contextlib.contextmanager
    def inside_of(stream):
        inside.append(stream)
        yield
        inside.pop()

    class Unpinned(CudaLane):
        staging = Lane.staging

        def buffer(self, size):
            return super().buffer(size).as_subclass(OnDevice)

        def end(self):
            super().end()
            device.end()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimulatedStream(device, "current"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimulatedStream(device, "copies"))
    monkeypatch.setattr(torch.cuda, "stream", inside_of)
    return Unpinned(torch.device("cpu"))


def right(seed: int, careless: str = "", on=lambda device: device) -> bool:
    """Whether what runs on the current stream sees every block's rows, in order."""
    device, seen = SimulatedLane(seed, careless), []
    lane = on(device)
    blocks = [Block(torch.full((n, 3), i, dtype=torch.uint8), i) for i, n in enumerate((4, 4, 1, 4, 4, 4, 2))]
    for block, rows in stream(blocks, 12, lane):
        device.give("current", lambda block=block, rows=rows: seen.append(torch.equal(rows, block.rows)))
    assert len(seen) == len(blocks)
    return all(seen)


def test_every_block_arrives_whatever_the_device_does_first():
    assert all(right(seed) for seed in range(300))


def test_every_block_arrives_by_cudas_streams(monkeypatch):
    assert all(right(seed, on=lambda device: cuda_lane(device, monkeypatch)) for seed in range(300))
    assert not all(right(seed, "staging", lambda device: cuda_lane(device, monkeypatch)) for seed in range(300))


@pytest.mark.parametrize("careless", ["used", "copied", "staging"])
def test_the_simulation_finds_what_is_not_waited_for(careless):
    assert not all(right(seed, careless) for seed in range(300))


def test_a_stream_that_is_left_ends_its_copies():
    lane = SimulatedLane(0)
    blocks = stream([Block(torch.ones(2, 2, dtype=torch.uint8), i) for i in range(5)], 4, lane)
    next(blocks)
    blocks.close()
    assert lane.done == {queue: len(work) for queue, work in lane.queues.items()}
