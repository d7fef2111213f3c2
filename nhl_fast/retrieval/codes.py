"""Binary codes as packed bytes: one row an item, most significant bit first, the layout of `numpy.packbits`.

A row of ceil(L / 8) bytes holds every shorter code too: the b-bit code is its first b bits. Bits beyond the
length in use are ignored everywhere, so a prefix needs no copy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from .. import native
from ..core import check, fork  # noqa: F401 (a forked child that packs or searches must not hang)
from ..core.arrays import as_tensor
from ..core.operation import Operation

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# So many values are told from codes by what they are; fewer may be anything.
ENOUGH = 64
_BLOCK_BYTES = 2**20
# Rows that are looked at first (of a CUDA tensor: at all), and the CUDA tensors whose rows were, by version.
_LOOKED_AT = 4096
_looked_at = WeakIdKeyDictionary()


def num_bytes(length: int) -> int:
    """Bytes that hold `length` bits."""
    return (length + 7) // 8


@check.memory
def pack_codes(x) -> torch.Tensor:
    """Pack a matrix of code values into bits.

    Args:
        x: (N, L) tensor or NumPy array. Floating point (any precision): the bit is x > 0. Integer: {0, 1} or
            {-1, +1}, the bit is x > 0. bool: the bit itself. Of 64 values or more that all lie from 0 to 1, some of
            them in between, every bit would be 1: such outputs of a sigmoid are refused (pass x - 0.5).

    Returns:
        (N, ceil(L / 8)) uint8 tensor on the device of `x` (on the CPU for an array), byte for byte equal to
        `numpy.packbits(x > 0, axis=1)`: most significant bit first, the last byte padded with zeros.

    Raises:
        TypeError: x is not a tensor or array of a real dtype.
        ValueError: x is not two-dimensional with L >= 1, holds NaN, holds an integer outside {-1, 0, 1}, or holds
            what a sigmoid gives.
    """
    x = check.tensor(as_tensor(x, "x"), "x", ndim=2)
    if x.shape[1] == 0:
        raise ValueError(f"x: expected at least one bit a row, got {check.describe(x)}")
    if x.is_floating_point() and x.itemsize > 1:
        _refuse_probabilities(x)
    elif x.dtype in _INTEGER:
        known = (x == 0) | (x == 1) if x.dtype == torch.uint8 else (x >= -1) & (x <= 1)
        check.values(known.all(), "x: expected integers in {0, 1} or {-1, +1}, got another value")
    elif x.dtype != torch.bool:
        raise TypeError(f"x: expected a floating-point, bool or integer matrix, got {check.describe(x)}")
    return pack_outputs(x)


def pack_outputs(x: torch.Tensor) -> torch.Tensor:
    """`pack_codes` of a matrix that is known to hold raw outputs (any numbers but NaN) or bits."""
    if x.is_floating_point() and not torch.compiler.is_compiling():
        check.values(~torch.isnan(x).any(), "x: expected numbers, got NaN, which has no sign")
    return PACK(x)


def _pack_reference(x: torch.Tensor) -> torch.Tensor:
    rows, length = x.shape
    bits = (x if x.dtype == torch.bool else x > 0).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -length % 8)).view(rows, num_bytes(length), 8)
    place = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=x.device)
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():  # ONNX adds no bytes up
        return (bits.int() * place.int()).sum(-1, dtype=torch.int32).to(torch.uint8)
    return (bits * place).sum(-1, dtype=torch.uint8)


PACK = Operation("pack_codes", _pack_reference)


def _not_packed(x: torch.Tensor) -> str | None:
    return None if x.dtype in _FLOATS else f"x is {x.dtype}, the engine packs floating-point numbers"


for _backend, _device in (("cpp", "cpu"), ("cuda", "cuda")):  # a compiler fuses the plain definition
    PACK.serves(_backend, on=_device, refuses=_not_packed, traced=False)(native.pack)


def _refuse_probabilities(x: torch.Tensor) -> None:
    """Raise where a matrix of some size can only be a sigmoid's outputs, whose signs say nothing."""
    if x.numel() < ENOUGH or torch.compiler.is_compiling() or x.device.type == "meta":
        return
    first = x.detach()[:_LOOKED_AT]
    low, high = first.aminmax()
    within = (low >= 0) & (high <= 1)
    if x.is_cuda:
        x = first
    elif not bool(within):
        return
    else:
        low, high = x.detach().aminmax()
        within = (low >= 0) & (high <= 1)
    check.values(
        ~within | ((x == 0) | (x == 1)).all(),
        "x: expected raw outputs of either sign, got numbers from 0 to 1, as a sigmoid gives them, of which every "
        "bit would be 1: pass x - 0.5, or the bits themselves as bool",
    )


@check.memory
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

    Bits that say what they are, a bool matrix (N, L) or one of nothing but -1 and +1, are packed. Bits as uint8,
    one a byte, would pass for packed rows: a matrix of some size that can be nothing else is refused.

    Raises:
        TypeError: not a tensor or array, or neither uint8 nor bool nor +-1.
        ValueError: not two-dimensional, rows of no bytes, or bits that were not packed.
    """
    codes = check.present(check.tensor(as_tensor(codes, name), name), name)
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name}: expected packed rows of shape (N, bytes), got {check.describe(codes)}")
    if codes.dtype == torch.uint8:
        _refuse_unpacked(codes, name)
        return codes
    if codes.dtype == torch.bool or _only_signs(codes):
        return pack_outputs(codes)
    raise TypeError(
        f"{name}: expected packed uint8 rows, or a matrix of bool or of -1 and +1, got {check.describe(codes)}; "
        f"outputs and other bits are packed by pack_codes({name})"
    )


def check_rows(value, name: str) -> tuple[torch.Tensor, bool]:
    """`check_packed` of one code (bytes,) or of a matrix of them: the rows, and whether it was one code."""
    one = isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 1 and len(value) > 0
    return check_packed(value[None] if one else value, name), one


def _only_signs(values: torch.Tensor) -> bool:
    known = values.is_floating_point() or values.dtype in _INTEGER
    return known and values.numel() > 0 and bool((values.abs() == 1).all())


def _version_of(rows: torch.Tensor) -> int:
    """Changes with the tensor (inference tensors do not tell)."""
    return 0 if rows.is_inference() else rows._version


def _refuse_unpacked(rows: torch.Tensor, name: str) -> None:
    """Raise where packed rows can only be bits, one a byte: none above 1, though one in 16 is 1 and rows differ."""
    if torch.compiler.is_compiling() or rows.numel() < ENOUGH or rows.shape[1] < 8:
        return
    if rows.is_cuda:
        # A look waits for the device: once a database, at its first rows, and never while a graph is captured.
        if len(rows) < _LOOKED_AT or torch.cuda.is_current_stream_capturing():
            return
        if _looked_at.get(rows) == _version_of(rows):
            return
        array = rows[:_LOOKED_AT].cpu()
    else:
        # Nearly always the first row settles it, in a microsecond.
        if rows.is_cpu and rows.numpy()[0].tobytes().strip(b"\0\1"):
            return
        array = rows
    if not any(bool((part > 1).any()) for part in array.split(max(1, _BLOCK_BYTES // rows.shape[1]))):
        differ = (array != array[:1]).any() if len(array) > 1 else array.new_ones((), dtype=torch.bool)
        check.values(
            ~((array.sum(dtype=torch.int64) * 16 >= array.numel()) & differ),
            f"{name}: expected packed rows, got {check.describe(rows)} in which no byte is above 1: bits, one a "
            f"byte; pack them with pack_codes({name})",
        )
    if rows.is_cuda:
        _looked_at[rows] = _version_of(rows)


def check_length(length, available_bytes: int, name: str = "length") -> int:
    """`length` as an int between 1 and the bits that rows of `available_bytes` hold."""
    length = check.positive_int(length, name)
    if length > 8 * available_bytes:
        raise ValueError(f"{name}: expected at most {8 * available_bytes}, the bits of the packed rows, got {length}")
    return length


def check_lengths(lengths, available_bytes: int, name: str = "lengths") -> tuple[int, ...]:
    """`lengths` as a strictly increasing tuple, each of which fits rows of `available_bytes`.

    None: those of the usual lengths that do.
    """
    if lengths is None:
        return tuple(b for b in check.DEFAULT_CODE_LENGTHS if b <= 8 * available_bytes)
    lengths = check.code_lengths(lengths, name)
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
