"""Microbenchmarks of the Triton kernels beside the plain PyTorch that does the same, one table a kernel.

    pytest bench/bench_kernels.py --benchmark-enable [--benchmark-json FILE]

On a CUDA device at the sizes of use, synchronized after every call (so a small kernel's time is mostly its launch;
gpu_check.py measures the step in a CUDA graph). Without one in Triton's interpreter at a small size, which shows that
the benchmark works and nothing else. Every result is checked before it is timed. Each table's extra_info holds the
kernel's floor (see floors.py): the bytes it must move and the operations it must do.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import floors  # noqa: E402

from nhl_fast.fused import pointwise, projection, weighting  # noqa: E402
from nhl_fast.losses import build  # noqa: E402
from nhl_fast.objective import per_length_gradients  # noqa: E402
from nhl_fast.prefixes import expand, pad, weighted_sum  # noqa: E402
from nhl_fast.weighting import dominance_dots, dominance_weights  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
LENGTHS = (8, 16, 32, 64, 128) if CUDA else (4, 8, 16)
LONGEST = LENGTHS[-1]
SHAPES = [(64, 2048), (256, 2048), (4096, 768), (32768, 2048)] if CUDA else [(16, 300), (40, 12)]
DTYPES = [torch.float32, torch.bfloat16] if CUDA else [torch.float32]
pytestmark = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")


def synchronized(function):
    def call():
        result = function()
        if CUDA:
            torch.cuda.synchronize()
        return result

    return call


def measure(benchmark, kernel, implementations, which, floor, tolerance=1e-3):
    """Time `which` of {"triton", "torch"} once both agree."""
    results = {name: function() for name, function in implementations.items()}
    for a, b in zip(results["triton"], results["torch"]):
        error = ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        assert error <= tolerance, f"{kernel}: the results differ by {error:.1e}; nothing is timed"
    del results
    benchmark.group = kernel
    benchmark.extra_info.update(bytes=floor[0], operations=floor[1], device=DEVICE, implementation=which)
    benchmark(synchronized(implementations[which]))


def inputs(shape, dtype=torch.float32):
    torch.manual_seed(0)
    (n, d), make = shape, torch.randn
    x, w, b = (make(*s, device=DEVICE) for s in ((n, d), (LONGEST, d), (LONGEST,)))
    return x.to(dtype), w / d**0.5, b


@pytest.mark.parametrize("which", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projection(benchmark, shape, dtype, which):
    x, w, b = inputs(shape, dtype)
    gram = weighting.kernels.uses_gram(*shape, LENGTHS)

    def plain():
        full = x.float()
        return torch.nn.functional.linear(full, w, b), *([full @ full.T] if gram else [])

    functions = {"triton": lambda: projection.project(x, w, b, gram)[: 1 + gram], "torch": plain}
    floor = floors.projection(*shape, LONGEST, x.element_size(), gram)
    measure(benchmark, "projection", functions, which, floor)


@pytest.mark.parametrize("which", ["triton", "torch"])
@pytest.mark.parametrize("name", ["csq", "dpn"])
def test_pointwise(benchmark, shape, name, which):
    torch.manual_seed(0)
    loss = build(name, num_classes=100, code_lengths=LENGTHS).to(DEVICE)
    u, labels = torch.randn(shape[0], LONGEST, device=DEVICE), torch.randint(0, 100, shape[:1], device=DEVICE)

    def fused():
        values, deltas = pointwise.fused(loss, u, labels)
        return values.sum(0), deltas

    def plain():
        return per_length_gradients(lambda v: loss.expanded(v, labels), expand(u, LENGTHS))

    measure(
        benchmark, f"pointwise_{name}", {"triton": fused, "torch": plain}, which, floors.pointwise(shape[0], LENGTHS)
    )


@pytest.mark.parametrize("which", ["triton", "torch"])
def test_dots_weights_and_combine(benchmark, shape, which):
    x, w, b = inputs(shape)
    deltas, u = torch.randn(shape[0], sum(LENGTHS), device=DEVICE), torch.zeros(shape[0], LONGEST, device=DEVICE)
    gram = x @ x.T if weighting.kernels.uses_gram(*shape, LENGTHS) else x.new_empty(0, 0)
    losses = torch.ones(1, len(LENGTHS), device=DEVICE)
    arguments = (x, w, b, u, deltas, gram, losses, None, 0.0, None, list(LENGTHS), False)

    def fused():
        found = weighting.combine(*arguments)
        return found[1], found[5]

    def plain():
        padded = pad(deltas, LENGTHS)
        weights = dominance_weights(dominance_dots(padded, x, LENGTHS))
        return weights, weighted_sum(padded, weights)

    moved, operations = floors.combine(shape[0], LENGTHS)
    if not gram.numel():
        more = floors.transposed_product(*shape, sum(LENGTHS))
        moved, operations = moved + more[0], operations + more[1]
    measure(benchmark, "weights", {"triton": fused, "torch": plain}, which, (moved, operations), 1e-2)


@pytest.mark.parametrize("which", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(benchmark, shape, dtype, which):
    x, w, _ = inputs(shape, dtype)
    du = torch.randn(shape[0], LONGEST, device=DEVICE)
    scale, empty = torch.tensor(2.0, device=DEVICE), torch.empty(0, device=DEVICE)

    def fused():
        return weighting.head_backward(scale, du, x, w, empty, empty, True, True)

    def plain():
        scaled = du * scale
        return (scaled @ w).to(dtype), scaled.T @ x.float(), scaled.sum(0)

    floor = floors.backward(*shape, LONGEST, x.element_size())
    measure(
        benchmark,
        "backward",
        {"triton": fused, "torch": plain},
        which,
        floor,
        1e-2 if dtype != torch.float32 else 1e-3,
    )
