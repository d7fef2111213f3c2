"""Checks of the rows that callers pass to an index."""

from __future__ import annotations

import torch

from ..core import check
from ..retrieval.codes import check_length, check_packed, num_bytes
from .ids import on_cpu


def check_codes(codes, index_length: int) -> torch.Tensor:
    """Packed rows for an index of `index_length` bits."""
    codes = on_cpu(check_packed(codes, "codes"), "codes")
    if codes.shape[1] != num_bytes(index_length):
        raise ValueError(
            f"codes: expected rows of {num_bytes(index_length)} bytes for {index_length} bits, "
            f"got {check.describe(codes)}"
        )
    return codes


def check_queries(queries, length: int | None, index_length: int) -> tuple[torch.Tensor, int]:
    """Packed rows that hold `length` bits (None: all of the index's), and that length."""
    queries = on_cpu(check_packed(queries, "queries"), "queries")
    width = num_bytes(index_length)
    if length is None:
        if queries.shape[1] != width:
            raise ValueError(
                f"queries: expected rows of {width} bytes for {index_length} bits, got "
                f"{check.describe(queries)}; pass length to search by a prefix"
            )
        return queries, index_length
    length = check.positive_int(length, "length")
    if length > index_length:
        raise ValueError(f"length: expected at most {index_length}, the index's, got {length}")
    return queries, check_length(length, queries.shape[1], "length")
