"""The compiled libraries (csrc/): finding, building and loading them, and whether they serve here."""

from __future__ import annotations

import os
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

from ..core.backend import OLDEST_DEVICE, declare, too_old
from . import builder, fakes
from . import cache as _cache
from .builder import BuildError

# The longest codes of each library.
MAX_BITS = {"cpp": 16384, "cuda": 1024}

_PACKAGE = Path(__file__).resolve().parent
_loading = threading.RLock()
_loaded: dict[str, Path] = {}


def library_path(kind: str) -> Path:
    """Where library `kind` ("cpp" or "cuda") is, or would be built."""
    return _PACKAGE / builder.LIBRARIES[kind]


def loaded_path(kind: str) -> Path:
    """The file that library `kind` was loaded from: at `library_path`, or in the cache."""
    return _loaded[kind]


_HINT = "build it with: python -m nhl_fast.native build"


def load(kind: str) -> str:
    """Load library `kind`, once a process; the reason why not, or "" where it is ready.

    Where there is none, it is built in a cache of the user first. One warning says why that failed.
    """
    with _loading:  # of two threads one loads
        return _load(kind)


@cache
def _load(kind: str) -> str:
    if kind == "cuda" and (missing := _load("cpp")):
        return missing
    if kind == "cuda" and os.environ.get("NHL_FAST_CUDA") == "0":
        return "NHL_FAST_CUDA=0 leaves it out"
    reason = _load_library(kind)
    if reason:
        engine = "C++" if kind == "cpp" else "CUDA"
        warnings.warn(f"nhl_fast runs without its {engine} engine, on the slower reference: {reason}", stacklevel=4)
    elif kind == "cpp":
        fakes.register()
    return reason


def _renew() -> None:
    """In a forked child, where a thread of the parent that was loading is no more."""
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _load_library(kind: str) -> str:
    path, missing = library_path(kind), ""
    if path.exists():
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            missing = f"{path.name} does not load with PyTorch {torch.__version__}: {_brief(error)}; {_HINT}"
    if not path.exists() or (missing and not builder.in_checkout()):
        try:
            path = _cache.ensure(kind, _targets(kind))
            torch.ops.load_library(str(path))
        except BuildError as error:
            return f"{_brief(error)}; once that is mended, {_HINT}"
        except OSError as error:
            return f"{path} does not load with PyTorch {torch.__version__}: {_brief(error)}; remove it, and {_HINT}"
    elif missing:
        return missing
    _loaded[kind] = path
    try:
        folder = builder.source_dir()
        built = (torch.ops.nhl_fast.source_hash if kind == "cpp" else torch.ops.nhl_fast.cuda_source_hash)()
        if built != builder.source_hash(kind, folder):
            return f"{path.name} was built from other sources than those in {folder}; {_HINT}"
    except (AttributeError, BuildError):
        return f"{path.name} belongs to another version of nhl_fast; {_HINT}"
    return ""


def _targets(kind: str) -> list[str] | None:
    """At first use the CUDA library is compiled for the cards here alone, unless the environment says for which."""
    if kind != "cuda" or os.environ.get("NHL_FAST_CUDA_ARCHITECTURES"):
        return None
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ["".join(map(str, capability)) for capability in sorted(found) if capability >= OLDEST_DEVICE]


def _brief(error: Exception) -> str:
    """An error in one line; of a compiler's output the first error."""
    lines = str(error).splitlines()
    told = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
    return told[:500]


def is_built(kind: str) -> bool:
    """Whether library `kind` is there, so that its first use builds nothing."""
    try:
        return library_path(kind).exists() or _cache.find(kind, _targets(kind)) is not None
    except (BuildError, OSError):
        return False


@cache
def cpu_status() -> tuple[bool, str]:
    """Whether the C++ library serves, and with which instructions, or why not."""
    reason = load("cpp")
    if reason:
        return False, reason
    try:
        return True, f"native library, {torch.ops.nhl_fast.cpu_isa()} instructions, {torch.get_num_threads()} threads"
    except RuntimeError as error:
        return False, str(error).splitlines()[0]


@cache
def cuda_status() -> tuple[bool, str]:
    """Whether the CUDA library serves, and on what, or why not."""
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    reason = too_old() or load("cuda")
    return (False, reason) if reason else (True, f"native library on {torch.cuda.get_device_name()}")


def build(verbose: bool = True) -> list[Path]:
    """Compile the libraries, in a checkout in place, else into the cache; returns the files made.

    Takes effect in the next process.

    Raises:
        BuildError: something is missing or the compiler failed, and what it said.
    """
    made = []
    for kind in builder.wanted(builder.find_torch()):
        if builder.in_checkout():
            progress = _cache.Progress(f"nhl_fast: building {builder.LIBRARIES[kind]}") if verbose else None
            how = "failed"
            try:
                made.append(builder.build(kind, library_path(kind), progress))
                how = "done"
            finally:
                if progress is not None:
                    progress.end(how)
        else:
            targets = _targets(kind) if torch.cuda.is_available() else None
            made.append(_cache.ensure(kind, targets, retry=True))
        if verbose:
            print(f"built {made[-1]}")
    return made


declare("cpp", cpu_status)
declare("cuda", cuda_status)
