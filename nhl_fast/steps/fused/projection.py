"""Operators of the projection: outputs with the feature Gram matrix, and packed codes."""

from __future__ import annotations

import torch

from nhl_fast.kernels import backward, dots
from nhl_fast.kernels import projection as kernels
from nhl_fast.kernels.device import arrival

from ...core.known_gradient import once
from .operators import operator

MAX_FORMED = 1024  # rows up to which the backward kernel goes through the whole batch in one program


@operator("nhl_fast::project", mutates_args=())
def project(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gram: bool, finite: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """u = F W^T + c (N, L) and, if `gram`, F F^T (N, N) (else an empty tensor), both float32.

    finite: outputs that hold NaN or infinity are a device-side assertion.
    """
    u, matrix = project_outputs(features, weight, gram)
    if features.shape[0]:
        with torch.cuda.device_of(features):
            kernels.launch(features, weight, bias, u=u, gram=matrix if gram else None, finite=finite)
    return u, matrix


def project_outputs(features, weight, gram: bool):
    """Empty (u, Gram matrix); the rows of the matrix are `kernels.gram_row` apart."""
    n = features.shape[0] if gram else 0
    u = features.new_empty((features.shape[0], weight.shape[0]), dtype=torch.float32)
    return u, features.new_empty((n, kernels.gram_row(n)), dtype=torch.float32)[:, :n]


@project.register_fake
def _(features, weight, bias, gram, finite=False):
    arrival.prepare(features.device)
    return project_outputs(features, weight, gram)


@operator("nhl_fast::project_backward", mutates_args=())
def project_backward(
    grad: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, need_features: bool, need_weight: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dF, dW, dc) of a gradient (N, L) of u; what is not needed is empty."""
    return gradients(None, grad.contiguous().float(), features, weight, None, None, need_features, need_weight)


def gradients(scale, du, features, weight, dw, db, need_features: bool, need_weight: bool, form=None, nan=None):
    """(dF, dW, dc) of dU, times the 0-d `scale`; dW and dc may be given unscaled. In one launch, or in two.

    dF comes in the features' dtype, dW and dc in the weight's. form, nan: see `kernels.backward`.
    """
    found = gradient_shapes(features, weight, need_features, need_weight)
    df, out_w, out_b = found
    if not (need_features or need_weight) or features.shape[0] == 0:
        for tensor in found:
            tensor.zero_()
        return found
    with torch.cuda.device_of(features):
        product = sums = None
        if need_weight and dw is not None:
            product, sums = dw[None], db[None]
        elif need_weight and form is None and du.shape[0] > MAX_FORMED:
            product, sums = dots.transposed_product(du, features)
        backward.launch(
            scale,
            du,
            features,
            weight,
            product,
            sums,
            df=df if need_features else None,
            dw=out_w if need_weight else None,
            db=out_b if need_weight else None,
            form=form,
            nan=nan,
        )
    return found


def gradient_shapes(features, weight, need_features: bool, need_weight: bool):
    """Empty tensors for (dF, dW, dc)."""
    (n, d), longest = features.shape, weight.shape[0]
    return (
        features.new_empty((n, d) if need_features else (0,)),
        weight.new_empty((longest, d) if need_weight else (0,)),
        weight.new_empty((longest,) if need_weight else (0,)),
    )


@project_backward.register_fake
def _(grad, features, weight, need_features, need_weight):
    return gradient_shapes(features, weight, need_features, need_weight)


def _save(ctx, inputs, output):
    features, weight, bias, gram, _ = inputs
    if gram and features.requires_grad:
        raise ValueError("gram: the Gram matrix has no gradient here, pass detached features")
    ctx.save_for_backward(features, weight, bias)


def _backward(ctx, grad_u, grad_gram):
    features, weight, bias = ctx.saved_tensors
    need_features, need_weight, need_bias = ctx.needs_input_grad[:3]
    need_weight_or_bias = need_weight or need_bias
    with torch.no_grad():
        df, dw, db = project_backward(grad_u, features, weight, need_features, need_weight_or_bias)
        db = db.to(bias.dtype)
    gradients = df if need_features else None, dw if need_weight else None, db if need_bias else None
    return *(once(gradient, features, weight, bias, grad_u) for gradient in gradients), None, None


project.register_autograd(_backward, setup_context=_save)


@operator("nhl_fast::encode", mutates_args=())
def encode(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Packed signs (N, ceil(L/8)) uint8 of F W^T + c, most significant bit first."""
    bits = torch.empty(features.shape[0], -(-weight.shape[0] // 8), device=features.device, dtype=torch.uint8)
    if features.shape[0]:
        with torch.cuda.device_of(features):
            kernels.launch(features, weight, bias, bits=bits)
    return bits


@encode.register_fake
def _(features, weight, bias):
    arrival.prepare(features.device)
    return features.new_empty(features.shape[0], -(-weight.shape[0] // 8), dtype=torch.uint8)
