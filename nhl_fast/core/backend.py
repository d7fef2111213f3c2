"""The backends of this machine: which can run, and why (not).

Every public call that more than one implementation can serve takes `backend`: "auto" picks the best one that
is available, "reference" is the plain-PyTorch definition, and the others name a compiled implementation. An
explicit backend that is not available raises; only "auto" may fall back, and `backends()` says why. Which of them
serves a call is the matter of `nhl_fast.core.operation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy
import torch

from . import check
from .first_use import load

NAMES = ("reference", "triton", "cpp", "cuda")
OLDEST_DEVICE = (8, 0)  # compute capability, for products on the tensor cores as the kernels use them


@dataclass(frozen=True)
class Backend:
    """One backend on this machine: its name, whether it can run, and why (not)."""

    name: str
    available: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name:<10} {'yes' if self.available else 'no ':<4} {self.detail}"


def _reference() -> tuple[bool, str]:
    return True, f"PyTorch {torch.__version__}, every operation, any device"


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def too_old() -> str:
    """Why the kernels do not run on the current CUDA device, or ""."""
    found = torch.cuda.get_device_capability()
    if found >= OLDEST_DEVICE:
        return ""
    return "needs compute capability {}.{} or more, the device has {}.{}".format(*OLDEST_DEVICE, *found)


def _triton() -> tuple[bool, str]:
    try:
        import triton
    except ImportError as error:
        return False, f"Triton cannot be imported ({error}); pip install triton"
    if os.environ.get("TRITON_INTERPRET") == "1":
        if _numbers(triton.__version__) <= (3, 6) and _numbers(numpy.__version__) >= (2, 4):
            why = f"the interpreter of Triton {triton.__version__} needs numpy<2.4, here is {numpy.__version__}"
            return False, why
        return True, f"Triton {triton.__version__} in its interpreter (TRITON_INTERPRET=1): slow"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device (to test the kernels on a CPU, set TRITON_INTERPRET=1)"
    if reason := too_old():
        return False, reason
    return True, f"Triton {triton.__version__} on {torch.cuda.get_device_name()}"


_probes: dict[str, Callable[[], tuple[bool, str]]] = {"reference": _reference, "triton": _triton}


def declare(name: str, status: Callable[[], tuple[bool, str]]) -> None:
    """Say how backend `name` is probed: `status()` gives whether it can run here, and on what or why not."""
    _probes[name] = status


@cache
def probe(name: str) -> Backend:
    """What backend `name` is on this machine (probed once a process)."""
    load(name)
    return Backend(name, *_probes[name]())


def names() -> tuple[str, ...]:
    """`NAMES`, and the backends that others declared."""
    return (*NAMES, *(name for name in _probes if name not in NAMES))


def backends() -> dict[str, Backend]:
    """What is built and active on this machine: {name: Backend(name, available, detail)}."""
    return {name: probe(name) for name in names()}


def check_backend(backend) -> str:
    """`backend` if it is "auto" or the name of a backend; ValueError otherwise."""
    if isinstance(backend, str) and backend == "auto":  # as nearly always
        return backend
    return check.one_of(backend, "backend", ("auto", *names()))


def available(name: str) -> bool:
    """Whether backend `name` can run here."""
    return probe(name).available


available._dynamo_marked_constant = True  # see `first_use.load`
