"""Libraries built at first use, in a cache of the user: one for each source, PyTorch and compiler.

Where the cache is: $NHL_FAST_CACHE, else $XDG_CACHE_HOME/nhl_fast, else ~/.cache/nhl_fast. NHL_FAST_BUILD=0 forbids
building at first use. A failure is kept, too, so that not every process tries again; `python -m nhl_fast.native
build` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import builder
from .builder import BuildError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

FAILURE = "failed.txt"


def root() -> Path:
    """The folder of the cache."""
    if given := os.environ.get("NHL_FAST_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "nhl_fast"
    try:
        return Path.home() / ".cache" / "nhl_fast"
    except RuntimeError as error:
        raise BuildError(f"no folder for a cache ({error}); set NHL_FAST_CACHE") from None


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _base(kind: str, targets: list[str] | None) -> Path:
    """The folder of every library of this source, for this PyTorch and system."""
    torch, flags = builder.find_torch(), (builder.CXX_FLAGS, builder.NVCC_FLAGS, builder.TARGET)
    system = platform.system(), platform.machine(), platform.libc_ver()
    key = _digest(builder.source_hash(kind, builder.source_dir()), torch.version, torch.cuda, system, flags, targets)
    return root() / f"{kind}-{key}"


def _compiler(kind: str) -> str:
    """What tells one compiler from another, without running it."""
    command = builder.find_nvcc() if kind == "cuda" else builder.find_compiler()
    if command is None:
        raise BuildError("nvcc was not found (install the CUDA toolkit, or set CUDA_HOME)")
    # nvcc is a path, which may hold spaces; $CXX may hold options.
    program = os.path.realpath(command if kind == "cuda" else shutil.which(shlex.split(command)[0]))
    status = os.stat(program)
    return _digest(command, program, status.st_size, status.st_mtime_ns)


def find(kind: str, targets: list[str] | None = None) -> Path | None:
    """The cached library that fits, of whatever compiler; None where there is none."""
    base = _base(kind, targets)
    made = [path for path in base.glob(f"*/{builder.LIBRARIES[kind]}") if path.is_file()]
    if not made:
        return None
    newest = max(made, key=lambda path: path.stat().st_mtime_ns)
    for path in (root(), newest):
        _check_owner(path)
    return newest


def ensure(kind: str, targets: list[str] | None = None, retry: bool = False) -> Path:
    """The cached library, built where there is none. Of several processes one builds, and the others wait for it.

    Args:
        kind: which library.
        targets: CUDA compute capabilities; default those of `builder.architectures`.
        retry: build even where the last try failed, or NHL_FAST_BUILD=0.

    Raises:
        BuildError: it cannot be built; why.
    """
    found = find(kind, targets)
    if found is not None:
        return found
    if os.environ.get("NHL_FAST_BUILD") == "0" and not retry:
        raise BuildError("it is not built, and NHL_FAST_BUILD=0 forbids to build it at first use")
    folder = _base(kind, targets) / _compiler(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(root())
        with _lock(folder, kind):
            return _built(kind, folder, targets, retry)
    except OSError as error:
        raise BuildError(f"the cache {root()} cannot be used ({error}); set NHL_FAST_CACHE to a folder") from error


def _built(kind: str, folder: Path, targets: list[str] | None, retry: bool) -> Path:
    library, failure = folder / builder.LIBRARIES[kind], folder / FAILURE
    if library.exists():  # another process was faster
        return library
    if failure.exists() and not retry:
        raise BuildError(f"its build failed before: {failure.read_text(encoding='utf-8', errors='replace')}")
    for stray in folder.glob(f"{library.name}.*.tmp"):  # of a process that was killed: we own the lock
        stray.unlink()
    progress = Progress(f"nhl_fast: building {library.name} for its first use (once for this PyTorch)")
    try:
        builder.build(kind, library, progress, targets)
    except BuildError as error:
        progress.end("failed")
        failure.write_text(str(error), encoding="utf-8")
        raise
    except BaseException:
        progress.end("interrupted")
        raise
    progress.end("done")
    failure.unlink(missing_ok=True)
    return library


def _check_owner(path: Path) -> None:
    """Nobody else may put a library there that this process would run."""
    status = os.stat(path)
    if hasattr(os, "getuid") and (status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH):
        raise BuildError(f"{path} can be written by others; set NHL_FAST_CACHE to a folder of your own")


@contextlib.contextmanager
def _lock(folder: Path, kind: str) -> Iterator[None]:
    """One process at a time; a killed one holds nothing."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            library = builder.LIBRARIES[kind]
            print(f"nhl_fast: waiting for another process that builds {library}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Progress:
    """One line on stderr: what is built, how far it is (on a terminal), and how it ended."""

    def __init__(self, what: str):
        self.what, self.started, self.shown = what, time.monotonic(), False

    def __call__(self, done: int, total: int) -> None:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if terminal:
            self._write(f"\r{self.what}: {done}/{total} files, {time.monotonic() - self.started:.0f} s")
        elif not self.shown:
            self._write(f"{self.what}: {total} files ...")
        self.shown = True

    def end(self, how: str) -> None:
        """Close the line, if one was begun."""
        if self.shown:
            self._write(f" {how} in {time.monotonic() - self.started:.0f} s\n")

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
