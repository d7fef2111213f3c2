"""A run folder: its files, and what may be written where. Nothing here loads PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.files import as_path, is_temporary, read_json

CONFIG, CHECKPOINT, LOG, WEIGHTS = "config.json", "checkpoint.safetensors", "log.jsonl", "model.safetensors"
SPLIT, METRICS, METRICS_TABLE = "split.json", "metrics.json", "metrics.csv"
CODES, PICTURES = "codes", "pictures"
COMPARISON, COMPARISON_TABLE = "compare.json", "compare.csv"
LOCK = ".nhl_fast.lock"
# What may differ when a run is resumed: how long it goes on, and where.
FREE = ("epochs", "patience", "device", "workers", "compile")


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


def read_log(path: Path) -> list[dict]:
    """The records of a run folder's log; none where there is no log."""
    log = path / LOG
    if not log.exists():
        return []
    try:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"run: {log} is damaged ({error})") from None


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
