"""The one place that chooses which implementation serves a call.

Every public call that more than one implementation can serve takes `backend`: "auto" picks the best one that
is available, "reference" is the plain-PyTorch definition, and the others name a compiled implementation. An
explicit backend that is not available raises; only "auto" may fall back, and `backends()` says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

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
    import torch

    return Backend("reference", True, f"PyTorch {torch.__version__}, every operation, any device")


def _triton() -> Backend:
    return Backend("triton", False, "this version of nhl_fast ships no Triton kernel yet")


def _cpp() -> Backend:
    return Backend("cpp", False, "this version of nhl_fast ships no C++ extension yet")


def _cuda() -> Backend:
    return Backend("cuda", False, "this version of nhl_fast ships no CUDA extension yet")


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


def require(module: str, extra: str, purpose: str) -> None:
    """Raise ImportError, saying which extra to install, where an optional `module` is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{purpose} needs {module!r}: pip install 'nhl-fast[{extra}]'")
