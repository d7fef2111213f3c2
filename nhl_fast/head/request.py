"""What one training step of the head is asked for: all that an implementation of `STEP` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..losses.base import NestedLoss

NOT_FINITE = "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)"


class StepRequest(NamedTuple):
    """One step of a `NestedObjective`, whose features were checked.

    Attributes:
        features: (N, d), floating point.
        labels, index: as the caller gave them; `loss.prepare` checks them.
        loss: of the layer's code lengths.
        outputs: gives the layer's raw outputs (N, L) of features, whatever the layer is.
        weight, bias: (L, d) and (L,), where these are all that the layer does; else None.
        unusual: why they are not, or None.
        code_lengths: the m code lengths.
        distill_weight: lambda; 0 leaves the distillation out. teacher: see `distillation_losses`.
        fixed_weights: (m,) float32, or None where they depend on the gradients.
        rule: then a callable in place of the dominance-aware weights, or None.
        check_finite: outputs that hold NaN or infinity are an error, `NOT_FINITE`.
        scaled: there they make the total's gradient NaN, for a GradScaler to see, instead.
    """

    features: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor | None
    loss: NestedLoss
    outputs: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    unusual: str | None
    code_lengths: tuple[int, ...]
    distill_weight: float
    teacher: str
    fixed_weights: torch.Tensor | None
    rule: Callable | None
    check_finite: bool
    scaled: bool


class Form(NamedTuple):
    """Shape, dtype and device of a tensor that is not made."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device


def outputs_form(request: StepRequest) -> Form:
    """What a compiled projection of the request's features will give."""
    features = request.features
    return Form((features.shape[0], request.code_lengths[-1]), torch.float32, features.device)


def refuses_options(request: StepRequest) -> str | None:
    """Why no compiled step serves the request's options and layer, or None."""
    if request.rule is not None:
        return "weighting: a callable"
    if request.teacher != "next" and request.distill_weight:
        return f"teacher: {request.teacher!r}"
    return request.unusual
