"""Operators of the weights, the combined gradient and the head's backward pass."""

from __future__ import annotations

import torch

from nhl_fast.kernels import dots as dots_kernels
from nhl_fast.kernels import weighting as kernels

from ..known_gradient import once
from .projection import gradient_shapes, gradients


@torch.library.custom_op("nhl_fast::combine", mutates_args=())
def combine(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    u: torch.Tensor,
    deltas: torch.Tensor,
    gram: torch.Tensor,
    losses: torch.Tensor,
    distill: torch.Tensor | None,
    distill_weight: float,
    fixed_weights: torch.Tensor | None,
    code_lengths: list[int],
    check_finite: bool,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:
    """The step's total as a function of features, weight and bias, from what was computed for their values.

    Args:
        features, weight, bias: (N, d), (L, d), (L,), which the total's gradient goes to.
        u: (N, L) outputs, looked at only if `check_finite`.
        deltas: (N, T) gradients of every length's loss (distillation included) with respect to its outputs.
        gram: (N, N) feature Gram matrix, or empty: the dots then come from deltas^T F.
        losses: (P, m) partial sums. distill: (Q, m) likewise, or None.
        distill_weight: lambda.
        fixed_weights: (m,) weights instead of the dominance-aware ones, or None.
        check_finite: a device-side assertion that u is finite.

    Returns:
        total (), weights (m,), dots (m, m) (empty with fixed weights), losses (m,), distill (m,) without lambda,
        dU (N, L), and dW (L, d), dc (L,) where they are known already (else empty). Only the total has a gradient.
    """
    total, weights, dots, *rest = _combined(features, weight, deltas, gram, fixed_weights, code_lengths)
    losses_out, distill_out, du, dw, db = rest
    with torch.cuda.device_of(features):
        partial = product = sums = None
        if fixed_weights is None:
            if gram.numel():
                partial = dots_kernels.gram_dots(gram, deltas, code_lengths)
            else:
                slices, sums = dots_kernels.transposed_product(deltas, features)
                product, partial = dots_kernels.product_dots(slices, code_lengths)
        kernels.combine(
            deltas, u, code_lengths, dots=partial, fixed=fixed_weights, losses=losses, distill=distill,
            distill_scale=distill_weight, gradients=product, sums=sums,
            outputs=(total, weights, dots, losses_out, distill_out), du=du, dw=dw, db=db, check=check_finite,
        )  # fmt: skip
    return total, weights, dots, losses_out, distill_out, du, dw, db


def _combined(features, weight, deltas, gram, fixed_weights, code_lengths):
    m, (longest, d) = len(code_lengths), weight.shape
    known = fixed_weights is None and gram.shape[0] == 0

    def empty(*shape):
        return features.new_empty(shape, dtype=torch.float32)

    return (
        empty(),
        empty(m),
        empty(m, m) if fixed_weights is None else empty(0, 0),
        empty(m),
        empty(m),
        empty(features.shape[0], longest),
        empty(longest, d) if known else empty(0, 0),
        empty(longest) if known else empty(0),
    )


@combine.register_fake
def _(features, weight, bias, u, deltas, gram, losses, distill, distill_weight, fixed_weights, code_lengths, check):
    return _combined(features, weight, deltas, gram, fixed_weights, code_lengths)


@torch.library.custom_op("nhl_fast::head_backward", mutates_args=())
def head_backward(
    scale: torch.Tensor,
    du: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    dw: torch.Tensor,
    db: torch.Tensor,
    need_features: bool,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dF, dW, dc) of dU, times the 0-d incoming gradient; what is not needed is empty."""
    known = dw.numel() > 0
    return gradients(
        scale, du, features, weight, dw if known else None, db if known else None, need_features, need_weight
    )


@head_backward.register_fake
def _(scale, du, features, weight, dw, db, need_features, need_weight):
    return gradient_shapes(features, weight, need_features, need_weight)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output[5:])
    ctx.set_materialize_grads(False)


def _backward(ctx, scale, *_):
    features, weight, bias, du, dw, db = ctx.saved_tensors
    need_features, need_weight, need_bias, *rest = ctx.needs_input_grad
    unused = [None] * len(rest)
    if scale is None:
        return None, None, None, *unused
    with torch.no_grad():
        df, dw, db = head_backward(scale, du, features, weight, dw, db, need_features, need_weight or need_bias)
        db = db.to(bias.dtype)
    gradients = df if need_features else None, dw if need_weight else None, db if need_bias else None
    return *(once(gradient, features, weight, bias, scale) for gradient in gradients), *unused


combine.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("nhl_fast::with_gradient", mutates_args=())
def with_gradient(
    u: torch.Tensor, values: torch.Tensor, deltas: torch.Tensor, code_lengths: list[int]
) -> torch.Tensor:
    """Values (P, m) added up to (m,), as functions of u (N, L) with gradients `deltas` (N, T) by their prefixes."""
    return values.sum(0)


@with_gradient.register_fake
def _(u, values, deltas, code_lengths):
    return values.new_empty(values.shape[1])


@torch.library.custom_op("nhl_fast::weigh", mutates_args=())
def weigh(deltas: torch.Tensor, weights: torch.Tensor, code_lengths: list[int]) -> torch.Tensor:
    """sum_k weights[k] pad(delta_k): (N, T) and (m,) to (N, L)."""
    du = torch.empty(deltas.shape[0], code_lengths[-1], device=deltas.device, dtype=torch.float32)
    with torch.cuda.device_of(deltas):
        kernels.combine(deltas, None, code_lengths, fixed=weights.contiguous(), du=du)
    return du


@weigh.register_fake
def _(deltas, weights, code_lengths):
    return deltas.new_empty(deltas.shape[0], code_lengths[-1])


def _save_deltas(ctx, inputs, output):
    u, _, deltas, ctx.code_lengths = inputs
    ctx.save_for_backward(u, deltas)


def _weigh(ctx, grad):
    u, deltas = ctx.saved_tensors
    with torch.no_grad():
        gradient = weigh(deltas, grad, ctx.code_lengths).to(u.dtype)
    return once(gradient, u, grad), None, None, None


with_gradient.register_autograd(_weigh, setup_context=_save_deltas)
