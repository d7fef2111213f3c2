"""List files: train.txt, test.txt, database.txt, each line a path and its labels: 0 or 1 for every class, or ids."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core import check, extras
from ..core.files import as_path, existing_file
from . import splits
from .dataset import Table, check_class_names, single_or_multi
from .images import FileRows, resize_for

_BLANKS = " \t\r\n\f\v"
_FILES = {"train": "train.txt", "query": "test.txt", "database": "database.txt"}
# What stands between path and labels: blanks, tabs and commas alone; U+00A0 does not.
_FIELD = re.compile(r"[^ \t,]+")
_ID = re.compile(r"[0-9]{1,6}")


class _Line:
    """A line, taken apart from its right: a path, which may hold separators, and labels."""

    def __init__(self, line: str):
        self.text = line.strip(_BLANKS)
        spans = [field.span() for field in _FIELD.finditer(self.text)]
        self.fields = [self.text[slice(*span)].strip(_BLANKS) for span in spans]
        self._ends = [end for _, end in spans]
        self.ones = self._trailing(lambda field: field in ("0", "1"))  # how many labels 0 or 1 it may end in
        self.ids = self._trailing(lambda field: _ID.fullmatch(field) is not None)  # how many class ids

    def _trailing(self, fits) -> int:
        count = 0
        while count < len(self.fields) - 1 and fits(self.fields[-1 - count]):
            count += 1
        return count

    def path(self, labels: int) -> str:
        return self.text[: self._ends[-1 - labels]].rstrip(_BLANKS)

    def last(self, labels: int) -> list[str]:
        return self.fields[len(self.fields) - labels :]


class _Reader:
    """Collects the rows of several list files: one row a picture, however many files name it."""

    def __init__(self, image_root: Path):
        self.image_root = image_root
        self.rows: dict[str, int] = {}
        self.labels: list[bytes] = []
        self.seen: list[dict[str, str]] = []
        self.columns: int | None = None  # of labels 0 or 1; 0: the labels are class ids

    def read(self, file: Path, name: str) -> np.ndarray:
        """The row ids of one list file, in its order. Errors name the file and the line."""
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as handle:
            lines = [(number, line) for number, line in enumerate(handle, 1) if line.strip(_BLANKS)]
        if not lines:
            raise ValueError(f"{file}: expected at least one line 'path l1 l2 ... lC' or 'path id', got none")
        if not self.labels:
            self._look([line for _, line in lines])
        return np.array([self._row(line, name, f"{file}, line {number}") for number, line in lines], np.int64)

    def _exists(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.image_root, path))

    def _look(self, lines: Sequence[str]) -> None:
        """Find out from the first list, above all its first line, what stands in all.

        A name may end in " 0" or " 1" and hold commas: here only the files there can tell that from labels.
        """
        first = _Line(lines[0])
        counts = [*range(first.ones, 1, -1), *([0] if first.ids else [])]
        there = [n for n in counts if self._exists(first.path(n) if n else first.path(self._ids(first)))]
        self.columns = next(iter(there or counts), None)
        if self.columns == 2 and sorted(first.last(2)) == ["0", "1"] and self._ids_follow(lines):
            self.columns = 0

    def _ids_follow(self, lines: Sequence[str]) -> bool:
        """Whether what begins like labels of two classes goes on with more ids, or fewer, and others than 0 and 1."""
        found = [line.last(self._ids(line)) for line in map(_Line, lines) if line.ids]
        return any(len(ids) != 2 for ids in found) and any(int(i) > 1 for ids in found for i in ids)

    def _ids(self, line: _Line) -> int:
        """How many class ids a line ends in: as few as leave a file's name; all, where none is there."""
        return next((n for n in range(1, line.ids) if self._exists(line.path(n))), line.ids)

    def _parts(self, line: str, where: str) -> tuple[str, list[str]]:
        """The path and the labels of a line."""
        parts = _Line(line)
        if self.columns == 0:
            if not parts.ids:
                raise ValueError(
                    f"{where}: expected a class id after the path, as in the first line, got {parts.fields[-1]!r:.60}"
                )
            count = self._ids(parts)
            ids = sorted(map(int, parts.last(count)))
            twice = [a for a, b in itertools.pairwise(ids) if a == b]
            if twice and self._exists(parts.path(count)):
                raise ValueError(f"{where}: expected every class id once, got {twice[0]} twice")
            return parts.path(count), list(map(str, ids))
        found, count = parts.ones, parts.ones if self.columns is None else self.columns
        if found < max(count, 2) and found < len(parts.fields) - 1 and not self._exists(parts.path(found)):
            expected = "labels 0 or 1" if self.columns else "a class id or labels 0 or 1"
            raise ValueError(f"{where}: expected {expected} after the path, got {parts.fields[-1 - found]!r:.60}")
        if found < max(count, 2) or (found > count and not self._exists(parts.path(count))):
            expected = f"{count}, as in the first line, labels" if self.columns else "a class id or at least 2 labels"
            raise ValueError(f"{where}: expected a path and {expected}, got {found} labels")
        return parts.path(count), parts.last(count)

    def _row(self, line: str, name: str, where: str) -> int:
        path, columns = self._parts(line, where)
        if os.path.isabs(path) or ".." in path.split("/"):
            raise ValueError(f"{where}: expected a path below the image directory, got {path!r}")
        path = os.path.normpath(path)
        packed = ("" if self.columns else " ").join(columns).encode()
        row = self.rows.get(path)
        if row is None:
            if not self._exists(path):
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

    def table(self, multi_label: bool | None) -> tuple[torch.Tensor, int]:
        """The labels of all rows, ids or multi-hot, and the number of classes."""
        if self.columns:
            rows = np.frombuffer(b"".join(self.labels), np.uint8).reshape(-1, self.columns) - ord("0")
            return single_or_multi(rows, multi_label), self.columns
        ids = [[int(i) for i in label.split()] for label in self.labels]
        classes = max(map(max, ids)) + 1
        if multi_label in (None, False) and all(len(row) == 1 for row in ids):
            return torch.tensor(ids)[:, 0], classes
        rows = np.zeros((len(ids), classes), np.uint8)
        rows[np.repeat(np.arange(len(ids)), list(map(len, ids))), np.concatenate(ids)] = 1
        return single_or_multi(rows, multi_label), classes


def load(
    root,
    image_root=None,
    multi_label: bool | None = None,
    class_names=None,
    resize: int | None = None,
    image_size: int = 224,
    augment: bool = False,
    upright: bool = True,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    root = as_path(root, "root")
    image_root = root if image_root is None else as_path(image_root, "image_root")
    image_size = check.positive_int(image_size, "image_size")
    resize = resize_for(image_size, resize)
    augment, upright = check.flag(augment, "augment"), check.flag(upright, "upright")
    extras.require("PIL", "data", "opening pictures")
    files = {name: existing_file(root / file, "root") for name, file in _FILES.items()}
    reader = _Reader(image_root)
    ids = {name: reader.read(file, name) for name, file in files.items()}
    labels, num_classes = reader.table(multi_label)
    table = Table(
        name="list",
        rows=FileRows(str(image_root), list(reader.rows), resize, image_size, upright),
        labels=labels,
        num_classes=num_classes,
        input_kind="images",
        class_names=check_class_names(class_names, num_classes),
        augment=augment,
    )

    def split(seed: int):
        return splits.Indices(ids["train"], ids["train"][:0], ids["query"], ids["database"]), "list files"

    return table, split
