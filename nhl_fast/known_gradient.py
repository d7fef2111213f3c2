"""A scalar whose gradient is computed together with it, so that nothing large is kept for backward."""

from __future__ import annotations

import torch


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(x, value, grad):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value):
        (grad,) = ctx.saved_tensors
        return (
            grad_value.view(-1, *[1] * (grad.ndim - 1)) * grad if grad_value.ndim else grad_value * grad,
            None,
            None,
        )


def known_gradient(x: torch.Tensor, value: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The 0-d `value`, as a function of `x` with gradient `grad` (of x's shape). Differentiable once.

    With `value` (m,) and `x` (m, ...): m values, each a function of one entry of x.
    """
    return _KnownGradient.apply(x, value, grad)


def chunk_rows(row_elements: int, device: torch.device, total: int) -> int:
    """How many rows of `row_elements` a chunk takes: what stays in a CPU's L2 cache, or 256 MiB on a GPU."""
    if torch.compiler.is_compiling():
        return max(total, 1)
    budget = 1 << 17 if device.type == "cpu" else 1 << 26
    return max(1, budget // max(row_elements, 1))
