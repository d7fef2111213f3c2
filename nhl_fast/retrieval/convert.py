"""Codes as others write them, as packed rows: hex strings, whole numbers, bits, sentence-transformers' int8."""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from . import codes

_KINDS = (
    "packed uint8 rows, bits (bool), 'binary' embeddings (int8), whole numbers (uint64, int64), hex strings, or "
    "hashes of imagehash"
)


@check.memory
def as_codes(values) -> torch.Tensor:
    """Hashes of any common form as packed rows, for `search`, `near_duplicates` and `NestedIndex`.

    Args:
        values: one of

            - packed uint8 rows (N, bytes), as they are: `numpy.packbits`, faiss, sentence-transformers' "ubinary";
            - int8 rows (N, bytes): sentence-transformers' "binary", which are the same bytes less 128. Its "int8"
              looks alike, but holds a number a dimension: pass none of those;
            - bool (N, L) or (N, height, width): the bits, row by row;
            - uint64 or int64 (N,) or (N, words), or a sequence of int from 0 to 2^64 - 1: 64 bits a number, the most
              significant first;
            - a sequence of hex strings of one length, as `str(imagehash.phash(image))` gives: 4 bits a digit;
            - a sequence of objects with a bool array `hash`, as imagehash makes.

    Returns:
        (N, bytes) uint8 tensor; bits beyond the code's are zero.

    Raises:
        TypeError, ValueError: values are none of these.
    """
    return to_rows(values, "values")


def to_rows(values, name: str) -> torch.Tensor:
    """See `as_codes`; error messages call the argument `name`."""
    if isinstance(values, (np.ndarray, torch.Tensor)) and getattr(values.dtype, "kind", "") not in ("U", "O"):
        return _of_array(as_tensor(values, name), name)
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: expected {_KINDS}, got {check.describe(values)}")
    values = list(values)
    if all(isinstance(value, str) for value in values):
        return _of_hex(values, name)
    if all(isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values):
        wrong = next((value for value in values if not 0 <= value < 2**64), None)
        if wrong is not None:
            raise ValueError(f"{name}: expected whole numbers from 0 to 2**64 - 1, got {check.digits(int(wrong))}")
        return _of_array(torch.from_numpy(np.array(values, np.uint64)), name)
    hashes = [getattr(value, "hash", None) for value in values]
    if all(isinstance(h, np.ndarray) and h.dtype == np.bool_ for h in hashes):
        if len({h.shape for h in hashes}) != 1:
            raise ValueError(f"{name}: expected hashes of one shape, got several")
        return _of_array(torch.from_numpy(np.stack(hashes)), name)
    raise TypeError(f"{name}: expected {_KINDS}, got {check.describe(values)}")


def _of_array(values: torch.Tensor, name: str) -> torch.Tensor:
    values = check.present(check.tensor(values, name), name)
    if 0 in values.shape[1:]:
        raise ValueError(f"{name}: expected at least one bit a row, got {check.describe(values)}")
    if values.dtype == torch.bool and values.ndim >= 2:
        return codes.pack_outputs(values.flatten(1))
    if values.dtype == torch.int8 and values.ndim == 2:
        return of_binary(values, name)
    if values.dtype in (torch.uint64, torch.int64) and values.ndim in (1, 2):
        words = values[:, None] if values.ndim == 1 else values.contiguous()
        return words.view(torch.uint8).view(*words.shape, 8).flip(-1).flatten(1)
    if values.dtype == torch.uint8 and values.ndim == 2:
        return codes.check_packed(values, name)
    raise TypeError(f"{name}: expected {_KINDS}, got {check.describe(values)}")


def _of_hex(values: list[str], name: str) -> torch.Tensor:
    digits = len(values[0]) if values else 0
    if not digits or any(len(value) != digits for value in values):
        got = "none" if not values else f"{digits} and {next((len(v) for v in values if len(v) != digits), 0)} digits"
        raise ValueError(f"{name}: expected hex strings of one length, at least one digit, got {got}")
    if digits % 2:
        values = [value + "0" for value in values]
    try:
        raw = binascii.unhexlify("".join(values))
    except ValueError:
        wrong = next(value for value in values if not set(value) <= set("0123456789abcdefABCDEF"))
        raise ValueError(f"{name}: expected hex strings, got {wrong[:40]!r}") from None
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(len(values), -1)


def of_binary(values: torch.Tensor, name: str) -> torch.Tensor:
    """Packed rows of sentence-transformers' "binary" embeddings (int8, the bytes less 128).

    Raises:
        TypeError: there are many and none is beyond -1 and 1: they are bits, one a byte.
    """
    if values.numel() >= codes.ENOUGH and not bool(((values < -1) | (values > 1)).any()):
        raise TypeError(
            f"{name}: expected packed rows less 128, got {check.describe(values)} of nothing but -1, 0 and 1: bits; "
            f"pack them with pack_codes({name})"
        )
    return values.contiguous().view(torch.uint8) ^ 128
