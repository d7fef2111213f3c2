"""Argument checks shared by every public call: each error names the argument, what came, what was expected."""

from __future__ import annotations

import errno
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line checks its arguments before PyTorch is loaded
    import torch

DEFAULT_CODE_LENGTHS = (8, 16, 32, 64, 128)
MAX_INT = 2**63 - 1
MAX_LENGTHS = 2**16
MAX_BITS = 2**20  # of a code; far beyond any use, and keeps sizes within what tensors can express


def describe(value) -> str:
    """Short description of a value for an error message (shape and dtype for tensors)."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the largest
        return f"{type(value).__name__} of {value.bit_length()} bits"
    try:
        return f"{type(value).__name__} {value!r}"[:200]
    except Exception:  # a container of such numbers, or a class with a faulty repr
        return type(value).__name__


def positive_int(value, name: str, minimum: int = 1, maximum: int = MAX_INT) -> int:
    """`value` as an int from `minimum` to `maximum`; TypeError or ValueError otherwise."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    try:
        value = operator.index(value)
    except Exception:  # TypeError, or what a class of the caller's raises
        raise TypeError(f"{name}: expected an integer, got {describe(value)}") from None
    if value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, got {digits(value)}")
    if value > maximum:
        raise ValueError(f"{name}: expected an integer of at most {maximum}, got {digits(value)}")
    return value


def digits(value: int) -> str:
    """An integer for an error message."""
    return str(value) if value.bit_length() <= 256 else describe(value)


def number(value, name: str, minimum: float | None = 0.0, positive: bool = False) -> float:
    """`value` as a finite float of at least `minimum` (above it, if `positive`), or TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        finite, value = False, describe(value)
    if not finite or (minimum is not None and (value < minimum or (positive and value == minimum))):
        bound = "" if minimum is None else f" {'above' if positive else 'of at least'} {minimum:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value}")
    return float(value)


def flag(value, name: str) -> bool:
    """`value` if it is a bool; TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {describe(value)}")
    return value


def code_lengths(lengths, name: str = "code_lengths") -> tuple[int, ...]:
    """A strictly increasing, non-empty tuple of positive code lengths in bits; an integer is one length."""
    if hasattr(lengths, "__index__") and not hasattr(lengths, "__iter__") and not isinstance(lengths, bool):
        return (positive_int(lengths, name, maximum=MAX_BITS),)
    if isinstance(lengths, str) or not hasattr(lengths, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of integers, got {describe(lengths)}")
    try:
        lengths = iter(lengths)
    except Exception:  # a tensor or an array without dimensions, a class of the caller's
        raise TypeError(f"{name}: expected a sequence of integers, got {describe(lengths)}") from None
    lengths = tuple(_increasing(lengths, name))
    if not lengths:
        raise ValueError(f"{name}: expected at least one code length, got none")
    return lengths


def _increasing(lengths, name: str):
    before = 0
    for count, b in enumerate(lengths):
        if count == MAX_LENGTHS:
            raise ValueError(f"{name}: expected at most {MAX_LENGTHS} code lengths, got more")
        b = positive_int(b, name, maximum=MAX_BITS)
        if b <= before:
            raise ValueError(f"{name}: expected strictly increasing code lengths, got {b} after {before}")
        before = b
        yield b


def tensor(value, name: str, ndim: int | None = None, floating: bool = False) -> torch.Tensor:
    """`value` if it is a tensor with `ndim` dimensions (and of a floating dtype, if asked)."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}")
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got {describe(value)} ({value.layout})")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got {describe(value)}")
    if floating and not (value.is_floating_point() and value.itemsize > 1):
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(value)}")
    return value


def one_of(value, name: str, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`; ValueError otherwise."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def shown(value) -> str:
    """A value for an error message: plain where it is a string or an integer, else described."""
    if isinstance(value, int) and not isinstance(value, bool):
        return digits(value)
    return repr(value) if isinstance(value, str) else describe(value)


def present(value: torch.Tensor, name: str) -> torch.Tensor:
    """`value` if it holds values; ValueError for one on the meta device."""
    if value.is_meta:
        raise ValueError(f"{name}: expected values, got a tensor on the meta device, which holds none")
    return value


def refuse_script(module) -> None:
    """Raise TypeError: `torch.jit.script` asks every module that it is to compile (see `__prepare_scriptable__`)."""
    raise TypeError(
        f"torch.jit.script: {type(module).__name__} is no TorchScript; torch.compile speeds it up, and torch.export "
        "saves layer.encode with its backbone"
    )


def transformed() -> bool:
    """Whether a transform of torch.func runs."""
    import torch

    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def vmapped() -> bool:
    """Whether torch.func.vmap is among the transforms that run: no condition can then depend on values."""
    import torch

    if not transformed():
        return False
    levels = torch._C._functorch.get_interpreter_stack()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def values(condition: torch.Tensor, message: str) -> None:
    """Raise ValueError(`message`) where the 0-d bool tensor `condition` is false.

    On a CUDA device the check is a device-side assertion, so that no step waits for the host; while
    torch.compile traces, and within torch.func.vmap, it is left out.
    """
    import torch

    if torch.compiler.is_compiling() or vmapped():
        return
    if condition.device.type == "cuda":
        torch._assert_async(condition, message)
    elif condition.device.type != "meta" and not bool(condition):
        raise ValueError(message)


def finite(value: torch.Tensor, name: str) -> torch.Tensor:
    """`value` if it holds no NaN or infinity (see `values` for CUDA tensors)."""
    import torch

    values(torch.isfinite(value).all(), f"{name}: expected finite numbers, got NaN or infinity")
    return value


def device(value, name: str = "device") -> torch.device | None:
    """`value` as a torch.device, or None."""
    import torch

    if value is None or isinstance(value, torch.device):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{name}: expected a device, got {describe(value)}")
    try:
        return torch.device(value)
    except (RuntimeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected a device, got {describe(value)}") from None


def floating_dtype(value, name: str = "dtype") -> torch.dtype | None:
    """`value` if it is a floating-point torch.dtype, or None."""
    import torch

    if value is None or (isinstance(value, torch.dtype) and value.is_floating_point):
        return value
    raise TypeError(f"{name}: expected a floating-point torch.dtype, got {describe(value)}")


def optional_positive(value, name: str) -> float | None:
    """`value` as a positive number, or None."""
    return None if value is None else number(value, name, positive=True)


_NO_MEMORY = ("DefaultCPUAllocator", "alloc_cpu", "bad_alloc", "vector::_M", "Storage size calculation overflowed")


def memory(function: Callable) -> Callable:
    """Decorator: where memory runs out, whoever notices, the call raises MemoryError (CUDA's own error stays)."""

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except (RuntimeError, OSError, MemoryError) as error:
            if isinstance(error, OSError):
                out = error.errno == errno.ENOMEM
            elif isinstance(error, MemoryError):
                out = "not enough memory" not in str(error)
            else:
                import torch

                text = str(error)
                out = not isinstance(error, torch.OutOfMemoryError) and any(sign in text for sign in _NO_MEMORY)
            if not out:
                raise
            reason = (str(error) or "MemoryError").splitlines()[0]
            raise MemoryError(f"{function.__qualname__}: not enough memory: {reason}"[:400]) from error

    return call
