"""Copies of rows' first bytes, side by side, for a funnel's first stage: 64 bits read 8 bytes an item."""

from __future__ import annotations

import numpy as np
import torch

from ..core import fork
from . import pages

# Strides that the engine reads in place; rows of other widths get the next one.
_STRIDES = (4, 8, 16, 32)


class Prefixes:
    """The prefixes of packed rows (n, bytes) that do not change, each copied when it is first asked for."""

    def __init__(self, codes: torch.Tensor):
        self._codes = codes
        self._made: dict[int, torch.Tensor] = {}
        self._making = fork.Lock()

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in tuple(self._made.values()))

    def of(self, width: int) -> torch.Tensor:
        """The first `width` bytes of every row: a copy, or a view where that reads nearly all of a row anyway."""
        row = self._codes.shape[1]
        stride = next((s for s in _STRIDES if s >= width), width)
        if 2 * stride > row:
            return self._codes[:, :width]
        found = self._made.get(width)
        if found is None:
            with self._making:
                found = self._made.get(width)
                if found is None:
                    found = self._made[width] = self._copy(width, stride)
        return found[:, :width]

    def _copy(self, width: int, stride: int) -> torch.Tensor:
        out = torch.from_numpy(pages.empty((len(self._codes), stride), np.uint8))
        out[:, :width].copy_(self._codes[:, :width])
        if stride > width:
            out[:, width:] = 0
        return out
