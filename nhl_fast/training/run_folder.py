"""A run folder: its files, who owns it, and what may be written where. Nothing here loads PyTorch."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.files import as_path, is_temporary, read_json, remove_stale

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

CONFIG, CHECKPOINT, LOG, WEIGHTS = "config.json", "checkpoint.safetensors", "log.jsonl", "model.safetensors"
SPLIT, METRICS, METRICS_TABLE = "split.json", "metrics.json", "metrics.csv"
CODES, PICTURES = "codes", "pictures"
COMPARISON, COMPARISON_TABLE = "compare.json", "compare.csv"
LOCK = ".nhl_fast.lock"
# What may differ when a run is resumed: how long it goes on, and where.
FREE = ("epochs", "patience", "device", "workers", "compile")

# (device, inode) of the folders that this process owns: [thread, depth, descriptor]
_held: dict[tuple[int, int], list] = {}
_guard = threading.Lock()


class RunInUseError(RuntimeError):
    """Another process (or thread) owns the run folder; the message says who."""


def weights_file(length: int | None = None) -> str:
    """Name in a run folder of the shared weights, or of one length's best."""
    return WEIGHTS if length is None else f"model_{length}.safetensors"


def free_settings(schedule: str) -> tuple[str, ...]:
    """The settings that may change when a run goes on; a schedule over all epochs fixes their number."""
    return FREE if schedule == "constant" else FREE[1:]


def read_config(run_dir) -> dict:
    """config.json of a run folder: {"config", "data", "data_fingerprint"} and, from newer runs, "environments".

    Raises:
        FileNotFoundError, ValueError: no such file, or one of something else.
    """
    path = as_path(run_dir, "run") / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"run: {run_dir} holds no {CONFIG}; is it the folder of a training run?")
    stored = read_json(path)
    keys = {"config": dict, "data": dict, "data_fingerprint": str}
    if not isinstance(stored, dict) or not all(isinstance(stored.get(k), t) for k, t in keys.items()):
        raise ValueError(f"run: {path} is not the settings of a training run")
    machines = stored.get("environments", [])
    if not isinstance(machines, list) or not all(isinstance(m, dict) for m in machines):
        raise ValueError(f"run: {path} is damaged: its environments are no list of entries")
    return stored


# ------------------------------------------------------------------------------------------- what may be written


def check_target(run_dir, resume: bool, name: str = "run_dir") -> Path:
    """The folder to train into: absent or empty or, with `resume`, a run that can go on.

    Raises:
        FileExistsError: it holds something, a run or not.
        FileNotFoundError, ValueError: there is no run to resume, or none that can go on.
        NotADirectoryError: it is a file.
    """
    path = as_path(run_dir, name)
    above = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if above.exists() and not above.is_dir():
        raise NotADirectoryError(f"{name}: expected a folder, but {above} is a file")
    found = sorted(entry for entry in os.listdir(path) if not _ours(entry)) if path.is_dir() else []
    if resume:
        if not path.is_dir():
            raise FileNotFoundError(f"{name}: there is no run to resume, {path} does not exist")
        read_config(path)
        if not (path / CHECKPOINT).exists() and _has_trained(path):
            raise ValueError(
                f"{name}: {path} has lost its {CHECKPOINT} and cannot go on; its weights still evaluate and encode"
            )
    elif found and _is_run(path):
        raise FileExistsError(
            f"{name}: {path} already holds a run; go on with it (--resume, resume=True) or take another folder"
        )
    elif found:
        raise FileExistsError(
            f"{name}: {path} is not empty and holds no run of nhl_fast ({_some(found)}); take a new folder"
        )
    return path


def check_output(value, name: str, inputs: Sequence = ()) -> Path:
    """A file that a command is to write: none of a run or a comparison, and none of the `inputs` that it reads.

    Raises:
        ValueError: it is one of those.
        FileNotFoundError: its folder is not there.
    """
    path = as_path(value, name)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{name}: {path} is a folder")
    if target.exists() and not target.is_file():
        raise ValueError(f"{name}: expected a regular file or a new one, but {path} is none")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name}: cannot write to {path}: no such folder")
    for read in inputs:
        if read is not None and target == Path(os.path.realpath(read)):
            raise ValueError(f"{name}: {path} is a file that this command reads; take another name")
    owner = _owner(target)
    if owner is not None:
        raise ValueError(f"{name}: {path} is a file of the run {owner}; take another name")
    if target.name in (COMPARISON, COMPARISON_TABLE) and target.exists():
        raise ValueError(f"{name}: {path} is the result of a comparison; take another name")
    return path


def _owner(target: Path) -> Path | None:
    """The run folder to which `target` (a real path) belongs by its place and name, there already or not."""
    folder, name = target.parent, target.name
    own = name in (CONFIG, CHECKPOINT, LOG, WEIGHTS, SPLIT, METRICS, METRICS_TABLE, LOCK)
    own |= name.startswith("model_") and name.endswith(".safetensors")
    if own and _is_run(folder):
        return folder
    return folder.parent if folder.name in (CODES, PICTURES) and _is_run(folder.parent) else None


def _is_run(path: Path) -> bool:
    """Whether a folder is a run's, or what is left of one."""
    with contextlib.suppress(OSError, ValueError):
        read_config(path)
        return True
    return sum((path / name).exists() for name in (CHECKPOINT, LOG, SPLIT)) >= 2


def _has_trained(path: Path) -> bool:
    log = path / LOG
    return (path / WEIGHTS).exists() or (log.is_file() and log.stat().st_size > 0)


def _ours(name: str) -> bool:
    return name == LOCK or is_temporary(name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(ascii, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ------------------------------------------------------------------------------------------- who owns the folder


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
            for folder in (path, path / CODES, path / PICTURES):
                remove_stale(folder)
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
    file = path / LOCK
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
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), os.stat(path / LOCK)):
            os.unlink(path / LOCK)
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
