"""The softmax's body: every length's likelihood of the classes, from the cosines with their centres."""

from __future__ import annotations

import torch

from nhl_fast.kernels import softmax as kernels

from ...core import check
from .operators import operator, outputs


def _outputs(u, code_lengths):
    return outputs(u, code_lengths, kernels.CONFIG.row_tiles(u.shape[0]))


@operator("nhl_fast::softmax", mutates_args=())
def softmax(
    u: torch.Tensor,
    centers: torch.Tensor,
    labels: torch.Tensor,
    code_lengths: list[int],
    function: str,
    constants: list[float],
    penalty_weight: float,
    one_hot: bool,
    reference: float = 0.0,
    weights: torch.Tensor | None = None,
    soft: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of u (N, L), with the weight of the penalty "square".

    constants are (w, share): share * mean over the rows of, for "likelihood", the sum over the classes of
    -[y log p + w (1 - y) log(1 - p)]; "cosine" and "angle", whose w is a margin: see `kernels.FUNCTIONS`.
    centers (C, T), labels ids or multi-hot rows (one class each if `one_hot`), or `soft`: rows of weights; weights
    (N,): how much each row counts.
    """
    check.one_of(function, "function", kernels.FUNCTIONS)
    (constant, share), n = constants, u.shape[0]
    values, deltas = _outputs(u, code_lengths)
    with torch.cuda.device_of(u):
        kernels.launch(
            u.contiguous(), centers.contiguous(), labels, code_lengths, function, constant, share / n,
            penalty_weight, values, deltas, reference=reference, one_hot=one_hot, weights=weights, soft=soft,
        )  # fmt: skip
    return values, deltas


@softmax.register_fake
def _(
    u,
    centers,
    labels,
    code_lengths,
    function,
    constants,
    penalty_weight,
    one_hot,
    reference=0.0,
    weights=None,
    soft=False,
):
    return _outputs(u, code_lengths)
