"""A scalar whose gradient is computed together with it, so that nothing large is kept for backward."""

from __future__ import annotations

import inspect

import torch


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(x, value, grad, columns):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value):
        grad, columns = ctx.saved_tensors
        if columns is not None:
            grad_value = columns.to(grad_value.dtype) @ grad_value
        elif grad_value.ndim:
            grad_value = grad_value.view(-1, *[1] * (grad.ndim - 1))
        return grad_value * grad, None, None, None


# `apply` binds its arguments by forward's signature, which would be taken apart anew at every call.
_KnownGradient.forward.__signature__ = inspect.signature(_KnownGradient.forward)


def known_gradient(
    x: torch.Tensor, value: torch.Tensor, grad: torch.Tensor, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """The 0-d `value`, as a function of `x` with gradient `grad` (of x's shape). Differentiable once.

    With `value` (m,) and `x` (m, ...): m values, each a function of one entry of x. With `value` (m,), `x` (N, T)
    and `columns` (T, m) of zeros and ones: each value is a function of its own columns.
    """
    return _KnownGradient.apply(x, value, grad, columns)


def chunk_rows(row_elements: int, device: torch.device, total: int) -> int:
    """How many rows of `row_elements` a chunk takes: what stays in a CPU's L2 cache, or 256 MiB on a GPU."""
    if torch.compiler.is_compiling():
        return max(total, 1)
    budget = 1 << 17 if device.type == "cpu" else 1 << 26
    return max(1, budget // max(row_elements, 1))
