"""The whole training step of a nested hash layer: losses, distillation, weights and one gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..core import check
from ..core.backend import pick
from ..core.known_gradient import known_gradient, once_through, per_length_gradients
from ..core.precision import scaled_training
from ..core.prefixes import expand, pad, weighted_sum
from ..losses.base import NestedLoss, fused_step, native_step, no_autocast
from .distillation import TEACHERS, expanded_distillation_losses
from .layer import NestedHashLayer
from .weighting import dominance_dots, dominance_weights


class ObjectiveResult(NamedTuple):
    """What one evaluation of `NestedObjective` gives.

    Attributes:
        total: 0-d, sum_k a_k (L_k + lambda D_k); `total.backward()` fills every gradient. The rest is detached.
        losses: (m,) L_k.
        distill: (m,) D_k (the last is 0), without lambda.
        weights: (m,) a_k.
        dots: (m, m) <g_i^k, g_k^k> for i >= k where the weighting is "dominance" and there are several lengths,
            else None.
    """

    total: torch.Tensor
    losses: torch.Tensor
    distill: torch.Tensor
    weights: torch.Tensor
    dots: torch.Tensor | None


class _Form(NamedTuple):
    """Shape, dtype and device of a tensor that is not made."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device


class NestedObjective(nn.Module):
    """total = sum_k a_k (L_k + lambda D_k) with every loss evaluated once and one backward pass.

    Args:
        layer: the nested hash layer.
        loss: a nested loss with the layer's code lengths.
        distill_weight: lambda, weight of the long-short cascade self-distillation; 0 leaves it out.
        weighting: "dominance" (closed-form dominance-aware weights), "uniform" (all 1), m fixed numbers, or a
            callable (dots, values) -> weights: the (m, m) products of `ObjectiveResult.dots` (whose diagonal is each
            length's squared gradient norm), the (m,) values L_k + lambda D_k, both detached, and (m,) weights. A
            module is registered as part of the objective. Only the reference serves callables.
        teacher: whose similarities the distillation teaches, see `distillation_losses`; only the reference serves
            another than "next".
        check_finite: raise ValueError where the outputs hold NaN or infinity. On CUDA, where that would wait for the
            device, it is a device-side assertion; with float16 features or autocast, where a GradScaler skips a
            step that overflows, the total's gradient becomes NaN instead.
        backend: "auto", "reference", "triton" (the fused kernels: float32, float16 and bfloat16 features, the
            ten published losses; "auto" takes them for CUDA tensors where they serve) or "cpp" (the same on the CPU;
            "auto" takes it for CPU tensors, with any other loss evaluated as it defines itself, and leaves
            torch.compile the reference).

    Call it with features (N, d), labels (ids (N,) or multi-hot (N, C)) and, for losses with a bank, the rows'
    positions `index` (N,) in the training set. It gives an `ObjectiveResult`; the weights are constants to
    autograd, and the features' gradient is that of the weighted sum.

    Source: arXiv 2412.08922; the weights and their Gram shortcut are in `nhl_fast.head.weighting`.
    """

    NOT_FINITE = "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)"

    def __init__(
        self,
        layer: NestedHashLayer,
        loss: NestedLoss,
        distill_weight: float = 1.0,
        weighting: str | Sequence[float] | Callable = "dominance",
        *,
        teacher: str = "next",
        check_finite: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        if not isinstance(layer, NestedHashLayer):
            raise TypeError(f"layer: expected a NestedHashLayer, got {check.describe(layer)}")
        if not isinstance(loss, NestedLoss):
            raise TypeError(
                f"loss: expected a nested loss (wrap yours in nhl_fast.losses.PerLength), got {check.describe(loss)}"
            )
        if loss.code_lengths != layer.code_lengths:
            raise ValueError(
                f"loss: its code lengths {loss.code_lengths} differ from the layer's {layer.code_lengths}"
            )
        self.layer, self.loss = layer, loss
        self.distill_weight = check.number(distill_weight, "distill_weight")
        self.teacher = check.one_of(teacher, "teacher", TEACHERS)
        self.check_finite = check.flag(check_finite, "check_finite")
        self.backend = check.one_of(backend, "backend", ("auto", "reference", "triton", "cpp"))
        fixed, self.rule = None, None
        if callable(weighting):
            self.weighting, self.rule = "custom", weighting
        elif isinstance(weighting, str):
            self.weighting = check.one_of(weighting, "weighting", ("dominance", "uniform"))
            if weighting == "uniform":
                fixed = [1.0] * len(layer.code_lengths)
        else:
            fixed = self._numbers(weighting, len(layer.code_lengths))
            self.weighting = "fixed"
        if len(layer.code_lengths) == 1:  # nothing to weigh against, and nothing longer to learn from
            self.distill_weight = 0.0
            if self.weighting in ("dominance", "custom"):
                self.weighting, self.rule, fixed = "uniform", None, [1.0]
        self._fixed = fixed
        if fixed is not None:
            device = getattr(getattr(layer.hash_layer, "weight", None), "device", None)
            elsewhere = device is not None and device.type != "meta"
            fixed = torch.tensor(fixed, dtype=torch.float32, device=device if elsewhere else None)
        self.register_buffer("_fixed_weights", fixed, persistent=False)

    @staticmethod
    def _numbers(weighting, count: int) -> list[float]:
        wrong = f"weighting: expected 'dominance', 'uniform', a callable or {count} finite numbers, "
        try:
            with torch.device("cpu"):
                fixed = torch.as_tensor(weighting, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(wrong + f"got {check.describe(weighting)}") from None
        if fixed.shape != (count,) or fixed.is_meta or not bool(torch.isfinite(fixed).all()):
            raise ValueError(wrong + f"got {check.describe(weighting)}")
        return fixed.tolist()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._fixed is not None:  # no state dict holds them, and `to_empty` leaves memory as it finds it
            old = self._fixed_weights
            self._fixed_weights = torch.tensor(self._fixed, device=old.device, dtype=old.dtype)
        return self

    @check.memory
    def forward(self, features: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None):
        self.layer.check_features(features, "features")
        compiled = {
            "triton": lambda: self._refuses(fused_step(), features, labels),
            "cpp": lambda: self._refuses(native_step(), features, labels, any_loss=self.backend == "auto"),
        }
        if (chosen := pick(self.backend, "NestedObjective", features.device, compiled)) != "reference":
            step = fused_step() if chosen == "triton" else native_step()
            scaled = scaled_training(features)
            with no_autocast(features):
                return ObjectiveResult(*step.step(self, features, labels, index, scaled))
        u = self.layer.outputs(features)
        if self.check_finite and scaled_training(features):
            u = u + (u - u).detach()  # infinity becomes NaN, which every loss hands on
        elif self.check_finite:
            check.values(torch.isfinite(u).all(), self.NOT_FINITE)
        recorded = torch.is_grad_enabled()
        with no_autocast(u):
            if torch.compiler.is_compiling():
                return self._evaluate(u, u.detach(), features, labels, index, recorded)
            with torch.inference_mode(False), torch.enable_grad():
                plain = u.clone() if u.is_inference() else u.detach()
                return self._evaluate(u, plain, features, labels, index, recorded)

    def _refuses(self, step, features, labels, any_loss: bool = False) -> str | None:
        if self.rule is not None:
            return "weighting: a callable"
        if self.teacher != "next" and self.distill_weight:
            return f"teacher: {self.teacher!r}"
        if why := step.refuses_projection(self.layer, features):
            return why
        if any_loss:
            return None
        like = _Form((features.shape[0], self.layer.out_features), torch.float32, features.device)
        return step.refuses_loss(self.loss, like, labels)

    def _ruled(self, dots, values) -> torch.Tensor:
        weights = self.rule(dots, values)
        if not isinstance(weights, torch.Tensor) or weights.shape != values.shape:
            raise ValueError(f"weighting: expected the callable to give {tuple(values.shape)}, got {weights!r}"[:300])
        return weights.detach().to(values)

    def _evaluate(self, u, plain, features, labels, index, recorded: bool):
        lengths = self.layer.code_lengths
        with torch.set_grad_enabled(recorded):
            plain, labels = self.loss.prepare(plain, labels, index)

        def both(v):
            losses = self.loss.expanded(v, labels)
            if self.distill_weight == 0:
                return torch.stack([losses, torch.zeros_like(losses)])
            return torch.stack(
                [
                    losses,
                    self.distill_weight * expanded_distillation_losses(v, lengths, self.loss._segments, self.teacher),
                ]
            )

        values, deltas = per_length_gradients(both, expand(plain, lengths))
        padded, dots = pad(deltas.detach(), lengths), None
        if self.weighting in ("dominance", "custom"):
            dots = dominance_dots(padded, features.detach().to(plain.dtype), lengths)
            weights = dominance_weights(dots) if self.rule is None else self._ruled(dots, values.sum(0).detach())
        else:
            weights = self._fixed_weights.to(plain)
        total = weights @ values.sum(0)
        value = total.detach()
        if u.requires_grad:
            value = known_gradient(u, value, weighted_sum(padded, weights))
        if any(p.requires_grad for p in self.loss.parameters()):
            total = once_through(total, u)  # whose gradients by the outputs are constants here
            value = value + (total - total.detach())  # parameters of the loss itself get their gradient
        values = values.detach()
        distill = values[1] / self.distill_weight if self.distill_weight else values[1]
        return ObjectiveResult(value, values[0], distill, weights, dots)
