"""An index's codes and ids in the hands of others: faiss."""

from __future__ import annotations

import numpy as np

from ..core import check
from ..core.extras import require
from .segments import ordered_blocks
from .state import State


def to_faiss(length: int, state: State):
    """See `NestedIndex.to_faiss`."""
    faiss = _faiss("NestedIndex.to_faiss")
    if length % 8:
        raise ValueError(f"length: faiss holds multiples of 8 bits, this index has {length}")
    flat = faiss.IndexBinaryFlat(length)
    out = faiss.IndexBinaryIDMap(flat)
    for ids, rows in ordered_blocks(state.segments):
        out.add_with_ids(np.ascontiguousarray(rows), np.ascontiguousarray(ids))
    return out


def read_faiss(index) -> tuple[int, np.ndarray, np.ndarray | None]:
    """(length, rows, ids) of what `NestedIndex.from_faiss` takes; the rows are a view of faiss's memory."""
    faiss = _faiss("NestedIndex.from_faiss")
    flat = faiss.downcast_IndexBinary(index) if isinstance(index, faiss.IndexBinary) else index
    ids = None
    if isinstance(flat, (faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2)):
        ids = faiss.vector_to_array(flat.id_map)
        flat = faiss.downcast_IndexBinary(flat.index)
    if not isinstance(flat, faiss.IndexBinaryFlat):
        raise TypeError(
            "index: expected a faiss.IndexBinaryFlat or a faiss.IndexBinaryIDMap over one, got "
            f"{check.describe(flat)}"
        )
    if not flat.ntotal:
        return flat.d, np.empty((0, flat.code_size), np.uint8), ids
    rows = faiss.rev_swig_ptr(flat.xb.data(), flat.ntotal * flat.code_size)
    return flat.d, rows.reshape(flat.ntotal, flat.code_size), ids


def _faiss(purpose: str):
    require("faiss", "bench", purpose)
    import faiss

    return faiss
