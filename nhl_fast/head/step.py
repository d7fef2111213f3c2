"""One training step of the head: the operation `STEP`, and its definition in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core import check
from ..core.known_gradient import known_gradient, per_length_gradients, with_parameters
from ..core.operation import Operation
from ..core.precision import no_autocast
from ..core.prefixes import expand, pad, weighted_sum
from .distillation import expanded_distillation_losses
from .request import NOT_FINITE, StepRequest
from .weighting import dominance_dots, dominance_weights


def reference(request: StepRequest) -> tuple[torch.Tensor | None, ...]:
    """(total, losses, distill, weights, dots or None) of a request; only the total has a gradient."""
    u = request.outputs(request.features)
    if request.check_finite and request.scaled:
        u = u + (u - u).detach()  # infinity becomes NaN, which every loss hands on
    elif request.check_finite:
        check.values(torch.isfinite(u).all(), NOT_FINITE)
    recorded = torch.is_grad_enabled()
    with no_autocast(u):
        if torch.compiler.is_compiling():
            return _evaluate(request, u, u.detach(), recorded)
        with torch.inference_mode(False), torch.enable_grad():
            return _evaluate(request, u, u.clone() if u.is_inference() else u.detach(), recorded)


def _evaluate(request: StepRequest, u: torch.Tensor, plain: torch.Tensor, recorded: bool):
    loss, lengths, distill_weight = request.loss, request.code_lengths, request.distill_weight
    with torch.set_grad_enabled(recorded):
        plain, labels = loss.prepare(plain, request.labels, request.index)

    def both(v):
        losses = loss.evaluated(v, labels)
        if distill_weight == 0:
            return torch.stack([losses, torch.zeros_like(losses)])
        distill = expanded_distillation_losses(v, lengths, loss.segments, request.teacher)
        return torch.stack([losses, distill_weight * distill])

    values, deltas = per_length_gradients(both, expand(plain, lengths))
    padded, dots = pad(deltas.detach(), lengths), None
    if request.fixed_weights is not None:
        weights = request.fixed_weights.to(plain)
    else:
        dots = dominance_dots(padded, request.features.detach().to(plain.dtype), lengths)
        rule = request.rule
        weights = dominance_weights(dots) if rule is None else _ruled(rule, dots, values.sum(0).detach())
    total = weights @ values.sum(0)
    value = total.detach()
    if u.requires_grad:
        value = known_gradient(u, value, weighted_sum(padded, weights))
    if any(p.requires_grad for p in loss.parameters()):
        value = with_parameters(value, total, u)
    values = values.detach()
    distill = values[1] / distill_weight if distill_weight else values[1]
    return value, values[0], distill, weights, dots


def _ruled(rule: Callable, dots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    weights = rule(dots, values)
    if not isinstance(weights, torch.Tensor) or weights.shape != values.shape:
        raise ValueError(f"weighting: expected the callable to give {tuple(values.shape)}, got {weights!r}"[:300])
    return weights.detach().to(values)


STEP = Operation("NestedObjective", reference)
