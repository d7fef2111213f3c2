"""Fused CSQ and DPN: every length's value and gradient in one launch, or in the projection's own."""

from __future__ import annotations

import torch

from nhl_fast.kernels import arrival, projection, tiles
from nhl_fast.kernels import center as kernels

from ...losses.center import CSQ, DPN
from .operators import direct, operator
from .projection import project_outputs
from .registry import fuses, outputs, prepare_labels


@operator("nhl_fast::pointwise", mutates_args=())
def pointwise(
    u: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    ties: torch.Tensor,
    code_lengths: list[int],
    kind: str,
    parameter: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of the loss `kind` of u (N, L); centers (C, T) and ties (T,) of +-1."""
    u = u.contiguous()
    values, deltas = outputs(u, code_lengths, kernels.num_programs(*u.shape))
    loss = kernels.Loss(kind, (parameter,), labels, centers.contiguous(), ties, tuple(code_lengths), values, deltas)
    with torch.cuda.device_of(u):
        kernels.launch(u, loss)
    return values, deltas


@pointwise.register_fake
def _(u, labels, centers, ties, code_lengths, kind, parameter):
    return outputs(u, code_lengths, kernels.num_programs(*u.shape))


@operator("nhl_fast::project_pointwise", mutates_args=())
def project_pointwise(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    ties: torch.Tensor,
    code_lengths: list[int],
    kind: str,
    parameter: float,
    gram: bool,
    finite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`project` (without a gradient) and `pointwise` in one launch: (u, gram, partial sums, deltas)."""
    u, matrix, values, deltas = _together(features, weight, code_lengths, gram)
    loss = kernels.Loss(kind, (parameter,), labels, centers.contiguous(), ties, tuple(code_lengths), values, deltas)
    with torch.cuda.device_of(features):
        projection.launch(features, weight, bias, u=u, gram=matrix if gram else None, loss=loss, finite=finite)
    return u, matrix, values, deltas


def _together(features, weight, code_lengths, gram):
    mode = tiles.feature_precision(features)
    programs = projection.loss_programs(*features.shape, weight.shape[0], gram, mode)
    u, matrix = project_outputs(features, weight, gram)
    return u, matrix, *outputs(u, code_lengths, programs)


@project_pointwise.register_fake
def _(features, weight, bias, labels, centers, ties, code_lengths, kind, parameter, gram, finite=False):
    arrival.prepare(features.device)
    return _together(features, weight, code_lengths, gram)


def options(loss) -> tuple[str, float]:
    """The kernel's name of a CSQ or DPN loss, and its parameter."""
    if isinstance(loss, CSQ):
        return "csq", float(loss.quantization)
    return "dpn_ternary" if loss.ternary else "dpn", float(loss.margin)


def tensors(loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Its centres (C, T) and tie centres (T,)."""
    return loss._centers, loss._tie_centers


@fuses(CSQ, DPN, prepare=prepare_labels)
def fused(loss, u, labels):
    """Values and deltas of a CSQ or DPN loss; labels out of range are a device-side assertion."""
    return direct(pointwise)(u, labels, *tensors(loss), list(loss.code_lengths), *options(loss))
