"""Pictures in a folder per class, as torchvision's ImageFolder takes them; or in train/ and test/ of such folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..core import check, extras
from ..core.files import as_path
from . import splits
from .dataset import Table, check_class_names
from .images import SUFFIXES, FileRows, is_picture, resize_for
from .protocols import by_protocol

PROTOCOLS = ("holdout", "paper", "keep-train")
_QUERY, _VALIDATION = ("query", "test"), ("val", "valid", "validation")
_PARTS = ("train", "database", *_QUERY, *_VALIDATION)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """{class: its pictures, those of folders below it, too}; ValueError where pictures lie beside the classes."""
    beside = sorted(p for p in folder.iterdir() if is_picture(p))
    found = {sub.name: sorted(p for p in sub.rglob("*") if is_picture(p)) for sub in _folders(folder)}
    found = {name: pictures for name, pictures in found.items() if pictures}
    if beside or not found:
        got = f"{beside[0].name} beside them" if found else (beside[0].name if beside else "none")
        raise ValueError(
            f"root: expected a folder per class with pictures ({', '.join(SUFFIXES)}) in {folder}, got {got}"
        )
    return found


def _parts(root: Path) -> dict[str, dict[str, list[Path]]] | None:
    """{"train", "query", "database": their classes} where the folder is split so, and only so; else None."""
    subs = {sub.name.lower(): sub for sub in _folders(root)}
    held = [name for name in (*_QUERY, *_VALIDATION) if name in subs]
    if "train" not in subs or not held or not set(subs) <= set(_PARTS):
        return None
    if len(held) > 1 and held[1] not in _VALIDATION:
        raise ValueError(f"root: {root} holds both {held[0]} and {held[1]}; the queries could be of either")
    found = {"train": [_classes(subs["train"])], "query": [_classes(subs[held[0]])], "database": []}
    found["train"] += [_classes(subs[name]) for name in held[1:]]
    found["database"] = [_classes(subs["database"])] if "database" in subs else found["train"]
    return {
        part: {name: [p for one in several for p in one.get(name, ())] for one in several for name in one}
        for part, several in found.items()
    }


def load(
    root,
    protocol: str | None = None,
    queries_per_class: int | None = None,
    train_per_class: int | None = None,
    class_names=None,
    resize: int | None = None,
    image_size: int = 224,
    augment: bool = False,
    upright: bool = True,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    root = as_path(root, "root")
    if not root.is_dir():
        raise FileNotFoundError(f"root: no such folder: {root}")
    if protocol is not None:
        check.one_of(protocol, "protocol", PROTOCOLS)
    image_size = check.positive_int(image_size, "image_size")
    resize = resize_for(image_size, resize)
    augment, upright = check.flag(augment, "augment"), check.flag(upright, "upright")
    extras.require("PIL", "data", "opening pictures")
    parts = _parts(root)
    several = [_classes(root)] if parts is None else list(parts.values())
    names = sorted({name for classes in several for name in classes})
    rows: dict[Path, int] = {}
    for classes in several:
        for number, name in enumerate(names):
            rows.update(dict.fromkeys(classes.get(name, ()), number))
    labels = np.fromiter(rows.values(), np.int64, len(rows))
    places = {path: row for row, path in enumerate(rows)}
    given = {"queries_per_class": queries_per_class, "train_per_class": train_per_class}
    shown = [os.fsencode(name).decode("utf-8", "replace") for name in names]
    table = Table(
        name="folder",
        rows=FileRows(str(root), [str(path.relative_to(root)) for path in rows], resize, image_size, upright),
        labels=torch.from_numpy(labels),
        num_classes=len(names),
        input_kind="images",
        class_names=check_class_names(shown if class_names is None else class_names, len(names)),
        augment=augment,
    )

    def split(seed: int):
        if parts is None or protocol is not None:
            return by_protocol(labels, protocol, given, seed)
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: {root} has its own split; a protocol makes another, got None")
        ids = {
            part: [places[path] for pictures in classes.values() for path in pictures]
            for part, classes in parts.items()
        }
        train, query, database = (np.array(ids[name], np.int64) for name in ("train", "query", "database"))
        return splits.Indices(train, train[:0], query, database), "split of the folders"

    return table, split
