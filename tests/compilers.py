"""The C++ compilers that the tests can have: g++, clang++, and the clang inside the package `ziglang`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path


def _packaged_clang() -> list[str] | None:
    """Plain clang (no zig target, no libc++): it takes the system's C++ library, as g++ does."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None or platform.system() != "Linux":
        return None
    headers = Path(spec.origin).parent / "lib" / "include"  # clang's own; behind the system's
    driver = [sys.executable, "-m", "ziglang", "clang", "--driver-mode=g++"]
    return [*driver, "-nobuiltininc", "-idirafter", str(headers)]


def found() -> dict[str, list[str]]:
    """{name: command} of the compilers that are here; the clang of `ziglang` only where there is no other."""
    commands = {name: [shutil.which(name)] for name in ("g++", "clang++") if shutil.which(name)}
    if "clang++" not in commands and (command := _packaged_clang()):
        commands["clang++"] = command
    return commands


COMPILERS = found()
# Instructions beyond the baseline come from NHL_TARGET alone.
BASELINE = ["-march=x86-64"] if platform.machine() == "x86_64" else []
