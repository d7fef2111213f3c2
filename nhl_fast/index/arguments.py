"""Checks of the rows that callers pass to an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from ..retrieval.codes import check_length, check_packed, check_rows, num_bytes
from ..retrieval.convert import of_binary
from .file import MAX_WIDTH, VECTOR_KINDS
from .ids import on_device


def check_codes(codes, index_length: int, devices: Sequence[torch.device]) -> torch.Tensor:
    """Packed rows in main memory for an index of `index_length` bits that is searched on `devices`."""
    codes = on_device(check_packed(_unsigned(codes, "codes", index_length, devices), "codes"), "codes", devices).cpu()
    if codes.shape[1] != num_bytes(index_length):
        raise ValueError(
            f"codes: expected rows of {num_bytes(index_length)} bytes for {index_length} bits, "
            f"got {check.describe(codes)}"
        )
    return codes


def check_kept_vectors(vectors, count: int, devices: Sequence[torch.device]) -> torch.Tensor | None:
    """Vectors (count, d) in main memory to be kept beside `count` codes, or None."""
    if vectors is None:
        return None
    vectors = check.present(check.tensor(as_tensor(vectors, "vectors"), "vectors"), "vectors")
    if vectors.dtype not in VECTOR_KINDS:
        raise TypeError(f"vectors: expected float32, float16 or int8, got {check.describe(vectors)}")
    if vectors.ndim != 2 or len(vectors) != count or not 0 < vectors.shape[1] <= MAX_WIDTH:
        raise ValueError(
            f"vectors: expected shape ({count}, d), one for each code, d from 1 to {MAX_WIDTH}, "
            f"got {check.describe(vectors)}"
        )
    return check.finite(on_device(vectors, "vectors", devices).detach().cpu(), "vectors")


def check_queries(
    queries, length: int | None, index_length: int, devices: Sequence[torch.device]
) -> tuple[torch.Tensor, int, bool]:
    """Packed rows that hold `length` bits (None: all of the index's), that length, and whether it was one code."""
    queries, one = check_rows(_unsigned(queries, "queries", index_length, devices), "queries")
    on_device(queries, "queries", devices)
    width = num_bytes(index_length)
    if length is None:
        if queries.shape[1] != width:
            raise ValueError(
                f"queries: expected rows of {width} bytes for {index_length} bits, got "
                f"{check.describe(queries)}; pass length to search by a prefix"
            )
        return queries, index_length, one
    length = check.positive_int(length, "length")
    if length > index_length:
        raise ValueError(f"length: expected at most {index_length}, the index's, got {length}")
    return queries, check_length(length, queries.shape[1], "length"), one


def _unsigned(rows, name: str, index_length: int, devices: Sequence[torch.device]):
    """sentence-transformers' "binary" embeddings (int8) as packed rows; anything else as it is.

    An int8 row of as many bytes as the index's is one: bits as -1 and +1 would be `index_length` numbers.
    """
    if not isinstance(rows, (torch.Tensor, np.ndarray)) or rows.dtype not in (torch.int8, np.int8):
        return rows
    if rows.ndim not in (1, 2) or rows.shape[-1] != num_bytes(index_length) or index_length == 1:
        return rows
    rows = as_tensor(rows, name)
    return of_binary(check.present(on_device(check.tensor(rows, name), name, devices), name), name)
