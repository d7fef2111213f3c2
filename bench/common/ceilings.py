"""What a device can do at most, measured or by its clock: what the floors of the benchmarks are held against."""

from __future__ import annotations

import subprocess
from functools import partial

import torch

from bench.common.timing import milliseconds

# popc instructions a multiprocessor finishes in a clock: CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, compute capabilities 8.0, 9.0 and 10.0.
POPCOUNTS_A_CLOCK = 16
# 32-bit words of two codes compared a clock a multiprocessor by the binary tensor cores (AND, popcount, m16n8k256:
# 128 pairs of 128 bits an instruction), measured on an H200: results/gpu, rates.txt. By major compute capability.
WORDS_A_CLOCK = {9: 0.6421 * 128 * 4}


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


def measured_rates(device="cuda", small: bool = False):
    """(name, rate, case, milliseconds, runs) of what the card can do at most: bytes copied, large matrix products.

    With `small` at sizes that show that it works, and nothing else.
    """
    elements, n = (1 << 16, 64) if small else (1 << 28, 8192)
    rate, ms, runs = copy_gb_s(device, elements)
    yield "copy_gb_s", rate, "copy, bytes read and written", ms, runs
    before = torch.backends.cuda.matmul.fp32_precision
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        ms, runs = milliseconds(partial(torch.matmul, a, b), device=device)
        torch.backends.cuda.matmul.fp32_precision = before
        yield f"matmul_{name}_tflop_s", round(2 * n**3 / ms / 1e9, 3), f"matrix product {name}, {n}", ms, runs


def against_floor(floor, unit: str, rates: dict) -> dict:
    """bytes_ms and operations_ms at the measured rates (GB/s and TFLOP/s), None where one was not measured.

    A float32 product is three of tf32 (see `nhl_fast.kernels.tiles.dot_precision`), where that is the faster way.
    """
    copy, matrix = rates.get("copy_gb_s"), rates.get(f"matmul_{unit}_tflop_s")
    if unit == "fp32" and matrix:
        matrix = max(matrix, rates.get("matmul_tf32_tflop_s", 0) / 3)
    return {
        "bytes_ms": floor[0] / copy / 1e6 if copy else None,
        "operations_ms": floor[1] / matrix / 1e9 if matrix else None,
    }
