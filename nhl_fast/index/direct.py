"""One query of few items: the checks and tensors of a search take several times as long as its scan.

What is plain takes a short way here, with the same results; all else is left to the search that checks arguments.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import native
from ..core.backend import available
from ..retrieval.codes import ENOUGH
from .state import State

# More bytes of codes, or more neighbours, take longer than the checks do, and are worth threads and signals.
MOST_BYTES = 2**20
MOST_NEIGHBORS = 1024
_UINT8 = np.dtype(np.uint8)


def search(state: State, queries, k, length, index_length: int, beyond, output, backend):
    """`NestedIndex.search` of a state in main memory, without a filter; None where this is no case for it."""
    # Types first: a caller's own class may do anything where it is compared.
    if not (type(k) is int and type(beyond) is type(output) is type(backend) is str):
        return None
    if beyond != "raise" or backend != "auto" or output not in ("tensor", "numpy"):
        return None
    if len(state.segments) != 1:
        return None
    segment = state.segments[0]
    codes = segment.codes
    count, width = codes.shape
    if segment.alive is not None or count * width > MOST_BYTES or not codes.is_contiguous():
        return None
    if not 0 < k <= min(count, MOST_NEIGHBORS):
        return None
    code = _one_code(queries, width)
    if code is None:
        return None
    if length is None:
        length = index_length
    elif type(length) is not int or not 0 < length <= index_length:
        return None
    if torch.compiler.is_compiling() or not available("cpp"):
        return None
    shape = (k,) if queries.ndim == 1 else (1, k)
    arrays = np.empty(shape, np.int32), np.empty(shape, np.int64)
    found = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    base = segment.first if segment.ids is None else 0
    done = native.topk_one()(
        code, codes.data_ptr(), count, width, length, k, base, found[0].data_ptr(), found[1].data_ptr()
    )
    if not done:
        return None
    if segment.ids is not None:
        np.take(segment.ids, arrays[1], out=arrays[1])
    return found if output == "tensor" else arrays


def _one_code(query, width: int):
    """One packed code of `width` bytes in main memory: bytes, or an address; None where it may be anything else."""
    shape = query.shape if type(query) in (torch.Tensor, np.ndarray) else None
    if shape not in ((1, width), (width,)) or width >= ENOUGH:  # so many bytes might be bits
        return None
    if type(query) is np.ndarray:
        return query.tobytes() if query.dtype is _UINT8 else None
    return query.data_ptr() if query.dtype is torch.uint8 and query.is_cpu and query.is_contiguous() else None
