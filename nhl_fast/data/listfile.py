"""List files: train.txt, test.txt, database.txt, each line a path and 0/1 labels, one a class, or a class id."""

from __future__ import annotations

import os
import re
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
# What stands between path and labels. Only blanks and tabs, or commas, do; U+00A0 does not.
_FIELDS = {"blanks": re.compile(r"[^ \t]+"), "commas": re.compile(r"[^,]+")}
_ID = re.compile(r"[0-9]{1,6}")


class _Line:
    """A line, taken apart from its right: a path, which may hold separators, and labels."""

    def __init__(self, line: str, separator: str):
        self.text = line.strip(_BLANKS)
        spans = [field.span() for field in _FIELDS[separator].finditer(self.text)]
        self.fields = [self.text[slice(*span)].strip(_BLANKS) for span in spans]
        self._ends = [end for _, end in spans]
        self.ones = 0  # how many labels 0 or 1 it may end in
        while self.ones < len(self.fields) - 1 and self.fields[-1 - self.ones] in ("0", "1"):
            self.ones += 1
        self.has_id = len(self.fields) > 1 and _ID.fullmatch(self.fields[-1]) is not None

    def path(self, labels: int) -> str:
        return self.text[: self._ends[-1 - labels]].rstrip(_BLANKS)


class _Reader:
    """Collects the rows of several list files: one row a picture, however many files name it."""

    def __init__(self, image_root: Path):
        self.image_root = image_root
        self.rows: dict[str, int] = {}
        self.labels: list[bytes] = []
        self.seen: list[dict[str, str]] = []
        self.separator: str | None = None
        self.columns: int | None = None  # of labels 0 or 1; 0: the label is a class id

    def read(self, file: Path, name: str) -> np.ndarray:
        """The row ids of one list file, in its order. Errors name the file and the line."""
        ids = []
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip(_BLANKS):
                    ids.append(self._row(line, name, f"{file}, line {number}"))
        if not ids:
            raise ValueError(f"{file}: expected at least one line 'path l1 l2 ... lC' or 'path id', got none")
        return np.array(ids, np.int64)

    def _exists(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.image_root, path))

    def _look(self, line: str) -> None:
        """Find out from the first line what stands in all.

        A name may end in " 0" or " 1" and hold commas: here only the files there can tell that from labels.
        """
        lines = {separator: _Line(line, separator) for separator in _FIELDS}
        counts = [(s, n) for s, one in lines.items() for n in (*range(one.ones, 1, -1), *([0] if one.has_id else []))]
        there = [(s, n) for s, n in counts if self._exists(lines[s].path(max(n, 1)))]
        self.separator, self.columns = next(iter(there or counts), ("blanks", None))

    def _parts(self, line: str, where: str) -> tuple[str, list[str]]:
        """The path and the labels of a line."""
        if self.separator is None:
            self._look(line)
        parts = _Line(line, self.separator)
        if self.columns == 0:
            if not parts.has_id:
                raise ValueError(
                    f"{where}: expected a class id after the path, as in the first line, got {parts.fields[-1]!r:.60}"
                )
            return parts.path(1), [str(int(parts.fields[-1]))]
        found, count = parts.ones, parts.ones if self.columns is None else self.columns
        last = len(parts.fields) - 1
        if found < max(count, 2) and found < last and not self._exists(parts.path(found)):
            expected = (
                "labels 0 or 1 after the path" if self.columns else "a class id or labels 0 or 1 after the path"
            )
            raise ValueError(f"{where}: expected {expected}, got {parts.fields[-1 - found]!r:.60}")
        if found < max(count, 2) or (found > count and not self._exists(parts.path(count))):
            expected = f"{count}, as in the first line, labels" if self.columns else "a class id or at least 2 labels"
            raise ValueError(f"{where}: expected a path and {expected}, got {found} labels")
        return parts.path(count), parts.fields[last + 1 - count :]

    def _row(self, line: str, name: str, where: str) -> int:
        path, columns = self._parts(line, where)
        if os.path.isabs(path) or ".." in path.split("/"):
            raise ValueError(f"{where}: expected a path below the image directory, got {path!r}")
        path = os.path.normpath(path)
        packed = "".join(columns).encode()
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
        if multi_label:
            raise ValueError("multi_label: True needs labels 0 or 1, one a class, but the lists hold class ids")
        if multi_label not in (None, False):
            raise TypeError(f"multi_label: expected True, False or None, got {check.describe(multi_label)}")
        ids = torch.tensor([int(label) for label in self.labels])
        return ids, int(ids.max()) + 1


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
    extras.require("PIL", "data", "load_dataset('list')")
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
