"""The triplets' body: all positives against all negatives of every anchor."""

from __future__ import annotations

import torch

from nhl_fast.kernels import triplets as kernels

from ...core import check
from .operators import operator, outputs

FUNCTIONS = ("logistic",)


def _outputs(u, code_lengths):
    return outputs(u, code_lengths, kernels.CONFIG.row_tiles(u.shape[0]))


@operator("nhl_fast::triplets", mutates_args=())
def triplets(
    u: torch.Tensor,
    labels: torch.Tensor,
    code_lengths: list[int],
    function: str,
    constants: list[float],
    penalty_weight: float,
    reference: float = 0.0,
    grades: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of u (N, L), with the weight of the penalty "sign".

    The one function is "logistic", with constants (margin, low, high); t is clamped to [low, high].
    grades: S (N, N) of pairs of rows in place of labels, with weights (N,): how much each row counts.
    """
    check.one_of(function, "function", FUNCTIONS)
    if (grades is None) != (weights is None):
        raise ValueError("grades: expected S of pairs and weights of rows together, got one of them")
    given = None if grades is None else (grades.contiguous(), weights.contiguous())
    values, deltas = _outputs(u, code_lengths)
    with torch.cuda.device_of(u):
        kernels.launch(
            u.contiguous(), labels, code_lengths, *constants, penalty_weight, values, deltas, reference=reference,
            given=given,
        )  # fmt: skip
    return values, deltas


@triplets.register_fake
def _(u, labels, code_lengths, function, constants, penalty_weight, reference=0.0, grades=None, weights=None):
    return _outputs(u, code_lengths)
