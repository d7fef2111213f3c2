"""Microbenchmarks of the Triton kernels beside the plain PyTorch that does the same, one table a kernel.

    python -m pytest bench/kernels/microbench.py --benchmark-enable [-k KERNEL] [--benchmark-json FILE]

On a CUDA device at the sizes of use, synchronized after every call (so a small kernel's time is mostly its launch;
bench.gpu replays CUDA graphs instead). Without one in Triton's interpreter at a tiny size, which shows that the
benchmark works and nothing else: its tables say so. Every result is checked before it is timed. The extra_info of a
row holds the kernel's floor (see floors.py): the bytes it must move and the operations it must do, on a CUDA device
also in milliseconds at its measured rates, and `gap`, the place for what stands between the two.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["NHL_FAST_REHEARSAL"] = "1"

from bench.common.ceilings import against_floor, measured_rates
from bench.gpu.device import DEVICE, relative_error, synchronize
from bench.kernels.cases import CASES, wanted

GROUP = "{}" if DEVICE == "cuda" else "{} (interpreted on a CPU: no result)"


@pytest.fixture(scope="module")
def rates():
    return {key: rate for key, rate, *_ in measured_rates()} if DEVICE == "cuda" else {}


@pytest.mark.parametrize("which", ["triton", "torch"])
@pytest.mark.parametrize("case", wanted(), ids=lambda c: f"{c[0]}-{c[1]}x{c[2]}-{str(c[3])[6:]}")
def test_kernel(benchmark, case, which, rates):
    name, *size = case
    made = CASES[name](*size)
    error = relative_error(made.fused(), made.plain())
    assert error <= made.tolerance, f"{name}: the results differ by {error:.1e}; nothing is timed"
    function = made.fused if which == "triton" else made.plain

    def call():
        function()
        synchronize()

    benchmark.group = GROUP.format(name)
    benchmark.extra_info.update(
        bytes=made.floor[0], operations=made.floor[1], gap=made.gap, device=DEVICE, implementation=which,
        **against_floor(made.floor, made.unit, rates),
    )  # fmt: skip
    benchmark(call)
