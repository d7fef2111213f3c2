"""CIFAR-10 from its official files, binary or Python layout. Nothing is downloaded."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import as_path
from . import splits
from .dataset import Table
from .images import Normalize
from .rows import TensorRows
from .unpickle import Refused, load_batch

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PROTOCOLS = ("paper", "keep-train", "full")
RECORDS = 10_000  # in each of the six files
_PIXELS = 3 * 32 * 32
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def _find(root: Path) -> tuple[list[Path], bool]:
    """The six files, training files first, and whether they are binary."""
    for folder, suffix in (
        (root, ".bin"),
        (root / "cifar-10-batches-bin", ".bin"),
        (root, ""),
        (root / "cifar-10-batches-py", ""),
    ):
        files = [folder / (name + suffix) for name in _BATCHES]
        present = [file.is_file() for file in files]
        if all(present):
            return files, suffix == ".bin"
        if any(present):
            missing = files[present.index(False)]
            raise FileNotFoundError(errno.ENOENT, "root: CIFAR-10 is not complete, no such file", str(missing))
    raise FileNotFoundError(
        errno.ENOENT,
        "root: expected CIFAR-10's data_batch_1.bin .. 5.bin and test_batch.bin (or data_batch_1 .. 5 and "
        "test_batch), there or in cifar-10-batches-bin or cifar-10-batches-py, not found in",
        str(root),
    )


def _size(path: Path, least: int, most: int) -> None:
    size = path.stat().st_size
    if not least <= size <= most:
        expected = f"{least:,} bytes" if least == most else f"{least:,} to {most:,} bytes"
        raise ValueError(f"{path}: expected {expected}, got {size:,}: cut short, or not of CIFAR-10")


def read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (RECORDS, 3, 32, 32) and labels (RECORDS,), uint8, of a binary file."""
    size = RECORDS * (1 + _PIXELS)
    _size(path, size, size)
    records = np.fromfile(path, np.uint8).reshape(RECORDS, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same of a Python file, whose pickle is read without running it."""
    _size(path, RECORDS * _PIXELS, RECORDS * (_PIXELS + 100) + 65_536)
    try:
        content = load_batch(path.read_bytes())
    except Refused as error:
        raise ValueError(f"{path}: refused, not an official CIFAR-10 file: {error}") from None
    pictures, labels = content.get(b"data"), content.get(b"labels")
    if not isinstance(pictures, np.ndarray) or pictures.shape != (RECORDS, _PIXELS):
        raise ValueError(f"{path}: data: expected uint8 ({RECORDS}, {_PIXELS}), got {check.describe(pictures)}")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise ValueError(f"{path}: labels: expected a list of integers from 0 to 9")
    if len(labels) != RECORDS:
        raise ValueError(f"{path}: labels: expected {RECORDS}, got {len(labels)}")
    return pictures.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def load(
    root,
    protocol: str = "paper",
    queries_per_class: int | None = None,
    train_per_class: int | None = None,
    image_size: int | None = None,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    check.one_of(protocol, "protocol", PROTOCOLS)
    given = {"queries_per_class": queries_per_class, "train_per_class": train_per_class}
    for name, value in given.items():
        if value is not None and protocol == "full":
            raise ValueError(f"{name}: protocol 'full' takes all rows, expected None, got {value!r}")
    queries = 100 if queries_per_class is None else check.positive_int(queries_per_class, "queries_per_class")
    training = 500 if train_per_class is None else check.positive_int(train_per_class, "train_per_class")
    if image_size is not None:
        image_size = check.positive_int(image_size, "image_size")
    files, binary = _find(as_path(root, "root"))
    pictures = np.empty((RECORDS * len(files), 3, 32, 32), np.uint8)
    labels = np.empty(len(pictures), np.int64)
    for i, file in enumerate(files):
        part = slice(i * RECORDS, (i + 1) * RECORDS)
        pictures[part], labels[part] = (read_binary if binary else read_python)(file)
        if labels[part].max() > 9:
            bad = int(np.argmax(labels[part] > 9))
            raise ValueError(f"{file}: record {bad} has label {labels[part][bad]}, expected 0 to 9")
    size = image_size or 32
    table = Table(
        name="cifar10",
        rows=TensorRows(torch.from_numpy(pictures), transform=Normalize(image_size), input_shape=(3, size, size)),
        labels=torch.from_numpy(labels),
        num_classes=10,
        input_kind="images",
        class_names=list(CLASS_NAMES),
    )

    def split(seed: int):
        if protocol == "full":
            return splits.leading(len(labels), 5 * RECORDS), protocol
        return splits.pooled(labels, queries, training, protocol == "keep-train", seed), protocol

    return table, split
