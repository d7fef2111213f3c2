"""Argument checks shared by every public call: each error names the argument, what came, what was expected."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line checks its arguments before PyTorch is loaded
    import torch

DEFAULT_CODE_LENGTHS = (8, 16, 32, 64, 128)


def describe(value) -> str:
    """Short description of a value for an error message (shape and dtype for tensors)."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{type(value).__name__} {value!r}"[:200]


def positive_int(value, name: str, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`; TypeError or ValueError otherwise."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {describe(value)}") from None
    if value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, got {value}")
    return value


def number(value, name: str, minimum: float | None = 0.0, positive: bool = False) -> float:
    """`value` as a finite float of at least `minimum` (above it, if `positive`), or TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if not math.isfinite(value) or (minimum is not None and (value < minimum or (positive and value == minimum))):
        bound = "" if minimum is None else f" {'above' if positive else 'of at least'} {minimum:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value}")
    return float(value)


def flag(value, name: str) -> bool:
    """`value` if it is a bool; TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {describe(value)}")
    return value


def code_lengths(lengths, name: str = "code_lengths") -> tuple[int, ...]:
    """A strictly increasing, non-empty tuple of positive code lengths in bits."""
    if isinstance(lengths, str) or not hasattr(lengths, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of integers, got {describe(lengths)}")
    lengths = tuple(positive_int(b, name) for b in lengths)
    if not lengths:
        raise ValueError(f"{name}: expected at least one code length, got none")
    if any(a >= b for a, b in itertools.pairwise(lengths)):
        raise ValueError(f"{name}: expected strictly increasing code lengths, got {lengths}")
    return lengths


def tensor(value, name: str, ndim: int | None = None, floating: bool = False) -> torch.Tensor:
    """`value` if it is a tensor with `ndim` dimensions (and of a floating dtype, if asked)."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got {describe(value)}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(value)}")
    return value


def one_of(value, name: str, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`; ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def values(condition: torch.Tensor, message: str) -> None:
    """Raise ValueError(`message`) where the 0-d bool tensor `condition` is false.

    On a CUDA device the check is a device-side assertion, so that no step waits for the host; while
    torch.compile traces it is left out.
    """
    import torch

    if torch.compiler.is_compiling():
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


def optional_positive(value, name: str) -> float | None:
    """`value` as a positive number, or None."""
    return None if value is None else number(value, name, positive=True)
