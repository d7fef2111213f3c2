"""Any user loss, one a length."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..core import check
from .base import NestedLoss


def _takes_index(function: Callable) -> bool:
    """Whether a callable has a parameter named index."""
    try:
        given = function.forward if isinstance(function, nn.Module) else function
        return "index" in inspect.signature(given).parameters
    except (TypeError, ValueError):  # what is written in C has no signature
        return False


class PerLength(NestedLoss):
    """One user loss a code length: the k-th callable gets (u_k, labels) and returns a scalar tensor.

    Args:
        functions: m callables f(u_k, labels) -> 0-d tensor, u_k (N, b_k); one with a parameter named `index` gets the
            rows' positions in the training set by that name, too. Modules are registered, so that their
            parameters train with the rest.
        code_lengths: the m code lengths.
        num_classes: if given, labels are checked against it.
    """

    def __init__(
        self,
        functions: Sequence[Callable],
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        num_classes: int | None = None,
    ):
        super().__init__(1 if num_classes is None else num_classes, code_lengths)
        self.num_classes = num_classes
        try:
            functions = list(itertools.islice(functions, len(self.code_lengths) + 1))
        except Exception:
            raise TypeError(f"functions: expected a sequence, got {check.describe(functions)}") from None
        if len(functions) != len(self.code_lengths):
            raise ValueError(
                f"functions: expected {len(self.code_lengths)}, one a code length of {self.code_lengths}, "
                f"got {'more' if len(functions) > len(self.code_lengths) else len(functions)}"
            )
        for f in functions:
            if not callable(f):
                raise TypeError(f"functions: expected callables, got {check.describe(f)}")
        self.functions = functions
        self._wants_index = [_takes_index(f) for f in functions]
        self._index = None
        self._modules_used = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def prepare(self, u, labels, index):
        self._index = index
        return super().prepare(u, labels, index)

    def naive(self, u, labels, k):
        function = self.functions[k]
        value = function(u, labels, index=self._index) if self._wants_index[k] else function(u, labels)
        if not isinstance(value, torch.Tensor) or value.ndim != 0:
            raise ValueError(f"functions: {function!r} must return a 0-d tensor, got {check.describe(value)}")
        return value
