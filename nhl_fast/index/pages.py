"""Memory for what an index keeps."""

from __future__ import annotations

import math
import mmap

import numpy as np

# Arrays from this size on come from the system and go back to it; malloc keeps what is freed, up to the size of
# the index itself once the merges of a build are done.
_OWN_PAGES_BYTES = 2**20


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """`numpy.empty` for what an index keeps."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _OWN_PAGES_BYTES:
        return np.empty(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)
