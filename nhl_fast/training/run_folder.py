"""A run folder: its files, and what may be written where. Nothing here loads PyTorch."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.files import as_path, is_temporary, read_json

# What may differ when a run is resumed: how long it goes on, and where.
FREE = ("epochs", "patience", "device", "workers", "compile")


def free_settings(schedule: str) -> tuple[str, ...]:
    """The settings that may change when a run goes on; a schedule over all epochs fixes their number."""
    return FREE if schedule == "constant" else FREE[1:]


def _named(name: str) -> property:
    return property(lambda folder: folder.path / name)


class RunFolder:
    """The files of a run by their names, there or not; those of a comparison, too, which may share its folder.

    Raises:
        TypeError, ValueError: `path` is no path (`name` is the argument's).
    """

    config = _named("config.json")
    split = _named("split.json")
    checkpoint = _named("checkpoint.safetensors")
    log = _named("log.jsonl")
    metrics = _named("metrics.json")
    metrics_table = _named("metrics.csv")
    all_codes = _named("codes")
    all_pictures = _named("pictures")
    comparison = _named("compare.json")
    comparison_table = _named("compare.csv")
    lock = _named(".nhl_fast.lock")

    def __init__(self, path, name: str = "run"):
        self.path = as_path(path, name)

    def weights(self, length: int | str | None = None) -> Path:
        """The shared weights, or one length's best ("*": the pattern of their names)."""
        return self.path / ("model.safetensors" if length is None else f"model_{length}.safetensors")

    def codes(self, split: str) -> Path:
        """Packed codes of the "query" or "database" rows."""
        return self.all_codes / f"{split}.npy"

    def labels(self, split: str) -> Path:
        """Labels of the rows of `codes`."""
        return self.all_codes / f"{split}_labels.npy"

    def picture(self, name: str) -> Path:
        return self.all_pictures / f"{name}.png"

    def owns(self, path: Path) -> bool:
        """Whether a path is that of a file of a run here."""
        own = (self.config, self.split, self.checkpoint, self.log, self.metrics, self.metrics_table, self.lock)
        if path.parent == self.path and fnmatch.fnmatchcase(path.name, self.weights("*").name):
            return True
        return path in (*own, self.weights()) or path.parent in (self.all_codes, self.all_pictures)

    def is_run(self) -> bool:
        """Whether this is a run's folder, or what is left of one."""
        with contextlib.suppress(OSError, ValueError):
            self.read_config()
            return True
        return sum(file.exists() for file in (self.checkpoint, self.log, self.split)) >= 2

    def has_trained(self) -> bool:
        return self.weights().exists() or (self.log.is_file() and self.log.stat().st_size > 0)

    def read_config(self) -> dict:
        """{"config", "data", "data_fingerprint"} and, from newer runs, "environments".

        Raises:
            FileNotFoundError, ValueError: no such file, or one of something else.
        """
        file = self.config
        if not file.is_file():
            raise FileNotFoundError(f"run: {self.path} holds no {file.name}; is it the folder of a training run?")
        stored = read_json(file)
        keys = {"config": dict, "data": dict, "data_fingerprint": str}
        if not isinstance(stored, dict) or not all(isinstance(stored.get(k), t) for k, t in keys.items()):
            raise ValueError(f"run: {file} is not the settings of a training run")
        machines = stored.get("environments", [])
        if not isinstance(machines, list) or not all(isinstance(m, dict) for m in machines):
            raise ValueError(f"run: {file} is damaged: its environments are no list of entries")
        return stored

    def read_log(self) -> list[dict]:
        """The records of the log; none where there is no log."""
        if not self.log.exists():
            return []
        try:
            return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"run: {self.log} is damaged ({error})") from None


# ------------------------------------------------------------------------------------------- what may be written


def check_target(run_dir, resume: bool, name: str = "run_dir") -> Path:
    """The folder to train into: absent or empty or, with `resume`, a run that can go on.

    Raises:
        FileExistsError: it holds something, a run or not.
        FileNotFoundError, ValueError: there is no run to resume, or none that can go on.
        NotADirectoryError: it is a file.
    """
    folder = RunFolder(run_dir, name)
    path = folder.path
    above = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if above.exists() and not above.is_dir():
        raise NotADirectoryError(f"{name}: expected a folder, but {above} is a file")
    found = _foreign(folder) if path.is_dir() else []
    if resume:
        if not path.is_dir():
            raise FileNotFoundError(f"{name}: there is no run to resume, {path} does not exist")
        folder.read_config()
        if not folder.checkpoint.exists() and folder.has_trained():
            lost = folder.checkpoint.name
            raise ValueError(
                f"{name}: {path} has lost its {lost} and cannot go on; its weights still evaluate and encode"
            )
    elif found and folder.is_run():
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
    folder = RunFolder(target.parent)
    if target in (folder.comparison, folder.comparison_table) and target.exists():
        raise ValueError(f"{name}: {path} is the result of a comparison; take another name")
    return path


def _owner(target: Path) -> Path | None:
    """The run folder to which `target` (a real path) belongs by its place and name, there already or not."""
    for folder in map(RunFolder, target.parents[:2]):
        if folder.owns(target) and folder.is_run():
            return folder.path
    return None


def _foreign(folder: RunFolder) -> list[str]:
    """What lies in a folder besides its lock and files half-written."""
    return sorted(n for n in os.listdir(folder.path) if n != folder.lock.name and not is_temporary(n))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(ascii, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
