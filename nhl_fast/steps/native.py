"""The head's training step on the CPU, from the native operators `torch.ops.nhl_fast.step_*` (csrc/step/).

Imported only where the backend found the library. Everything is computed in float32; nothing depends on
the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core.known_gradient import known_gradient, once, once_through, per_length_gradients
from ..core.labels import to_multi_hot
from ..core.precision import no_autocast
from ..core.prefixes import expand
from ..head.layer import refuses_layer
from ..losses.bank_pairs import DBDH, DHN, DSH
from ..losses.base import NestedLoss
from ..losses.batch_pairs import DCH, LCDSH
from ..losses.center import CSQ, DPN
from ..losses.softmax import MDSH, SHCIR
from ..losses.triplet import DTSH
from ..native.calls import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# ------------------------------------------------------------------------------------------- what can be served


def refuses_projection(layer, features: torch.Tensor) -> str | None:
    """Why the layer's projection of these features cannot be served, or None."""
    return (
        refuses_layer(layer)
        or refuses_tensor(features, "the features' tensor")
        or refuses_tensor(layer.hash_layer.weight, "the layer's weight")
    )


def refuses_tensor(x: torch.Tensor, name: str) -> str | None:
    """Why a tensor cannot be served, or None."""
    if x.device.type != "cpu":
        return f"{name} is on {x.device}, the C++ step runs on the CPU"
    if x.dtype not in DTYPES:
        return f"{name} is {x.dtype}, the C++ step computes in float32"
    return None


def refuses_loss(loss: NestedLoss, u: torch.Tensor, labels) -> str | None:
    """Why a loss of these outputs cannot be served, or None."""
    if type(loss) not in FORMS:
        return f"{type(loss).__name__} has no C++ form"
    bank = getattr(loss, "bank", None)
    if bank is not None and bank.u.dtype != torch.float32:
        return f"the bank is {bank.u.dtype}, the C++ step computes in float32"
    return refuses_tensor(u, "the outputs' tensor")


# -------------------------------------------------------------------------------------------------- the losses

FORMS: dict[type, Callable] = {}


def _form(*losses: type):
    """Register a function (loss, u, labels) -> (values (m,), deltas (N, sum of the lengths))."""

    def register(function):
        for loss in losses:
            FORMS[loss] = function
        return function

    return register


def _centers(loss, u, labels):
    """(centres, ids), or (one centre a row, None)."""
    return (loss._centers.float(), labels) if labels.ndim == 1 else (loss.targets(labels, u).contiguous(), None)


def _sets(loss, labels: torch.Tensor) -> torch.Tensor:
    """Ids as they are, label sets as contiguous bool rows."""
    return labels if labels.ndim == 1 else labels.to(torch.bool).contiguous()


def _reference(loss) -> float:
    return float(loss.reference_bits or 0)  # 0: inner products as they are


def _with_bank(loss, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(labels, bank, bank labels, written), both labels as ids or both as bool rows."""
    bank = loss.bank
    theirs = bank.labels
    if labels.ndim != theirs.ndim:
        labels, theirs = (to_multi_hot(t, loss.num_classes, torch.bool) for t in (labels, theirs))
    return _sets(loss, labels), bank.u, _sets(loss, theirs), bank.written


@_form(CSQ)
def _csq(loss, u, labels):
    return ops.step_csq(u, *_centers(loss, u, labels), loss.code_lengths, loss.quantization)


@_form(DPN)
def _dpn(loss, u, labels):
    return ops.step_dpn(u, *_centers(loss, u, labels), loss.code_lengths, loss.margin, loss.ternary)


@_form(DSH)
def _dsh(loss, u, labels):
    return ops.step_dsh(u, *_with_bank(loss, labels), loss.code_lengths, loss.alpha, loss.margin, loss.balance)


@_form(DHN)
def _dhn(loss, u, labels):
    bits = _reference(loss)
    return ops.step_dhn(u, *_with_bank(loss, labels), loss.code_lengths, loss.alpha, bits, loss.balance)


@_form(DBDH)
def _dbdh(loss, u, labels):
    clamp = 1.0 if loss.clamp else float("inf")
    bits = _reference(loss)
    return ops.step_dbdh(u, *_with_bank(loss, labels), loss.code_lengths, loss.alpha, clamp, bits, loss.balance)


@_form(LCDSH)
def _lcdsh(loss, u, labels):
    clamp = 50.0 if loss.clamp else float("inf")
    return ops.step_lcdsh(u, _sets(loss, labels), loss.code_lengths, loss.eta, clamp, _reference(loss))


@_form(DCH)
def _dch(loss, u, labels):
    cap = float("inf") if loss.max_cosine is None else loss.max_cosine
    return ops.step_dch(u, _sets(loss, labels), loss.code_lengths, loss.gamma, loss.quantization, cap)


@_form(DTSH)
def _dtsh(loss, u, labels):
    low, high = (-100.0, 50.0) if loss.clamp else (-float("inf"), float("inf"))
    bits = _reference(loss)
    return ops.step_dtsh(u, _sets(loss, labels), loss.code_lengths, loss.margin, loss.quantization, low, high, bits)


@_form(MDSH)
def _mdsh(loss, u, labels):
    scale, bank = 1 / (u.shape[0] * loss.num_classes), ()
    if loss.pair_term_active:
        labels, *bank = _with_bank(loss, labels)
    centers, bits = loss._centers.float(), _reference(loss)
    return ops.step_center_softmax(
        u, _sets(loss, labels), centers, loss.code_lengths, scale, 1.0, loss.quantization, bits, *bank
    )


@_form(SHCIR)
def _shcir(loss, u, labels):
    weight = 1 / (loss.num_classes - 1)
    return ops.step_center_softmax(
        u,
        labels,
        loss._centers.float(),
        loss.code_lengths,
        1 / u.shape[0],
        weight,
        loss.quantization,
        _reference(loss),
    )


def values_and_deltas(
    loss: NestedLoss, u: torch.Tensor, labels, index, recorded: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (m,), deltas (N, sum of the lengths)) of a loss at u (N, L); a bank takes the rows in if `recorded`."""
    with torch.set_grad_enabled(recorded):
        u, labels = loss.prepare(u.detach(), labels, index)
    with torch.no_grad():
        return FORMS[type(loss)](loss, u.contiguous(), labels)


def loss_values(loss: NestedLoss, u: torch.Tensor, labels, index) -> torch.Tensor:
    """(m,) values of a loss as functions of u (N, L)."""
    values, deltas = values_and_deltas(loss, u, labels, index, torch.is_grad_enabled())
    return known_gradient(expand(u.float(), loss.code_lengths), values, deltas, loss._segments)


# ---------------------------------------------------------------------------------------------------- the step


class _Head(torch.autograd.Function):
    """The total as a function of features, weight and bias, whose gradient in the outputs is known."""

    @staticmethod
    def forward(ctx, features, weight, bias, total, du):
        ctx.save_for_backward(features, weight, bias, du)
        return total.clone()

    @staticmethod
    def backward(ctx, scale):
        *sources, du = ctx.saved_tensors
        for_features, for_weight, for_bias, *_ = ctx.needs_input_grad
        with torch.no_grad():
            features, weight, bias = sources
            df, dw, db = ops.step_project_back(
                scale, du, _plain(features), _plain(weight), for_features, for_weight or for_bias
            )
            df = df.to(features.dtype) if for_features else None
            dw = dw.to(weight.dtype) if for_weight else None
            db = db.to(bias.dtype) if for_bias else None
        return *(once(gradient, *sources, scale) for gradient in (df, dw, db)), None, None


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.detach().float().contiguous()


def step(objective, features: torch.Tensor, labels, index, scaled: bool = False):
    """(total, losses, distill, weights, dots or None) of an objective; only the total has a gradient.

    scaled: see `nhl_fast.steps.fused.step.step`; never on a CPU.
    """
    layer, loss = objective.layer, objective.loss
    lengths, linear = layer.code_lengths, layer.hash_layer
    weight, bias = linear.weight, linear.bias
    recorded = torch.is_grad_enabled()
    with torch.no_grad(), no_autocast(features):
        x = _plain(features)
        wanted = objective.weighting == "dominance" and uses_gram(*x.shape, lengths)
        u, gram = ops.step_project(x, _plain(weight), _plain(bias), wanted)
        if objective.check_finite and not torch.compiler.is_compiling() and not ops.step_finite(u):
            raise ValueError(objective.NOT_FINITE)
        attached = None
        if refuses_loss(loss, u, labels) is None:
            values, deltas = values_and_deltas(loss, u, labels, index, recorded)
        else:
            attached, deltas = _foreign(loss, u, labels, index, recorded)
            values = attached.detach()
        fixed = None if objective.weighting == "dominance" else objective._fixed_weights
        total, distill, weights, dots, du = ops.step_combine(
            u, x, gram, values, deltas, lengths, objective.distill_weight, fixed
        )
    total = _Head.apply(features, weight, bias, total, du)
    if attached is not None and any(p.requires_grad for p in loss.parameters()):
        with_graph = once_through(once_through(weights @ attached, weight), features)
        total = total + (with_graph - with_graph.detach())
    return total, values, distill, weights, dots if fixed is None else None


def _foreign(loss, u, labels, index, recorded: bool):
    """Values (with their graph) and deltas of a loss without a C++ form."""
    with torch.inference_mode(False), torch.enable_grad():
        with torch.set_grad_enabled(recorded):
            u, labels = loss.prepare(u.clone(), labels, index)
        values, deltas = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u, loss.code_lengths))
    return values, deltas.detach().contiguous()


def uses_gram(n: int, d: int, code_lengths) -> bool:
    """Whether the dots come from the features' Gram matrix (n, n) rather than from the products deltas^T F."""
    total = sum(code_lengths)
    return n * (d + total) <= d * total
