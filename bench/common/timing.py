"""Timing: calls on a device, and functions that take turns on a CPU."""

from __future__ import annotations

import math
import statistics
import time

import torch


def synchronize(device="cuda") -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def milliseconds(function, budget_s: float = 0.4, device="cuda", burst_s: float = 200e-6) -> tuple[float, int]:
    """(median milliseconds, runs) of a function, warm: by device events on CUDA, by the wall clock elsewhere.

    On CUDA a run is as many calls as take about `burst_s` between two events: around a single call of a few
    microseconds they would measure the launch.
    """
    function()
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    once = max(time.perf_counter() - started, 1e-6)
    if torch.device(device).type == "cuda":
        calls = max(1, math.ceil(burst_s / once))
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


def alternate(functions: dict, rounds: int, repeats: dict | int) -> dict[str, list[float]]:
    """Seconds of each function, in blocks that take turns; the first call of a block only warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            count = repeats if isinstance(repeats, int) else repeats[name]
            times[name] += [timed(function)[0] for _ in range(count + 1)][1:]
    return times


def median_ms(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(seconds)


def timed(function):
    """(seconds, result) of one call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result
