"""Who owns a run folder: one process and thread at a time. Nothing here loads PyTorch."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..core.files import remove_stale
from .run_folder import RunFolder, check_target

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

# (device, inode) of the folders that this process owns: [thread, depth, descriptor]
_held: dict[tuple[int, int], list] = {}
_guard = threading.Lock()


class RunInUseError(RuntimeError):
    """Another process (or thread) owns the run folder; the message says who."""


@contextlib.contextmanager
def claim(run_dir, resume: bool) -> Iterator[Path]:
    """Own the folder to train into (see `check_target`) for the time of the block; it is made where it is absent."""
    path = check_target(run_dir, resume)
    path.mkdir(parents=True, exist_ok=True)
    with hold(path):
        check_target(path, resume)  # what another process did meanwhile
        yield path


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Own a folder for the time of the block. A killed process owns nothing; the same thread may own it twice.

    Raises:
        RunInUseError: another process owns it, or another thread; the message says which and since when.
    """
    status = os.stat(path)
    key = status.st_dev, status.st_ino
    with _guard:
        mine = _held.get(key)
        if mine is None:
            _held[key] = mine = [threading.get_ident(), 1, None]
        elif mine[0] == threading.get_ident():
            mine[1] += 1
        else:
            raise RunInUseError(f"run: {path} is in use by another thread of this process")
    try:
        if mine[1] == 1:
            mine[2] = _acquire(path)
            folder = RunFolder(path)
            for part in (path, folder.all_codes, folder.all_pictures):
                remove_stale(part)
        yield
    finally:
        with _guard:
            mine[1] -= 1
            if mine[1] == 0:
                _held.pop(key, None)
                if mine[2] is not None:
                    _release(path, mine[2])


def _acquire(path: Path) -> int | None:
    """The descriptor of the folder's locked lock file."""
    if fcntl is None:
        warnings.warn(f"{path}: this system has no file locks; let no other process write there", stacklevel=4)
        return None
    file = RunFolder(path).lock
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
                    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(who).encode(), 0)
                    return descriptor
        except OSError as error:
            who = _describe(descriptor) if isinstance(error, BlockingIOError) else None
            os.close(descriptor)
            if who is not None:
                raise RunInUseError(
                    f"run: {path} is in use by {who}; wait until it has ended, or take another folder"
                ) from None
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                file.unlink(missing_ok=True)
                warnings.warn(
                    f"{path}: its file system has no locks ({error.strerror}); let no other process write there",
                    stacklevel=4,
                )
                return None
            raise
        os.close(descriptor)


def _describe(descriptor: int) -> str:
    """Who owns the lock; an owner of this moment has a moment to write its name."""
    for wait in (0.02, 0.1, 0.4, 0):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            who = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {int(who['pid'])} on {who['host']} since {who['since']}"
        time.sleep(wait)
    return "another process"


def _release(path: Path, descriptor: int) -> None:
    # Removed while it is locked: whoever opened it before sees that it is no longer the folder's.
    file = RunFolder(path).lock
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), os.stat(file)):
            os.unlink(file)
    os.close(descriptor)


def _forget() -> None:
    """In a forked child (a DataLoader's worker, say), which must not keep a killed parent's lock alive."""
    global _guard
    _guard = threading.Lock()
    for _, _, descriptor in _held.values():
        if descriptor is not None:
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
