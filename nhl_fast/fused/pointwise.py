"""Fused CSQ and DPN: every length's value and gradient in one launch, or in the projection's own second one."""

from __future__ import annotations

import torch

from nhl_fast.kernels import pointwise as kernels
from nhl_fast.kernels import projection

from ..losses.pointwise import CSQ, DPN
from .registry import fuses, outputs, prepare_labels


@torch.library.custom_op("nhl_fast::pointwise", mutates_args=())
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
    with torch.cuda.device_of(u):
        kernels.pointwise(u, labels, centers.contiguous(), ties, values, deltas, code_lengths, kind, parameter)
    return values, deltas


@pointwise.register_fake
def _(u, labels, centers, ties, code_lengths, kind, parameter):
    return outputs(u, code_lengths, kernels.num_programs(*u.shape))


@torch.library.custom_op("nhl_fast::project_pointwise", mutates_args=())
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`project` (without a gradient) and `pointwise` together: (u, gram, partial sums, deltas).

    Where the projection is split over d, the loss is taken as the slices are added up.
    """
    n, longest = features.shape[0], weight.shape[0]
    u, matrix, values, deltas = _together(features, weight, code_lengths, gram)
    loss = {
        "labels": labels, "centers": centers.contiguous(), "ties": ties, "values": values, "deltas": deltas,
        "code_lengths": code_lengths, "kind": kind, "parameter": parameter,
    }  # fmt: skip
    split = projection.is_split(n, features.shape[1], longest, gram, projection.precision(features))
    with torch.cuda.device_of(features):
        projection.project(features, weight, bias, u=u, gram=matrix if gram else None, loss=loss if split else None)
        if not split:
            kernels.pointwise(u, **loss)
    return u, matrix, values, deltas


def _together(features, weight, code_lengths, gram):
    (n, d), longest = features.shape, weight.shape[0]
    split = projection.is_split(n, d, longest, gram, projection.precision(features))
    programs = projection.finish_programs(n, longest) if split else kernels.num_programs(n, longest)
    u = features.new_empty(n, longest, dtype=torch.float32)
    matrix = features.new_empty(n if gram else 0, n if gram else 0, dtype=torch.float32)
    return u, matrix, *outputs(u, code_lengths, programs)


@project_pointwise.register_fake
def _(features, weight, bias, labels, centers, ties, code_lengths, kind, parameter, gram):
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
    return pointwise(u, labels, *tensors(loss), list(loss.code_lengths), *options(loss))
