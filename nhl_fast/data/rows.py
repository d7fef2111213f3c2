"""The inputs of a whole data set, by row id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

# Of the stored values, how much goes into their digest: beyond it every second row, every third, ...
CONTENT_BYTES = 1 << 26


class Rows:
    """The inputs of a whole data set, by row id. Subclasses say how a row becomes a model's input."""

    in_memory = True
    input_shape: tuple[int, ...]
    standardization: tuple[torch.Tensor, torch.Tensor] | None = None

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        """The inputs of `rows` (int64, 1-d), float32 (len(rows), *input_shape)."""
        raise NotImplementedError

    def stored(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows as they are kept: uint8 pictures, or what `batch` gives."""
        return self.batch(rows)

    def item(self, row: int, rng: np.random.Generator | None) -> torch.Tensor:
        """The input of one row; `rng` is given where it is to be augmented."""
        return self.batch(torch.tensor([row]))[0]

    def raw(self, row: int) -> np.ndarray | None:
        """The picture of one row, uint8 (H, W) or (H, W, 3), or None where rows are no pictures."""
        return None

    def file_name(self, row: int) -> str | None:
        """The file of one row, below the data set's directory; None where rows are in no files of their own."""
        return None

    def fit(self, train: torch.Tensor) -> None:
        """Learn from the training rows what `batch` needs (standardisation)."""

    def identity(self) -> bytes:
        """What tells these rows from others, beside their labels; part of the fingerprint."""
        return b""

    def content(self) -> bytes:
        """A digest of the inputs themselves, where they are in memory."""
        return b""


class TensorRows(Rows):
    """Rows that are one tensor in memory.

    Args:
        values: (n, ...) floating point, or uint8 pictures (n, C, H, W) with a `transform`.
        pictures: uint8 (n, H, W) or (n, H, W, 3), what `raw` shows; None takes uint8 `values`.
        transform: stored rows -> float32 inputs; None converts to float32.
        input_shape: the shape of one input where `transform` changes it.
    """

    def __init__(
        self,
        values: torch.Tensor,
        pictures: np.ndarray | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ):
        self.values = values
        self.pictures = pictures
        self.transform = transform
        self.input_shape = tuple(values.shape[1:]) if input_shape is None else input_shape

    def batch(self, rows):
        chosen = self.values.index_select(0, rows)
        return chosen.float() if self.transform is None else self.transform(chosen)

    def stored(self, rows):
        if self.values.dtype == torch.uint8:
            return self.values.index_select(0, rows)
        return self.batch(rows)

    def content(self):
        rows = self.values.reshape(len(self.values), -1)
        step = max(1, rows.nbytes // CONTENT_BYTES)
        digest = hashlib.sha256(f"{tuple(self.values.shape)} {self.values.dtype}".encode())
        digest.update(rows[::step].contiguous().view(torch.uint8).numpy())
        return digest.digest()

    def raw(self, row):
        if self.pictures is not None:
            return self.pictures[row]
        if self.values.dtype == torch.uint8:
            return self.values[row].permute(1, 2, 0).contiguous().numpy()
        return None
