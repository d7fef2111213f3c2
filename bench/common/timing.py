"""Timing on a device, and what the device can do at most: the ceilings that a benchmark's floors are held against."""

from __future__ import annotations

import math
import subprocess
import time

import torch

# popc instructions a multiprocessor finishes in a clock: CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, compute capabilities 8.0, 9.0 and 10.0.
POPCOUNTS_A_CLOCK = 16
# 32-bit words of two codes compared a clock a multiprocessor by the binary tensor cores (AND, popcount, m16n8k256:
# 128 pairs of 128 bits an instruction), measured on an H200: results/gpu, rates.txt. By major compute capability.
WORDS_A_CLOCK = {9: 0.6421 * 128 * 4}


def synchronize(device="cuda") -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def milliseconds(function, budget_s: float = 0.4, device="cuda") -> tuple[float, int]:
    """(median milliseconds, runs) of a function, warm: by device events on CUDA, by the wall clock elsewhere.

    On CUDA a run is as many calls as take about 200 us between two events: around a single call of a few
    microseconds they would measure the launch.
    """
    function()
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    once = max(time.perf_counter() - started, 1e-6)
    if torch.device(device).type == "cuda":
        calls = max(1, math.ceil(200e-6 / once))
        runs = int(max(3 if once < 1 else 1, min(100, budget_s / (calls * once))))
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
        for begin, end in events:
            begin.record()
            for _ in range(calls):
                function()
            end.record()
        torch.cuda.synchronize()
        times = [begin.elapsed_time(end) / calls for begin, end in events]
    else:
        runs = int(max(3 if once < 1 else 1, min(200, budget_s / once)))
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - started))
    return sorted(times)[runs // 2], runs


def copy_gb_s(device="cuda", elements: int = 1 << 28) -> tuple[float, float, int]:
    """(bytes read and written a second / 1e9, median milliseconds, runs) of a copy of float32 numbers."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    ms, runs = milliseconds(lambda: target.copy_(source), device=device)
    return round(2 * 4 * elements / ms / 1e6, 1), ms, runs


def clocks_per_s() -> float | None:
    """Clocks a second of all multiprocessors together at the highest clock; None where that is not known."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        megahertz = float(shown.splitlines()[torch.cuda.current_device()])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count * megahertz * 1e6


def popcounts_per_s() -> float | None:
    """32-bit population counts a second of the CUDA device at its highest clock; None where that is not known."""
    clocks = clocks_per_s()
    return None if clocks is None else clocks * POPCOUNTS_A_CLOCK


def binary_products_per_s() -> float | None:
    """32-bit words compared a second by the binary tensor cores; None where there are none, or none was measured."""
    clocks, words = clocks_per_s(), WORDS_A_CLOCK.get(torch.cuda.get_device_capability()[0])
    return None if clocks is None or words is None else clocks * words


def free_bytes(device="cuda") -> int:
    """Device memory that a new tensor may take; a gigabyte on a CPU, where only small sizes are run."""
    if torch.device(device).type != "cuda":
        return 1 << 30
    reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + reserved
