"""The classifier's body: cross-entropy of a classifier of the bits, which is learned along."""

from __future__ import annotations

import torch

from nhl_fast.kernels import classifier as kernels

from ...core import check
from .operators import operator, outputs


def _outputs(u, learned, code_lengths, learns):
    values, deltas = outputs(u, code_lengths, kernels.GRADIENT.row_tiles(u.shape[0]))
    number = kernels.parts(u.shape[0], learned.shape[0], code_lengths)[0] if learns else 0
    return values, deltas, deltas.new_empty(number, *learned.shape)


@operator("nhl_fast::classifier", mutates_args=())
def classifier(
    u: torch.Tensor,
    learned: torch.Tensor,
    labels: torch.Tensor,
    code_lengths: list[int],
    function: str,
    penalty_weight: float,
    learns: bool,
    weights: torch.Tensor | None = None,
    soft: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T), partial sums (P, C, T) of the slopes in `learned`) of u (N, L).

    "cross_entropy": mean over the rows of the mean over a row's classes of -log p, p the softmax of the products of
    its signs with the classes' weights `learned` (C, T); and the weight of the penalty "cube". `learns`: slopes are
    wanted. labels ids or multi-hot rows, or `soft`: rows of weights; weights (N,): how much each row counts.
    """
    check.one_of(function, "function", kernels.FUNCTIONS)
    values, deltas, slopes = _outputs(u, learned, code_lengths, learns)
    with torch.cuda.device_of(u):
        kernels.launch(
            u.contiguous(), learned.contiguous(), labels, code_lengths, 1 / u.shape[0], penalty_weight, values,
            deltas, slopes if learns else None, row_weights=weights, soft=soft,
        )  # fmt: skip
    return values, deltas, slopes


@classifier.register_fake
def _(u, learned, labels, code_lengths, function, penalty_weight, learns, weights=None, soft=False):
    return _outputs(u, learned, code_lengths, learns)
