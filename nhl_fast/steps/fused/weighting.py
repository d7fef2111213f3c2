"""Operators of the weights, the combined gradient and the head's backward pass."""

from __future__ import annotations

import torch

from nhl_fast.kernels import dots as dots_kernels
from nhl_fast.kernels import weighting as kernels
from nhl_fast.kernels.device import arrival
from nhl_fast.kernels.device.closed_form import Report

from ...core.known_gradient import once
from .operators import direct, observed, operator
from .projection import MAX_FORMED, gradient_shapes, gradients


@operator("nhl_fast::combine", mutates_args=())
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
    nan: bool,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:
    """The step's total as a function of features, weight and bias, from what was computed for their values.

    Args:
        features, weight, bias: (N, d), (L, d), (L,), which the total's gradient goes to.
        u: (N, L) outputs, looked at only for `nan`.
        deltas: (N, T) gradients of every length's loss (distillation included) with respect to its outputs.
        gram: (N, N) feature Gram matrix, or empty: the dots then come from deltas^T F.
        losses: (P, m) partial sums. distill: (Q, m) likewise, or None.
        distill_weight: lambda.
        fixed_weights: (m,) weights instead of the dominance-aware ones, or None.
        nan: where u is not finite, the gradient is NaN.

    Returns:
        total (), weights (m,), dots (m, m) (empty with fixed weights), losses (m,), distill (m,) without lambda,
        dU (N, L) (empty where `forms`), and dW (L, d), dc (L,) where they are known already (else empty). Only the
        total has a gradient.
    """
    results = _combined(features, weight, deltas, gram, fixed_weights, code_lengths)
    weights, (du, dw, db) = results[1], results[5:]
    report = Report(losses, distill, distill_weight, results[:5])
    with torch.cuda.device_of(features):
        if fixed_weights is not None:
            du = du if du.numel() else None
            kernels.launch(deltas, u, code_lengths, fixed_weights, report=report, du=du, nan=nan)
        elif gram.numel():
            dots_kernels.gram_dots(gram, deltas, code_lengths, report)
        else:
            slices, sums = dots_kernels.transposed_product(deltas, features)
            product = dots_kernels.product_dots(slices, code_lengths, report)
            kernels.launch(
                deltas, u, code_lengths, weights, gradients=product, sums=sums, du=du, dw=dw, db=db, nan=nan
            )
    return results


def forms(num_rows: int, gram, fixed_weights) -> bool:
    """Whether the backward kernel forms dU from the deltas, in place of a launch here."""
    return num_rows <= MAX_FORMED if fixed_weights is not None else gram.shape[0] > 0


def _combined(features, weight, deltas, gram, fixed_weights, code_lengths):
    m, n, (longest, d) = len(code_lengths), features.shape[0], weight.shape
    known = fixed_weights is None and gram.shape[0] == 0

    def empty(*shape):
        return features.new_empty(shape, dtype=torch.float32)

    return (
        empty(),
        empty(m),
        empty(m, m) if fixed_weights is None else empty(0, 0),
        empty(m),
        empty(m),
        empty(0, longest) if forms(n, gram, fixed_weights) else empty(n, longest),
        empty(longest, d) if known else empty(0, 0),
        empty(longest) if known else empty(0),
    )


@combine.register_fake
def _(features, weight, bias, u, deltas, gram, losses, distill, distill_weight, fixed_weights, code_lengths, nan):
    arrival.prepare(features.device)
    return _combined(features, weight, deltas, gram, fixed_weights, code_lengths)


@operator("nhl_fast::head_backward", mutates_args=())
def head_backward(
    scale: torch.Tensor,
    du: torch.Tensor,
    deltas: torch.Tensor,
    weights: torch.Tensor,
    u: torch.Tensor | None,
    features: torch.Tensor,
    weight: torch.Tensor,
    dw: torch.Tensor,
    db: torch.Tensor,
    code_lengths: list[int],
    need_features: bool,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dF, dW, dc) of dU, times the 0-d incoming gradient; what is not needed is empty.

    Where dU is empty it is formed from the deltas and weights; u, if given, makes it NaN where it is not finite.
    """
    known, form = dw.numel() > 0, du.shape[0] == 0
    return gradients(
        scale, deltas if form else du, features, weight, dw if known else None, db if known else None,
        need_features, need_weight, (weights, code_lengths) if form else None, u if form else None,
    )  # fmt: skip


@head_backward.register_fake
def _(scale, du, deltas, weights, u, features, weight, dw, db, code_lengths, need_features, need_weight):
    return gradient_shapes(features, weight, need_features, need_weight)


def _save(ctx, inputs, output):
    features, weight, bias, u, deltas = inputs[:5]
    ctx.code_lengths, nan = inputs[-2:]
    weights, (du, dw, db) = output[1], output[5:]
    formed = du.shape[0] == 0
    # What is not needed is not kept: the deltas and the outputs are as large as the batch.
    ctx.save_for_backward(
        features, weight, bias, du, deltas if formed else du, weights, u if formed and nan else None, dw, db
    )
    ctx.set_materialize_grads(False)


def _backward(ctx, scale, *_):
    features, weight, bias, du, deltas, weights, u, dw, db = ctx.saved_tensors
    need_features, need_weight, need_bias, *rest = ctx.needs_input_grad
    unused = [None] * len(rest)
    if scale is None:
        return None, None, None, *unused
    with torch.no_grad():
        df, dw, db = direct(head_backward)(
            scale, du, deltas, weights, u, features, weight, dw, db, ctx.code_lengths, need_features,
            need_weight or need_bias,
        )  # fmt: skip
        db = db.to(bias.dtype)
    gradients = df if need_features else None, dw if need_weight else None, db if need_bias else None
    return *(once(gradient, features, weight, bias, scale) for gradient in gradients), *unused


combine.register_autograd(_backward, setup_context=_save)


class _Step(torch.autograd.Function):
    """`combine` without its operator: the total alone comes out, the rest is left in `results`."""

    @staticmethod
    def forward(ctx, features, weight, bias, rest, results):
        results += combine.function(features, weight, bias, *rest)
        if any(ctx.needs_input_grad[:3]):
            _save(ctx, (features, weight, bias, *rest), results)
        return results[0]

    @staticmethod
    def backward(ctx, scale):
        return _backward(ctx, scale)


def evaluate(features, weight, bias, *rest):
    """`combine`, by its operator where that is observed."""
    if observed():
        return combine(features, weight, bias, *rest)
    results = []
    total = _Step.apply(features, weight, bias, rest, results)
    return total, *results[1:]


@operator("nhl_fast::with_gradient", mutates_args=())
def with_gradient(
    u: torch.Tensor, values: torch.Tensor, deltas: torch.Tensor, code_lengths: list[int]
) -> torch.Tensor:
    """Values (P, m) added up to (m,), as functions of u (N, L) with gradients `deltas` (N, T) by their prefixes."""
    return values.sum(0)


@with_gradient.register_fake
def _(u, values, deltas, code_lengths):
    return values.new_empty(values.shape[1])


@operator("nhl_fast::weigh", mutates_args=())
def weigh(deltas: torch.Tensor, weights: torch.Tensor, code_lengths: list[int]) -> torch.Tensor:
    """sum_k weights[k] pad(delta_k): (N, T) and (m,) to (N, L)."""
    du = torch.empty(deltas.shape[0], code_lengths[-1], device=deltas.device, dtype=torch.float32)
    with torch.cuda.device_of(deltas):
        kernels.launch(deltas, None, code_lengths, weights, du=du)
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
