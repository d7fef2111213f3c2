"""Binary codes as packed bytes: one row an item, most significant bit first, the layout of `numpy.packbits`.

A row of ceil(L / 8) bytes holds every shorter code too: the b-bit code is its first b bits. Bits beyond the
length in use are ignored everywhere, so a prefix needs no copy.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from . import _check, _fork, native  # noqa: F401 (a forked child that packs or searches must not hang)

_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def num_bytes(length: int) -> int:
    """Bytes that hold `length` bits."""
    return (length + 7) // 8


def as_tensor(value):
    """`value` as a tensor that shares its memory where it is a NumPy array; anything else as it is.

    An array that torch has no dtype for comes back as it is too, for the check that follows to name.
    """
    if not isinstance(value, np.ndarray):
        return value
    if any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value)
    try:
        if value.flags.writeable:
            return torch.from_numpy(value)
        with warnings.catch_warnings():
            # Read-only arrays (memory maps) are fine here: codes and labels are only ever read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(value)
    except (TypeError, ValueError):
        return value


def pack_codes(x) -> torch.Tensor:
    """Pack a matrix of code values into bits.

    Args:
        x: (N, L) tensor or NumPy array. Floating point (any precision): the bit is x > 0. Integer: {0, 1} or
            {-1, +1}, the bit is x > 0. bool: the bit itself.

    Returns:
        (N, ceil(L / 8)) uint8 tensor on the device of `x` (on the CPU for an array), byte for byte equal to
        `numpy.packbits(x > 0, axis=1)`: most significant bit first, the last byte padded with zeros.

    Raises:
        TypeError: x is not a tensor or array of a real dtype.
        ValueError: x is not two-dimensional with L >= 1, holds NaN, or holds an integer outside {-1, 0, 1}.
    """
    x = _check.tensor(as_tensor(x), "x", ndim=2)
    rows, length = x.shape
    if length == 0:
        raise ValueError(f"x: expected at least one bit a row, got {_check.describe(x)}")
    if x.is_floating_point():
        _check.values(~torch.isnan(x).any(), "x: expected numbers, got NaN, which has no sign")
    elif x.dtype in _INTEGER:
        known = (x == 0) | (x == 1) if x.dtype == torch.uint8 else (x >= -1) & (x <= 1)
        _check.values(known.all(), "x: expected integers in {0, 1} or {-1, +1}, got another value")
    elif x.dtype != torch.bool:
        raise TypeError(f"x: expected a floating-point, bool or integer matrix, got {_check.describe(x)}")
    if native.can_pack(x):
        return native.pack(x)
    bits = (x if x.dtype == torch.bool else x > 0).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -length % 8)).view(rows, num_bytes(length), 8)
    place = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=x.device)
    return (bits * place).sum(-1, dtype=torch.uint8)


def unpack_codes(packed, length: int) -> torch.Tensor:
    """The code values of packed rows.

    Args:
        packed: (N, bytes) uint8 tensor or NumPy array, as `pack_codes` returns it.
        length: code length in bits, at most 8 * bytes; a shorter length reads the prefix.

    Returns:
        (N, length) int8 tensor of {-1, +1} on the device of `packed`: +1 where the bit is set. Where
        the padding is zero, `pack_codes(unpack_codes(packed, length))` gives `packed` back.

    Raises:
        TypeError: packed is not uint8, or length is not an integer.
        ValueError: packed is not two-dimensional, or length is below 1 or beyond the bits that packed holds.
    """
    packed = check_packed(packed, "packed")
    length = check_length(length, packed.shape[1], "length")
    packed = packed[:, : num_bytes(length)]
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, :, None] >> shifts) & 1
    return bits.flatten(1)[:, :length].to(torch.int8).mul_(2).sub_(1)


def check_packed(codes, name: str = "codes") -> torch.Tensor:
    """`codes` as a uint8 tensor (N, bytes); NumPy arrays share their memory.

    Raises:
        TypeError: not a tensor or array, or not uint8.
        ValueError: not two-dimensional, or rows of no bytes.
    """
    codes = _check.tensor(as_tensor(codes), name)
    if codes.dtype != torch.uint8:
        raise TypeError(f"{name}: expected packed uint8 rows (see pack_codes), got {_check.describe(codes)}")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name}: expected packed rows of shape (N, bytes), got {_check.describe(codes)}")
    return codes


def check_length(length, available_bytes: int, name: str = "length") -> int:
    """`length` as an int between 1 and the bits that rows of `available_bytes` hold."""
    length = _check.positive_int(length, name)
    if length > 8 * available_bytes:
        raise ValueError(f"{name}: expected at most {8 * available_bytes}, the bits of the packed rows, got {length}")
    return length


def check_lengths(lengths, available_bytes: int, name: str = "lengths") -> tuple[int, ...]:
    """`lengths` as a strictly increasing tuple, each of which fits rows of `available_bytes`."""
    lengths = _check.code_lengths(lengths, name)
    check_length(lengths[-1], available_bytes, name)
    return lengths


def mask_tail(codes: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` bits of packed rows as (N, ceil(length / 8)) bytes with zeros beyond the length.

    A view of `codes` where the length is a multiple of 8, a copy otherwise.
    """
    prefix = codes[:, : num_bytes(length)]
    if length % 8:
        prefix = prefix.clone()
        prefix[:, -1] &= 0xFF << (8 - length % 8) & 0xFF
    return prefix
