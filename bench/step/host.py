"""Host time of an eager training step: everything but the kernels, which are neither compiled nor launched.

    python -m bench.step.host [--losses csq,dhn] [--steps 200]

A stand-in takes the place of Triton's driver and compiler, so this runs without a GPU (with one, too): a step's
launches are bound and specialised as always, then dropped, and tensors hold what memory held. On a card PyTorch's
allocator and the launch itself (about 5 us each) come on top. The times are this machine's: compare two commits on
the same one.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.common import arguments
from bench.common.data import LENGTHS
from bench.common.losses import NAMES, bank_of, make
from nhl_fast import NestedHashLayer, NestedObjective

CLASSES = 100


class Driver:
    """What Triton asks of a driver before a launch, for a device that is not there."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cuda

    def assemble_tensormap_to_arg(self, *arguments):
        return arguments


class Kernel:
    """A compiled kernel that does nothing."""

    function = packed_metadata = None

    def result(self):
        return self

    def launch_metadata(self, *arguments):
        return None

    def run(self, *arguments):
        return None


@contextlib.contextmanager
def stubbed():
    """Triton and this package as if the CPU were a CUDA device whose kernels take no time.

    Gives the list of what would have been compiled: (kernel, what it was specialised on), each once a process.
    """
    from nhl_fast.core import backend
    from nhl_fast.steps.fused import step

    compiled = []

    def compile_nothing(self, key, signature, device, constexprs, options, attrs, warmup):
        self.device_caches[device][0][key] = kernel = Kernel()
        compiled.append((self.fn.__name__, key))
        return kernel

    before = JITFunction._do_compile, backend._probes["triton"], step.interpreted, step.check_on_host
    active, driver._active = driver._active, Driver()
    JITFunction._do_compile = compile_nothing
    backend._probes["triton"] = lambda: (True, "nothing is launched")
    step.interpreted, step.check_on_host = (lambda: True), (lambda tensor: False)
    backend.probe.cache_clear()
    try:
        yield compiled
    finally:
        driver._active = active
        JITFunction._do_compile, backend._probes["triton"], step.interpreted, step.check_on_host = before
        backend.probe.cache_clear()


def problem(name: str, n: int, d: int, **label_options):
    """A function that makes one step: forward and gradients; `label_options` as `NestedLoss.label_options` takes."""
    torch.manual_seed(0)
    layer = NestedHashLayer(d, LENGTHS)
    loss = make(name, CLASSES, LENGTHS, 1000)
    if label_options:
        loss.label_options(**label_options)
    objective = NestedObjective(layer, loss, backend="triton")
    features = torch.randn(n, d).requires_grad_()
    labels, index = torch.randint(0, CLASSES, (n,)), torch.arange(n)
    parameters = (features, *layer.parameters())
    if (bank := bank_of(loss)) is not None:  # on a card its values are not looked at
        check = type(bank).check_index
        bank.check_index = lambda index, rows, values=True: check(bank, index, rows, False)

    def call():
        total = objective(features, labels, index).total
        return torch.autograd.grad(total, parameters)

    return call


def measure(name: str, n: int = 64, d: int = 2048, steps: int = 200) -> float:
    """Microseconds of the host a step: the median of `steps`."""
    call = problem(name, n, d)
    for _ in range(10):
        call()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def main() -> None:
    parser = arguments.parser("bench.step.host", __doc__)
    parser.add_argument(
        "--losses",
        type=arguments.some_of(NAMES),
        default=["csq", "shcir", "dtsh", "dhn"],
        help=f"of {', '.join(NAMES)}",
    )
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, Triton {triton.__version__}, 64 x 2048, float32, nothing launched")
    with stubbed():
        for name in options.losses:
            print(f"{name:<8} {measure(name, steps=options.steps):8.0f} us a step")


if __name__ == "__main__":
    main()
