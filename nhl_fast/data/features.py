"""Feature vectors with labels, from files of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import existing_file
from ..core.names import PROTOCOLS
from . import splits
from .dataset import Table, check_class_names, single_or_multi
from .feature_files import SPLIT_NAMES, read_arrays
from .protocols import by_protocol
from .rows import TensorRows

_MAX_CLASSES = 1 << 20
_CHUNK = 8192


class FeatureRows(TensorRows):
    """Feature vectors (n, d) of any floating dtype, float32 on access, standardised if asked."""

    def __init__(self, values: torch.Tensor, standardize: bool):
        super().__init__(values)
        self._standardize = standardize

    def fit(self, train):
        if not self._standardize:
            return
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        for part in train.split(_CHUNK):
            total += self.values[part].double().sum(0)
        mean = total / len(train)
        squares = torch.zeros_like(mean)
        for part in train.split(_CHUNK):
            squares += (self.values[part].double() - mean).square().sum(0)
        deviation = (squares / len(train)).sqrt()
        deviation[deviation == 0] = 1  # a constant feature becomes zero, not NaN
        self.standardization = (mean.float(), deviation.float())

    def batch(self, rows):
        x = super().batch(rows)
        if self.standardization is None:
            return x
        mean, deviation = self.standardization
        return (x - mean) / deviation


def _features(value, path: Path) -> torch.Tensor:
    """`value` as a finite tensor (n, d) of float16, bfloat16 or float32; integers and bools become float32."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise TypeError(f"{path}: features: expected floating point or integers, got {check.describe(value)}")
        if value.dtype.kind != "f":
            value = value.astype(np.float32)
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C", copy=False))
    if not (value.is_floating_point() or value.is_complex()):
        value = value.float()
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{path}: features: expected floating point or integers, got {check.describe(value)}")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{path}: features: expected shape (n, d), not empty, got {check.describe(value)}")
    if value.dtype == torch.float64:
        value = value.float()
    for start in range(0, len(value), _CHUNK):
        bad = ~torch.isfinite(value[start : start + _CHUNK]).all(1)
        if bad.any():
            row = start + int(bad.int().argmax())
            raise ValueError(f"{path}: features: row {row} holds NaN, infinity or a number beyond float32")
    return value


def _labels(value: np.ndarray, num_rows: int, multi_label: bool | None, path: Path) -> tuple[torch.Tensor, int]:
    """Ids or multi-hot rows, and the number of classes. A column (n, 1) is ids."""
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim not in (1, 2) or len(value) != num_rows:
        raise ValueError(
            f"{path}: labels: expected ids ({num_rows},) or multi-hot rows ({num_rows}, C), "
            f"got {check.describe(value)}"
        )
    if value.ndim == 2:
        if value.dtype.kind not in "buif" or not ((value == 0) | (value == 1)).all():
            raise ValueError(f"{path}: labels: expected rows of zeros and ones, got {check.describe(value)}")
        if value.shape[1] == 0:
            raise ValueError(f"{path}: labels: expected at least 1 column, got {check.describe(value)}")
        return single_or_multi(value, multi_label), value.shape[1]
    if value.dtype.kind == "b" or (value.dtype.kind == "f" and ((np.abs(value) < 2**53) & (value % 1 == 0)).all()):
        value = value.astype(np.int64)
    if value.dtype.kind not in "ui":
        raise TypeError(
            f"{path}: labels: expected whole numbers as class ids, or strings, got {check.describe(value)}"
        )
    if multi_label:
        raise ValueError(f"multi_label: True needs multi-hot rows, but {path} holds ids")
    outside = (value < 0) | (value >= _MAX_CLASSES)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"{path}: labels: row {row} is {value[row]}, expected 0 to {_MAX_CLASSES - 1}")
    return torch.from_numpy(value.astype(np.int64)), int(value.max()) + 1


def _named_labels(value: np.ndarray, names, path: Path) -> tuple[np.ndarray, list[str]]:
    """Strings (n,) or (n, 1) as ids, and the classes: those of `names`, or all that occur, sorted."""
    words = np.char.decode(value, "utf-8", "replace") if value.dtype.kind == "S" else value
    words = words[:, 0] if words.ndim == 2 and words.shape[1] == 1 else words
    if words.ndim != 1:
        raise ValueError(f"{path}: labels: expected one string a row, got {check.describe(value)}")
    if names is None:
        classes, ids = np.unique(words, return_inverse=True)
        return ids.astype(np.int64), classes.tolist()
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(words.tolist()) - set(number)):
        raise ValueError(f"{path}: labels: {unknown[0]!r} is none of class_names")
    return np.array([number[word] for word in words.tolist()], np.int64), list(names)


def _split_of_file(arrays: dict, num_rows: int, path: Path) -> splits.Indices | None:
    """The split that the file itself holds, as row ids or as words."""
    present = [name for name in SPLIT_NAMES if name in arrays]
    if not present and "split" not in arrays:
        return None
    if present and "split" in arrays:
        raise ValueError(f"{path}: expected either 'split' or {', '.join(map(repr, present))}, got both")
    if "split" in arrays:
        words = arrays["split"]
        if words.shape != (num_rows,) or words.dtype.kind not in "US":
            raise ValueError(f"{path}: split: expected {num_rows} strings, got {check.describe(words)}")
        words = np.char.decode(words, "ascii", "replace") if words.dtype.kind == "S" else words
        unknown = ~np.isin(words, SPLIT_NAMES)
        if unknown.any():
            row = int(np.argmax(unknown))
            raise ValueError(f"{path}: split: row {row} is {str(words[row])!r}, expected one of {SPLIT_NAMES}")
        ids = {name: np.flatnonzero(words == name) for name in SPLIT_NAMES}
        if not len(ids["database"]):
            del ids["database"]
    else:
        ids = {name: splits.row_ids(arrays[name], f"{path}: {name}", num_rows) for name in present}
    for name in ("train", "query"):
        if name not in ids:
            raise ValueError(f"{path}: expected an array {name!r} beside {', '.join(map(repr, ids))}")
    database = ids.get("database")
    if database is None:
        database = np.setdiff1d(np.arange(num_rows), ids["query"])
    return splits.Indices(ids["train"], ids["train"][:0], ids["query"], database)


def load(
    path,
    labels=None,
    protocol: str | None = None,
    queries_per_class: int | None = None,
    train_per_class: int | None = None,
    num_queries: int | None = None,
    num_train: int | None = None,
    multi_label: bool | None = None,
    class_names=None,
    standardize: bool = False,
):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    if protocol is not None:
        check.one_of(protocol, "protocol", PROTOCOLS)
    if not isinstance(standardize, bool):
        raise TypeError(f"standardize: expected True or False, got {check.describe(standardize)}")
    path = existing_file(path, "path")
    arrays = read_arrays(path, labels)
    features = _features(arrays["features"], path)
    names = arrays["class_names"].tolist() if class_names is None and "class_names" in arrays else class_names
    values = arrays["labels"]
    if values.dtype.kind in "US":
        values, names = _named_labels(values, names, path)
    targets, num_classes = _labels(values, len(features), multi_label, path)
    num_classes = len(names) if arrays["labels"].dtype.kind in "US" else num_classes
    table = Table(
        name="features",
        rows=FeatureRows(features, standardize),
        labels=targets,
        num_classes=num_classes,
        input_kind="features",
        class_names=check_class_names(names, num_classes),
    )
    given = {
        "queries_per_class": queries_per_class,
        "train_per_class": train_per_class,
        "num_queries": num_queries,
        "num_train": num_train,
    }

    def split(seed: int):
        own = _split_of_file(arrays, len(features), path) if protocol is None else None
        if own is not None:
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}: {path} has its own split; a protocol makes another, got None")
            return own, "split of the file"
        return by_protocol(targets.numpy(), protocol, given, seed)

    return table, split
