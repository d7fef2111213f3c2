"""The centre body: every length's value and gradient in one launch, or in the projection's own."""

from __future__ import annotations

import torch

from nhl_fast.kernels import center as kernels
from nhl_fast.kernels import projection, tiles
from nhl_fast.kernels.device import arrival

from ...core import check
from .operators import operator, outputs
from .projection import project_outputs


@operator("nhl_fast::center", mutates_args=())
def center(
    u: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    ties: torch.Tensor,
    code_lengths: list[int],
    function: str,
    constants: list[float],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of a function of u (N, L); centers (C, T) and ties (T,) of +-1.

    weights (N,): how much each row counts; the centres may then lie between -1 and 1.
    """
    check.one_of(function, "function", kernels.CENTER_FUNCTIONS)
    u = u.contiguous()
    values, deltas = outputs(u, code_lengths, kernels.num_programs(*u.shape))
    made = (centers.contiguous(), ties, code_lengths, values, deltas, weights)
    loss = kernels.Loss(function, constants, labels, *made)
    with torch.cuda.device_of(u):
        kernels.launch(u, loss)
    return values, deltas


@center.register_fake
def _(u, labels, centers, ties, code_lengths, function, constants, weights=None):
    return outputs(u, code_lengths, kernels.num_programs(*u.shape))


@operator("nhl_fast::project_center", mutates_args=())
def project_center(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    ties: torch.Tensor,
    code_lengths: list[int],
    function: str,
    constants: list[float],
    gram: bool,
    finite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`project` (without a gradient) and `center` in one launch: (u, gram, partial sums, deltas)."""
    check.one_of(function, "function", kernels.CENTER_FUNCTIONS)
    u, matrix, values, deltas = _together(features, weight, code_lengths, gram)
    loss = kernels.Loss(function, constants, labels, centers.contiguous(), ties, code_lengths, values, deltas)
    with torch.cuda.device_of(features):
        projection.launch(features, weight, bias, u=u, gram=matrix if gram else None, loss=loss, finite=finite)
    return u, matrix, values, deltas


def _together(features, weight, code_lengths, gram):
    mode = tiles.feature_precision(features)
    generation = tiles.generation(features.device)
    programs = projection.loss_programs(*features.shape, weight.shape[0], gram, mode, generation)
    u, matrix = project_outputs(features, weight, gram)
    return u, matrix, *outputs(u, code_lengths, programs)


@project_center.register_fake
def _(features, weight, bias, labels, centers, ties, code_lengths, function, constants, gram, finite=False):
    arrival.prepare(features.device)
    return _together(features, weight, code_lengths, gram)
