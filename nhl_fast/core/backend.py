"""The one place that chooses which implementation serves a call.

Every public call that more than one implementation can serve takes `backend`: "auto" picks the best one that
is available, "reference" is the plain-PyTorch definition, and the others name a compiled implementation. An
explicit backend that is not available raises; only "auto" may fall back, and `backends()` says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy
import torch

NAMES = ("reference", "triton", "cpp", "cuda")


@dataclass(frozen=True)
class Backend:
    """One backend on this machine: its name, whether it can run, and why (not)."""

    name: str
    available: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name:<10} {'yes' if self.available else 'no ':<4} {self.detail}"


def _reference() -> Backend:
    return Backend("reference", True, f"PyTorch {torch.__version__}, every operation, any device")


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def _triton() -> Backend:
    try:
        import triton
    except ImportError as error:
        return Backend("triton", False, f"Triton cannot be imported ({error}); pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        if _numbers(triton.__version__) <= (3, 6) and _numbers(numpy.__version__) >= (2, 4):
            why = f"the interpreter of Triton {triton.__version__} needs numpy<2.4, here is {numpy.__version__}"
            return Backend("triton", False, why)
        return Backend("triton", True, f"Triton {triton.__version__} in its interpreter (TRITON_INTERPRET=1): slow")
    if not torch.cuda.is_available():
        return Backend(
            "triton", False, "PyTorch sees no CUDA device (to test the kernels on a CPU, set TRITON_INTERPRET=1)"
        )
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return Backend("triton", False, f"needs compute capability 8.0 or more, the device has {major}.{minor}")
    return Backend("triton", True, f"Triton {triton.__version__} on {torch.cuda.get_device_name()}")


def _cpp() -> Backend:
    from .. import native

    return Backend("cpp", *native.cpu_status())


def _cuda() -> Backend:
    from .. import native

    return Backend("cuda", *native.cuda_status())


_PROBES: dict[str, Callable[[], Backend]] = {
    "reference": _reference,
    "triton": _triton,
    "cpp": _cpp,
    "cuda": _cuda,
}


@cache
def probe(name: str) -> Backend:
    """What backend `name` is on this machine (probed once a process)."""
    return _PROBES[name]()


def backends() -> dict[str, Backend]:
    """What is built and active on this machine: {name: Backend(name, available, detail)}."""
    return {name: probe(name) for name in NAMES}


def choose(backend: str, supported: Sequence[str], operation: str) -> str:
    """The backend that serves `operation`.

    Args:
        backend: what the caller asked for, "auto" or a name of `NAMES`.
        supported: the backends that implement the operation for these arguments, best first.
        operation: the public name of the call, for the error message.

    Raises:
        ValueError: the name is unknown, or that backend does not implement the operation.
        RuntimeError: the backend is not available on this machine (with the reason).
    """
    if backend == "auto":
        return next(name for name in supported if probe(name).available)
    if backend not in NAMES:
        allowed = ", ".join(repr(name) for name in ("auto", *NAMES))
        raise ValueError(f"backend: expected one of {allowed}, got {backend!r}")
    if backend not in supported:
        raise ValueError(f"backend: {operation} runs here on {', '.join(map(repr, supported))}, not on {backend!r}")
    if not probe(backend).available:
        raise RuntimeError(f"backend: {backend!r} is not available for {operation}: {probe(backend).detail}")
    return backend


def _available(name: str) -> bool:
    return probe(name).available


# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, a second on its own.
_available._dynamo_marked_constant = True


# Where "auto" takes a compiled backend.
_HOME = {"triton": "cuda", "cpp": "cpu"}


def pick(backend: str, operation: str, device, compiled: dict[str, Callable[[], str | None]]) -> str:
    """Which of the `compiled` backends serves `operation` on `device`; otherwise "reference".

    "auto" takes Triton for CUDA tensors alone, and C++ for CPU tensors outside torch.compile, which fuses the plain
    definition. `compiled[name]()` says why these arguments cannot be served by that backend, or None.

    Raises:
        ValueError, RuntimeError: as `choose`; RuntimeError also where the named backend cannot serve the arguments.
    """
    if backend == "auto":
        for name, refuses in compiled.items():
            here = device.type == _HOME[name] and not (name == "cpp" and torch.compiler.is_compiling())
            if here and _available(name) and refuses() is None:
                return name
        return "reference"
    if backend == "reference":
        return backend
    if backend not in compiled or not _available(backend):
        choose(backend, (*compiled, "reference"), operation)  # raises
    if why := compiled[backend]():
        raise RuntimeError(f"backend: {backend!r} cannot serve {operation} here: {why}")
    return backend


def use_triton(backend: str, operation: str, device, refuses: Callable[[], str | None]) -> bool:
    """Whether the fused Triton kernels serve `operation` on `device`, the only compiled form it has (see `pick`)."""
    return pick(backend, operation, device, {"triton": refuses}) == "triton"
