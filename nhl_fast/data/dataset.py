"""What every data set looks like to training and evaluation: rows, splits of them, and the four splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from ..core import check
from ..core.labels import check_labels
from . import splits
from .rows import Rows, TensorRows


class Split(Dataset):
    """Some rows of a data set, a map-style torch Dataset: item i is (input, label, i).

    Attributes:
        name: "train", "validation", "query" or "database".
        labels: ids (N,) int64, or multi-hot rows (N, C) uint8.
        indices: row ids in the source, (N,) int64.
        in_memory: True where `batch` is cheap; False where pictures are opened one by one (a DataLoader
            with workers is then the way).
        augmented: True where an item is cropped and flipped at random, by (seed, epoch, i).
    """

    def __init__(self, name: str, rows: Rows, labels: torch.Tensor, indices, seed: int | None = None):
        self.name = name
        self.rows = rows
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.labels = labels.index_select(0, self.indices)
        self.augmented = seed is not None
        self._seed = seed
        # Shared memory, so that DataLoader workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_() if self.augmented else None

    @property
    def in_memory(self) -> bool:
        return self.rows.in_memory

    @cached_property
    def inputs(self) -> torch.Tensor:
        """All inputs, (N, ...): float32 features, or uint8 pictures (N, C, H, W) that `batch` normalises.

        Gathered at the first use and kept. AttributeError where the rows are not in memory.
        """
        if not self.in_memory:
            raise AttributeError(f"{self.name}: pictures are opened one by one: use batch() or a DataLoader")
        return self.rows.stored(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random crops and flips items show (no effect without augmentation)."""
        epoch = check.positive_int(epoch, "epoch", minimum=0)
        if self._epoch is not None:
            self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def _position(self, i) -> int:
        position = i + len(self) if i < 0 else i
        if not 0 <= position < len(self):
            raise IndexError(f"{self.name}: expected an index below {len(self)}, got {i}")
        return int(position)

    def __getitem__(self, i):
        i = self._position(i)
        rng = np.random.default_rng([self._seed, int(self._epoch), i]) if self.augmented else None
        return self.rows.item(int(self.indices[i]), rng), self.labels[i], i

    def batch(self, index) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, labels) of several items at once.

        Args:
            index: (n,) integer tensor, array or list of positions in the split, a bool mask, or a slice.

        Returns:
            float32 (n, *input_shape), and (n,) int64 ids or (n, C) uint8 multi-hot rows.
        """
        if not isinstance(index, slice):
            index = torch.as_tensor(index).cpu()
            if index.ndim != 1:
                raise ValueError(f"index: expected 1 dimension, got {check.describe(index)}")
            if index.is_floating_point() and index.numel():
                raise TypeError(f"index: expected integers, got {check.describe(index)}")
            if index.dtype != torch.bool:
                index = index.long()
        if self.augmented:
            positions = torch.arange(len(self))[index].tolist()
            items = [self[i][0] for i in positions]
            return torch.stack(items) if items else self.rows.batch(self.indices[:0]), self.labels[index]
        return self.rows.batch(self.indices[index]), self.labels[index]

    def raw(self, i) -> np.ndarray | None:
        """The picture of item i, uint8 (H, W) or (H, W, 3); None where the rows are no pictures."""
        return self.rows.raw(int(self.indices[self._position(i)]))

    def file_name(self, i) -> str | None:
        """The file of item i, below the data set's directory; None where items are in no files of their own."""
        return self.rows.file_name(int(self.indices[self._position(i)]))

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} items)"


def single_or_multi(rows: np.ndarray, multi_label: bool | None) -> torch.Tensor:
    """Labels from 0/1 rows (n, C): ids (n,) int64 where every row has exactly one 1, else uint8 multi-hot.

    `multi_label` True keeps the rows; False raises ValueError where a row has another number of ones.
    """
    if multi_label not in (None, True, False):
        raise TypeError(f"multi_label: expected True, False or None, got {check.describe(multi_label)}")
    rows = rows.astype(np.uint8)
    ones = rows.sum(1, dtype=np.int64)
    if multi_label or (multi_label is None and (ones != 1).any()):
        return torch.from_numpy(rows)
    if (ones != 1).any():
        bad = int(np.argmax(ones != 1))
        raise ValueError(f"multi_label: False needs one class a row, but row {bad} has {ones[bad]}")
    return torch.from_numpy(rows.argmax(1).astype(np.int64))


def check_class_names(names, num_classes: int) -> list[str] | None:
    """`names` as a list of `num_classes` strings, or None."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names: expected a sequence of strings, got {check.describe(names)}")
    if len(names) != num_classes:
        raise ValueError(f"class_names: expected {num_classes} names, got {len(names)}")
    return list(names)


@dataclass(eq=False)
class Table:
    """A data set before it is split: rows, labels and names."""

    name: str
    rows: Rows
    labels: torch.Tensor
    num_classes: int
    input_kind: str
    class_names: list[str] | None = None
    augment: bool = False
    title: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 of all labels (and of the file names, for list files), in row order."""
        array = self.labels.numpy()
        digest = hashlib.sha256(f"{array.shape} {self.num_classes}".encode())
        digest.update(array.astype("<i8" if array.ndim == 1 else "u1").tobytes())
        digest.update(self.rows.identity())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalData:
    """A data set for retrieval.

    Queries never train and are never in the database. `validation` holds queries for choosing a model, taken
    out of the training rows (10% of every class by default), and they are ranked against
    `validation_database`, which is the remaining training rows without augmentation: no choice of a model
    looks at the queries, or at labels of the database that training did not have.

    Attributes:
        name: what was loaded ("digits", "cifar10", ...).
        num_classes: number of classes C.
        multi_label: True where labels are multi-hot rows (N, C) uint8, False where they are ids (N,) int64.
        class_names: C names, or None.
        input_kind: "features" or "images".
        input_shape: shape of one input.
        train, validation, query, database, validation_database: the splits.
        protocol: how the rows were split.
        seed: of the split.
        fingerprint: SHA-256 of all labels.
        title: what titles call it: the file of features or the folder of lists, else the name.
    """

    name: str
    num_classes: int
    multi_label: bool
    class_names: list[str] | None
    input_kind: str
    input_shape: tuple[int, ...]
    train: Split
    validation: Split
    query: Split
    database: Split
    validation_database: Split
    protocol: str
    seed: int
    fingerprint: str
    num_rows: int
    title: str

    @classmethod
    def from_table(
        cls, table: Table, indices: splits.Indices, protocol: str, seed: int, augment_seed: int | None = None
    ) -> RetrievalData:
        """Split `table` by row ids; `augment_seed` (default `seed`) is that of random crops and flips."""
        indices = splits.check(indices, len(table.labels))
        augment_seed = seed if augment_seed is None else augment_seed
        table.rows.fit(torch.from_numpy(indices.train))
        parts = {name: Split(name, table.rows, table.labels, getattr(indices, name)) for name in splits.NAMES}
        parts["validation_database"] = parts["train"]
        if table.augment:
            parts["train"] = Split("train", table.rows, table.labels, indices.train, augment_seed)
        return cls(
            name=table.name,
            num_classes=table.num_classes,
            multi_label=table.labels.ndim == 2,
            class_names=table.class_names,
            input_kind=table.input_kind,
            input_shape=table.rows.input_shape,
            protocol=protocol,
            seed=seed,
            fingerprint=table.fingerprint(),
            num_rows=len(table.labels),
            title=table.title or table.name,
            **parts,
        )

    @classmethod
    def from_tensors(
        cls,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        *,
        train,
        query,
        database=None,
        validation: float = 0.1,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        name: str = "tensors",
        seed: int = 0,
    ) -> RetrievalData:
        """A data set from tensors in memory.

        Args:
            inputs: (n, ...) floating point.
            labels: class ids (n,) or multi-hot rows (n, C).
            train, query, database: row ids; `database` None takes every row that is no query.
            validation: fraction of the training rows of every class that become validation queries.

        Raises:
            TypeError, ValueError: a wrong shape or dtype, a label or row id out of range, or a row that is
                both a query and a training or database row.
        """
        check.tensor(inputs, "inputs", floating=True)
        seed = check.positive_int(seed, "seed", minimum=0)
        fraction = splits.check_fraction(validation)
        labels = check_labels(labels, len(inputs), num_classes)
        if labels.ndim == 2:
            labels, classes = labels.to(torch.uint8), labels.shape[1]
        else:
            classes = num_classes or (int(labels.max()) + 1 if len(labels) else 0)
        kind = "features" if inputs.ndim == 2 else "images"
        names = check_class_names(class_names, classes)
        table = Table(name, TensorRows(inputs), labels, classes, kind, names)
        train, query = (splits.row_ids(v, n, len(inputs)) for v, n in ((train, "train"), (query, "query")))
        if database is None:
            database = np.setdiff1d(np.arange(len(inputs)), query)
        indices = splits.check(splits.Indices(train, train[:0], query, database), len(inputs))
        indices = splits.take_validation(indices, labels.numpy(), fraction, seed)
        return cls.from_table(table, indices, "given rows", seed)

    @cached_property
    def run_fingerprint(self) -> str:
        """SHA-256 of labels, inputs and split: what has to be equal for a run to go on, or to be evaluated.

        `fingerprint` leaves the inputs out, so that one split serves several features of the same items.
        """
        digest = hashlib.sha256(f"{self.fingerprint} {self.input_shape}".encode())
        digest.update(self.train.rows.content())
        for name in splits.NAMES:
            digest.update(getattr(self, name).indices.numpy().astype("<i8").tobytes())
        for part in self.standardization or ():
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    @property
    def standardization(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(mean, deviation) of the training features, float32 (d,) each, where inputs are standardised."""
        return self.train.rows.standardization

    @property
    def train_in_database(self) -> bool:
        """True where training rows are part of the database."""
        return bool(torch.isin(self.train.indices, self.database.indices).any())

    def summary(self) -> dict:
        """What a report should say about the data: plain strings, numbers and lists."""
        return {
            "dataset": self.name,
            "protocol": self.protocol,
            "seed": self.seed,
            "num_classes": self.num_classes,
            "multi_label": self.multi_label,
            "input_kind": self.input_kind,
            "input_shape": list(self.input_shape),
            **{name: len(getattr(self, name)) for name in splits.NAMES},
            "train_in_database": self.train_in_database,
            "fingerprint": self.fingerprint,
        }

    def describe_inputs(self) -> dict:
        """What a run keeps, to use its model without the data: plain values."""
        scale = self.standardization
        return {
            "shape": list(self.input_shape),
            "kind": self.input_kind,
            "standardization": None if scale is None else [part.tolist() for part in scale],
            "num_classes": self.num_classes,
            "class_names": self.class_names,
        }

    def save_split(self, path) -> None:
        """Write the row ids, the name, the sizes and the fingerprint as JSON, atomically.

        `load_dataset(..., split_file=path)` takes the same rows again.
        """
        indices = splits.Indices(**{name: getattr(self, name).indices.numpy() for name in splits.NAMES})
        splits.save(
            path,
            indices,
            {
                "dataset": self.name,
                "num_rows": self.num_rows,
                "num_classes": self.num_classes,
                "fingerprint": self.fingerprint,
                "protocol": self.protocol,
                "seed": self.seed,
            },
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in splits.NAMES)
        return f"RetrievalData({self.name!r}, {self.protocol}: {sizes}; {self.num_classes} classes)"
