"""The whole training step of a nested hash layer: losses, distillation, weights and one gradient."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..core import check, ranks
from ..core.precision import scaled_training
from ..losses.bank import banks, joined_rows
from ..losses.base import NestedLoss, beside
from .distillation import TEACHERS
from .layer import NestedHashLayer, refuses_layer
from .request import StepRequest
from .step import STEP


@functools.cache
def _say(count: int) -> None:
    """Once a process."""
    logging.getLogger("nhl_fast").warning(
        "NestedObjective: a training step joins the rows of the process group's %d ranks", count
    )


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
            published losses; "auto" takes them for CUDA tensors where they serve) or "cpp" (the same on the CPU;
            "auto" takes it for CPU tensors, with any other loss evaluated as it defines itself, and leaves
            torch.compile the reference).
        process_group: whose ranks' rows a training step (training mode, gradients recorded) is of: "auto" (the
            default group of torch.distributed where one of several ranks is up, said once in the log), a group, or
            None (this rank's rows alone). Every rank of the group then takes every step, with as many rows as it
            has, evaluates the joined batch, and gets the joined batch's gradients of layer and loss, and of its own
            features times the number of ranks: DistributedDataParallel and FSDP take the mean over the ranks.

    Call it with features (N, d), labels (ids (N,) or multi-hot (N, C)) and, for losses with a bank, the rows'
    positions `index` (N,) in the training set. It gives an `ObjectiveResult`; the weights are constants to
    autograd, and the features' gradient is that of the weighted sum.

    `objective(features, labels, index, outputs=...)` takes outputs (N, L), or the tuple of prefixes, of a layer that
    sits elsewhere, inside a DistributedDataParallel say: the gradient then goes to the outputs. The features, as
    constants, are what dominance-aware weights depend on; without these they may be left out.

    Source: arXiv 2412.08922; the weights and their Gram shortcut are in `nhl_fast.head.weighting`.
    """

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
        process_group: str | torch.distributed.ProcessGroup | None = "auto",
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
        self.process_group = ranks.check_group(process_group)
        self._shared = False
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
        if fixed is not None:
            device = getattr(getattr(layer.hash_layer, "weight", None), "device", None)
            elsewhere = device is not None and device.type != "meta"
            fixed = torch.tensor(fixed, dtype=torch.float32, device=device if elsewhere else "cpu")
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

    def __prepare_scriptable__(self):
        check.refuse_script(self)

    def _apply(self, fn, recurse=True):
        kept = self._fixed_weights
        super()._apply(fn, recurse)
        if kept is not None:
            # No state dict holds them, `to_empty` leaves memory as it finds it, and meta tensors hold nothing.
            now = self._fixed_weights
            self._fixed_weights = kept if now.is_meta else kept.to(now.device)
        return self

    @check.memory
    def forward(self, features=None, labels=None, index: torch.Tensor | None = None, *, outputs=None):
        group = self.group() if self.training and torch.is_grad_enabled() else None
        if group is None:
            return self._step(features, labels, index, outputs)
        joined = self._join(features, labels, index, outputs, group)
        with joined_rows(self.loss):
            return self._step(*joined)

    def _step(self, features, labels, index, outputs) -> ObjectiveResult:
        if outputs is None:
            request = self.request(features, labels, index)
        else:
            u, labels, index = self.loss.arguments(outputs, labels, index)
            features = self._features_beside(u, features)
            request = self.request(features.detach(), labels, index)
            request = request._replace(outputs=lambda _: u, unusual="the outputs are given")
        return ObjectiveResult(*STEP(request, backend=self.backend, device=request.features.device))

    def _features_beside(self, u: torch.Tensor, features):
        """The features of given outputs; where no weights depend on them, they may be left out."""
        if features is not None:
            return features
        if self._fixed_weights is None:
            raise ValueError(
                "features: expected the features of the given outputs, on which the weights depend "
                "(or weighting='uniform', or numbers)"
            )
        return u.new_zeros(len(u), self.layer.in_features)

    def group(self):
        """The group of several ranks whose rows a training step joins, or None."""
        return ranks.resolve_group(self.process_group)

    def _join(self, features, labels, index, outputs, group) -> list[torch.Tensor | None]:
        error = None
        try:
            if outputs is not None:
                outputs, labels, index = self.loss.arguments(outputs, labels, index)
                features = self._features_beside(outputs, features).detach()
            self.layer.check_features(features, "features")
            if outputs is not None and outputs.shape != (len(features), self.layer.out_features):
                raise ValueError(
                    f"outputs: expected shape ({len(features)}, {self.layer.out_features}), "
                    f"got {check.describe(outputs)}"
                )
            labels = self.loss.usual_labels(labels, features)
            labels = self.loss.check_labels(labels, len(features)).to(features.device)
            index = None if index is None else self._checked_index(index, len(features)).to(features.device)
        except Exception as problem:  # told to the other ranks, which would wait
            error = problem
        given = [features, labels, index, outputs] if error is None else [torch.zeros(0), None, None, None]
        joined = ranks.join_rows(given, group, error)
        if not self._shared:
            self._share(group)
        return joined

    def _checked_index(self, index, rows: int) -> torch.Tensor:
        for bank in banks(self.loss):
            bank.check_index(index, rows)
        return check.tensor(index, "index")

    def _share(self, group) -> None:
        """At the first step: say so, and start from the first rank's banks."""
        self._shared = True
        if isinstance(self.process_group, str) and torch.distributed.get_rank(group) == 0:
            _say(torch.distributed.get_world_size(group))
        for bank in banks(self.loss):
            bank.share(group)

    def request(self, features: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None) -> StepRequest:
        """The step that a call with these arguments takes; the features are checked here, and only here."""
        layer = self.layer
        layer.check_features(features, "features")
        unusual, linear = refuses_layer(layer), layer.hash_layer
        unusual = unusual or ("bihalf: bits are halved over the batch" if layer.halves else None)
        labels, index = self.loss.usual_labels(labels, features), beside(index, features)
        return StepRequest(
            features=features,
            labels=labels,
            index=index,
            loss=self.loss,
            outputs=layer.outputs,
            weight=None if unusual else linear.weight,
            bias=None if unusual else linear.bias,
            unusual=unusual,
            code_lengths=layer.code_lengths,
            distill_weight=self.distill_weight,
            teacher=self.teacher,
            fixed_weights=self._fixed_weights,
            rule=self.rule,
            check_finite=self.check_finite,
            scaled=scaled_training(features),
        )
