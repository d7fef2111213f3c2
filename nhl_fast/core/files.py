"""Files that are either whole or not there: atomic writing, and JSON with clear errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from . import check


def as_path(value, name: str = "path") -> Path:
    """`value` as a Path, a leading `~` as the home; TypeError where it is no string or path, ValueError if empty."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name}: expected a path (str or os.PathLike), got {check.describe(value)}")
    if not os.fspath(value) or "\0" in os.fspath(value):
        what = "a null character" if os.fspath(value) else "an empty string"
        raise ValueError(f"{name}: expected a path, got {what}")
    path = Path(value)
    try:
        return path.expanduser() if os.fspath(value).startswith("~") else path
    except RuntimeError:  # no such user: a file may bear that name
        return path


def existing_file(value, name: str = "path") -> Path:
    """`value` as the Path of a regular file; FileNotFoundError or ValueError otherwise."""
    path = as_path(value, name)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, f"{name}: no such file", str(path))
    if not path.is_file():
        raise ValueError(f"{name}: expected a regular file, got {str(path)!r}")
    return path


@contextlib.contextmanager
def atomic_write(path, mode: str = "wb") -> Iterator[IO]:
    """A context manager that gives an open temporary file, which becomes `path` when the block succeeds.

    The temporary file lies in the directory of `path` (its name is the handle's `.name`, for libraries that
    write by name). On success it is flushed to the disk and renamed over `path` in one step; on any
    exception, a full disk included, it is removed and a file that was at `path` stays as it was. A symbolic
    link is followed; the permissions of a replaced file are kept.

    Args:
        path: the file to write; its directory must exist.
        mode: "wb" (bytes) or "w" (UTF-8 text).

    Raises:
        FileNotFoundError: the directory does not exist.
        ValueError: `path` exists and is no regular file, or `mode` is unknown.
        OSError: the file cannot be written (the message names `path`).
    """
    check.one_of(mode, "mode", ("wb", "w"))
    target = Path(os.path.realpath(as_path(path)))
    permissions = None
    if target.exists():
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"path: expected a regular file or a new one, got {str(target)!r}")
        permissions = stat.S_IMODE(status.st_mode)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "cannot write: no such directory", str(target.parent))
    temporary = target.with_name(f".nhl_fast-{_host()}-{os.getpid()}-{os.urandom(8).hex()}.tmp")
    try:
        # "x" rather than mkstemp, whose 0600 would ignore the umask. Leaving the block closes the file, so
        # that what its buffer still holds meets a full disk before the rename.
        with open(temporary, mode.replace("w", "x"), encoding="utf-8" if mode == "w" else None) as handle:
            if permissions is not None:
                os.chmod(temporary, permissions)
            yield handle
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        named = isinstance(error, OSError) and error.filename in (None, str(temporary))
        if named and error.errno is not None:
            message = f"cannot write (nothing was changed): {os.strerror(error.errno)}"
            raise OSError(error.errno, message, str(target)) from error
        raise
    # Some file systems refuse to sync a directory; the rename itself has happened.
    with contextlib.suppress(OSError):
        _sync(target.parent)


_TEMPORARY = re.compile(r"\.nhl_fast-([^-]*)-(\d+)-[0-9a-f]{16}\.tmp")


def _host() -> str:
    """Where a process id means something: the host's name, and the process namespace where there are several."""
    name = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:64]
    with contextlib.suppress(OSError):
        name += "." + re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return name


def is_temporary(name: str) -> bool:
    """Whether a file's name is that of a write of `atomic_write` which is going on, or was cut short by a kill."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale(folder: Path) -> None:
    """Remove what processes of this host that are no more left half-written in a folder; nobody else's files."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(entry.name)
        if found and found[1] == _host() and not _alive(int(found[2])) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value):
    """NumPy and torch numbers and arrays, and paths, as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {check.describe(value)} as JSON")


def write_json(path, obj: Any, indent: int | None = 2) -> None:
    """Write `obj` as JSON (UTF-8, one newline at the end), atomically.

    NumPy and torch scalars and arrays become numbers and lists. Raises ValueError for NaN and infinity,
    which JSON cannot hold, and TypeError for an object that JSON does not know; nothing is written then.
    """
    try:
        text = json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{os.fspath(path)}: not written: {error}") from error
    with atomic_write(path, "w") as handle:
        handle.write(text + "\n")


def read_json(path) -> Any:
    """The object in a JSON file; ValueError, naming the file and the place, where it is not JSON."""
    path = existing_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: not valid JSON ({where}: {error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except RecursionError:
        raise ValueError(f"{path}: not readable JSON (nested too deeply)") from None
