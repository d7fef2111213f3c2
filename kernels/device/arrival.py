"""The last of several programs goes on: it alone knows that what the others wrote is there.

Counters (int32) are 0 before a launch and, the last program puts them back, after it. A launch takes its own from a
ring that is made once a device, so that launches on several streams do not meet; a launch that a CUDA graph records
takes one that no other launch is given.
"""

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes

SLOTS, GRAPH_SLOTS = 1024, 1024  # of the ring, and for graphs
SLOT = 136  # counters a launch may use: `projection.plan` makes at most 132 tiles that are split


@triton.jit
def arrived_last(counter, expected):
    """Whether this is the last of `expected` programs that come here; if so, its later loads see all their stores.

    The barrier puts the stores of all threads before the increment, which releases them at the device's scope; the
    last increment acquires what the earlier ones released, and the barrier after it hands that on to all threads.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1
    if last:
        tl.store(counter, 0)  # read again by the next launch only
    tl.debug_barrier()
    return last


class Ring:
    """Counters of one device."""

    def __init__(self, device: torch.device):
        self.slots = torch.zeros(SLOTS + GRAPH_SLOTS, SLOT, dtype=torch.int32, device=device).unbind()
        if device.type == "cuda":  # they are there for launches on every stream
            torch.cuda.current_stream(device).synchronize()
        self.eager = self.graph = 0

    def take(self, capturing: bool) -> torch.Tensor:
        if not capturing:
            self.eager = (self.eager + 1) % SLOTS
            return self.slots[self.eager]
        if self.graph == GRAPH_SLOTS:
            return torch.zeros_like(self.slots[0])  # a node of the graph
        self.graph += 1
        return self.slots[SLOTS + self.graph - 1]


_RINGS: dict[torch.device, Ring] = {}


def prepare(device: torch.device) -> None:
    """Make a device's counters, if there are none: outside of any graph, so that no graph's memory holds them.

    A compiler asks for them with tensors that are fake; these are not.
    """
    if device not in _RINGS:
        with torch.inference_mode(False), _disable_current_modes():
            _RINGS[device] = Ring(device)


def counters(device: torch.device) -> torch.Tensor:
    """(SLOT,) int32 zeros for one launch."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if device not in _RINGS:
        if capturing:
            return torch.zeros(SLOT, dtype=torch.int32, device=device)
        prepare(device)
    return _RINGS[device].take(capturing)
