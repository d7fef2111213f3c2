"""The listwise body: every row's softmax over the other rows of its batch, against a wanted one."""

from __future__ import annotations

import torch

from nhl_fast.kernels import listwise as kernels

from ...core import check
from .operators import operator, outputs


def _outputs(u, code_lengths, function, constants):
    number, of_slopes = kernels.parts(u.shape[0], code_lengths, function, *constants)
    values, deltas = outputs(u, code_lengths, number)
    return values, deltas, torch.empty_like(values[:of_slopes])


@operator("nhl_fast::listwise", mutates_args=())
def listwise(
    u: torch.Tensor,
    targets: torch.Tensor,
    scales: torch.Tensor,
    code_lengths: list[int],
    function: str,
    constants: list[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T), partial sums (P, m) of the slopes in the scales) of u (N, L).

    targets: vectors (N, d) float32 for "divergence", with the constant temperature; ids (N,) int64 for "views", with
    the weight of the divergences between bits. scales (m,) float32.
    """
    check.one_of(function, "function", kernels.FUNCTIONS)
    if u.shape[0] < 2:
        raise ValueError(f"u: expected at least two rows, which are compared, got {check.describe(u)}")
    values, deltas, slopes = _outputs(u, code_lengths, function, constants)
    with torch.cuda.device_of(u):
        kernels.launch(
            function, u.contiguous(), targets, scales.contiguous(), code_lengths, *constants, values, slopes, deltas
        )
    return values, deltas, slopes


@listwise.register_fake
def _(u, targets, scales, code_lengths, function, constants):
    return _outputs(u, code_lengths, function, constants)
