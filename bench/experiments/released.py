"""What the code released with arXiv 2412.08922 does to the gradient, each departure alone or all; experiments only.

"weights": the bound of the weight of a longer length i against prefix k divides by the norm of the *first* length's
gradient and by m - 1 at every k, and a length's weight is the product of its factors over k instead of the least.
"head": the analysis passes leave the longest length's gradient in the head, where the step adds its own to it: the
head moves by the weighted sum and, unweighted, once more by the longest length.
"dropped": with weights and distillation together the longest length's loss falls out of the total.
"""

from __future__ import annotations

import torch
from torch import nn

import nhl_fast as nhl
from nhl_fast.training.trainer import Trainer

ACCIDENTS = ("weights", "head", "dropped")


class Released(nn.Module):
    """Weights with the given accidents, as `NestedObjective` takes them; "head" is `ReleasedTrainer`'s."""

    def __init__(self, accidents):
        super().__init__()
        if wrong := sorted(set(accidents) - set(ACCIDENTS)):
            raise ValueError(f"accidents: expected some of {', '.join(ACCIDENTS)}, got {', '.join(wrong)}")
        self.accidents = frozenset(accidents)

    def forward(self, dots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        weights = released_weights(dots) if "weights" in self.accidents else nhl.dominance_weights(dots)
        if "dropped" in self.accidents:
            weights = torch.cat([weights[:-1], weights.new_zeros(1)])
        return weights


def released_weights(dots: torch.Tensor) -> torch.Tensor:
    """The weights (m,) of the released code; dots (m, m) as for `dominance_weights`."""
    m = len(dots)
    bound = dots[0, 0].clamp(min=0) / max(m - 1, 1)
    factors = torch.where(dots < 0, (bound / dots.abs()).clamp(max=1), 1.0).triu(1) + torch.ones_like(dots).tril()
    for k in range(m - 2):  # a farther length gets no more than the next one
        factors[k, k + 2 :] = torch.minimum(factors[k, k + 2 :], factors[k, k + 1])
    weights = factors.prod(0)
    return weights * (m / weights.sum())


class ReleasedTrainer(Trainer):
    """A trainer whose head also moves by the longest length's own gradient, unweighted."""

    def _evaluate(self, features, labels, index):
        result = super()._evaluate(features, labels, index)
        again = self.objective.loss(self.model.layer.project(features.detach()), labels, index)[-1]
        return result._replace(total=result.total + again)
