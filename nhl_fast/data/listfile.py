"""The field's list files: train.txt, test.txt, database.txt, each line a path and 0/1 labels, one a class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .. import _check, backend
from ..files import as_path, existing_file
from . import splits
from .core import Table, check_class_names, single_or_multi
from .images import FileRows

_FILES = {"train": "train.txt", "query": "test.txt", "database": "database.txt"}


class _Reader:
    """Collects the rows of several list files: one row a picture, however many files name it."""

    def __init__(self, image_root: Path):
        self.image_root = image_root
        self.rows: dict[str, int] = {}
        self.labels: list[bytes] = []
        self.seen: list[dict[str, str]] = []
        self.num_classes: int | None = None

    def read(self, file: Path, name: str) -> np.ndarray:
        """The row ids of one list file, in its order. Errors name the file and the line."""
        ids = []
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    ids.append(self._row(line, name, f"{file}, line {number}"))
        if not ids:
            raise ValueError(f"{file}: expected at least one line 'path l1 l2 ... lC', got none")
        return np.array(ids, np.int64)

    def _row(self, line: str, name: str, where: str) -> int:
        path, *columns = line.split()
        bad = next((column for column in columns if column not in ("0", "1")), None)
        if bad is not None:
            raise ValueError(f"{where}: expected labels 0 or 1 after a path without blanks, got {bad!r:.60}")
        if self.num_classes is None:
            self.num_classes = len(columns)
        if len(columns) != self.num_classes or len(columns) < 2:
            expected = "at least 2" if self.num_classes < 2 else f"{self.num_classes}, as in the first line,"
            raise ValueError(f"{where}: expected a path and {expected} labels, got {len(columns)} labels")
        if os.path.isabs(path) or ".." in path.split("/"):
            raise ValueError(f"{where}: expected a path below the image directory, got {path!r}")
        path = os.path.normpath(path)
        packed = "".join(columns).encode()
        row = self.rows.get(path)
        if row is None:
            if not os.path.isfile(os.path.join(self.image_root, path)):
                raise ValueError(f"{where}: no such image file: {os.path.join(self.image_root, path)!r}")
            row = self.rows[path] = len(self.labels)
            self.labels.append(packed)
            self.seen.append({})
        seen = self.seen[row]
        if self.labels[row] != packed:
            raise ValueError(f"{where}: {path!r} has other labels in {next(iter(seen.values()))}")
        if name in seen:
            raise ValueError(f"{where}: {path!r} is listed twice, first in {seen[name]}")
        if seen and (name == "query" or "query" in seen):
            other = next(iter(seen.values())) if name == "query" else seen["query"]
            raise ValueError(f"{where}: {path!r} is also in {other}: queries must be in no other list")
        seen[name] = where
        return row


def load(
    root,
    image_root=None,
    multi_label: bool | None = None,
    class_names=None,
    resize: int = 256,
    image_size: int = 224,
    augment: bool = False,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    root = as_path(root, "root")
    image_root = root if image_root is None else as_path(image_root, "image_root")
    image_size = _check.positive_int(image_size, "image_size")
    resize = _check.positive_int(resize, "resize", minimum=image_size)
    if not isinstance(augment, bool):
        raise TypeError(f"augment: expected True or False, got {_check.describe(augment)}")
    backend.require("PIL", "data", "load_dataset('list')")
    files = {name: existing_file(root / file, "root") for name, file in _FILES.items()}
    reader = _Reader(image_root)
    ids = {name: reader.read(file, name) for name, file in files.items()}
    rows = np.frombuffer(b"".join(reader.labels), np.uint8).reshape(-1, reader.num_classes) - ord("0")
    table = Table(
        name="list",
        rows=FileRows(str(image_root), list(reader.rows), resize, image_size),
        labels=single_or_multi(rows, multi_label),
        num_classes=reader.num_classes,
        input_kind="images",
        class_names=check_class_names(class_names, reader.num_classes),
        augment=augment,
    )

    def split(seed: int):
        return splits.Indices(ids["train"], ids["train"][:0], ids["query"], ids["database"]), "list files"

    return table, split
