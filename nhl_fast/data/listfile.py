"""The field's list files: train.txt, test.txt, database.txt, each line a path and 0/1 labels, one a class."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..core import check, extras
from ..core.files import as_path, existing_file
from . import splits
from .dataset import Table, check_class_names, single_or_multi
from .images import FileRows

_BLANKS = " \t\r\n\f\v"
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
                if line.strip(_BLANKS):
                    ids.append(self._row(line, name, f"{file}, line {number}"))
        if not ids:
            raise ValueError(f"{file}: expected at least one line 'path l1 l2 ... lC', got none")
        return np.array(ids, np.int64)

    def _exists(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.image_root, path))

    def _parts(self, line: str, where: str) -> tuple[str, list[str]]:
        """The path, which may hold blanks, and the labels. Only blanks and tabs separate, U+00A0 does not."""
        text = line.strip(_BLANKS)
        starts = [field.span() for field in re.finditer(r"[^ \t]+", text)]
        fields = [text[slice(*span)] for span in starts]
        found = 0
        while found < len(fields) - 1 and fields[-1 - found] in ("0", "1"):
            found += 1

        def path(labels: int) -> str:
            return text[: starts[-1 - labels][1]]

        count = self.num_classes
        if count is None:
            # A name may end in " 0" or " 1": in the first line only the files there can tell that from labels.
            count = next((n for n in range(found, 1, -1) if self._exists(path(n))), found)
        if found < max(count, 2) and found < len(fields) - 1 and not self._exists(path(found)):
            raise ValueError(f"{where}: expected labels 0 or 1 after the path, got {fields[-1 - found]!r:.60}")
        if found < max(count, 2) or (found > count and not self._exists(path(count))):
            expected = "at least 2" if self.num_classes is None else f"{count}, as in the first line,"
            raise ValueError(f"{where}: expected a path and {expected} labels, got {found} labels")
        self.num_classes = count
        return path(count), fields[len(fields) - count :]

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


def load(
    root,
    image_root=None,
    multi_label: bool | None = None,
    class_names=None,
    resize: int = 256,
    image_size: int = 224,
    augment: bool = False,
    upright: bool = True,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    root = as_path(root, "root")
    image_root = root if image_root is None else as_path(image_root, "image_root")
    image_size = check.positive_int(image_size, "image_size")
    resize = check.positive_int(resize, "resize", minimum=image_size)
    augment, upright = check.flag(augment, "augment"), check.flag(upright, "upright")
    extras.require("PIL", "data", "load_dataset('list')")
    files = {name: existing_file(root / file, "root") for name, file in _FILES.items()}
    reader = _Reader(image_root)
    ids = {name: reader.read(file, name) for name, file in files.items()}
    rows = np.frombuffer(b"".join(reader.labels), np.uint8).reshape(-1, reader.num_classes) - ord("0")
    table = Table(
        name="list",
        rows=FileRows(str(image_root), list(reader.rows), resize, image_size, upright),
        labels=single_or_multi(rows, multi_label),
        num_classes=reader.num_classes,
        input_kind="images",
        class_names=check_class_names(class_names, reader.num_classes),
        augment=augment,
    )

    def split(seed: int):
        return splits.Indices(ids["train"], ids["train"][:0], ids["query"], ids["database"]), "list files"

    return table, split
