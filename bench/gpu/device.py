"""The device that the GPU checks run on, and what they do with it; timing is in common/timing.py.

In a rehearsal (NHL_FAST_REHEARSAL=1) it is the CPU, with the kernels in Triton's interpreter and tiny sizes: that
shows that the checks themselves work, and its times mean nothing.
"""

from __future__ import annotations

import os
from functools import partial

if os.environ.get("NHL_FAST_REHEARSAL") == "1":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch

from bench.common import timing

REHEARSAL = os.environ.get("NHL_FAST_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
synchronize = partial(timing.synchronize, DEVICE)
milliseconds = partial(timing.milliseconds, budget_s=0 if REHEARSAL else 0.4, device=DEVICE)


def alive() -> bool:
    """Whether the device still answers: an assertion or a bad address on it ends it for the whole process."""
    try:
        synchronize()
        return bool((torch.ones(2, device=DEVICE).sum() == 2).item())
    except RuntimeError:
        return False


def captured(function):
    """A replay of the function's CUDA graph; in a rehearsal the function."""
    if DEVICE == "cpu":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def peak_mb(function) -> float | None:
    """Most memory (2^20 bytes) that a call holds beyond what was held before it."""
    if DEVICE == "cpu":
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def relative_error(found, expected) -> float:
    """The largest relative difference ||a - b|| / ||b|| of two sequences of tensors; NaN where anything is NaN."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        own = ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        worst = own if own != own or own > worst else worst
        if worst != worst:
            break
    return worst
