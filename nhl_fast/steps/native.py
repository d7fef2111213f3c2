"""The head's training step on the CPU, from the native operators `torch.ops.nhl_fast.step_*` (csrc/step/).

The library itself is loaded at the first call. Everything is computed in float32; nothing depends on the number of
threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..core import check
from ..core.known_gradient import known_gradient, once, per_length_gradients, with_parameters
from ..core.labels import to_multi_hot
from ..core.precision import no_autocast
from ..core.prefixes import expand
from ..head.request import NOT_FINITE, StepRequest, outputs_form, refuses_options
from ..head.step import STEP
from ..losses.bank import Bank
from ..losses.base import LOSS, NestedLoss
from ..losses.form import NO_PENALTY, Form, row_centers, squashed
from ..losses.weighted import LabelRows, as_graded, pair_terms, plain_rows, proxy_terms, row_targets, unlike_terms
from ..native.calls import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# ------------------------------------------------------------------------------------------- what can be served


def refuses_head(request: StepRequest) -> str | None:
    """Why a step of whatever loss cannot be served, or None."""
    return (
        refuses_options(request)
        or refuses_tensor(request.features, "the features' tensor")
        or refuses_tensor(request.weight, "the layer's weight")
    )


def refuses_step(request: StepRequest) -> str | None:
    """Why a step whose loss is computed here, too, cannot be served, or None."""
    return refuses_head(request) or refuses_loss(request.loss, outputs_form(request), request.labels)


def refuses_tensor(x: torch.Tensor, name: str) -> str | None:
    """Why a tensor cannot be served, or None."""
    if x.device.type != "cpu":
        return f"{name} is on {x.device}, the C++ step runs on the CPU"
    if check.vmapped():
        return f"{name} is within torch.func.vmap"
    if x.dtype not in DTYPES:
        return f"{name} is {x.dtype}, the C++ step computes in float32"
    return None


def refuses_loss(loss: NestedLoss, u: torch.Tensor, labels) -> str | None:
    """Why a loss of these outputs cannot be served, or None."""
    forms = loss.forms()
    if not forms:
        return f"{type(loss).__name__} has no C++ form"
    return next(filter(None, map(refuses_form, forms)), None) or refuses_tensor(u, "the outputs' tensor")


def refuses_form(form: Form) -> str | None:
    """Why a form cannot be served, or None."""
    if not _has(form.body, form.function):
        check.one_of(form.function, "function", functions(form.body))  # raises
    if form.bank is not None and form.bank.u.dtype != torch.float32:
        return f"the bank is {form.bank.u.dtype}, the C++ step computes in float32"
    return None


# -------------------------------------------------------------------------------------------------- the bodies


def center(form: Form, u, labels, lengths):
    if isinstance(labels, LabelRows):
        targets = row_targets(form, labels).contiguous()
        return ops.step_center(
            u, targets, None, lengths, form.function, form.constants, labels.weights, labels.soft
        )  # fmt: skip
    centers, ids = form.centers.float(), labels
    if labels.ndim == 2:  # one centre a row
        centers, ids = row_centers(labels, centers, form.ties.float()).contiguous(), None
    return ops.step_center(u, centers, ids, lengths, form.function, form.constants)


def pairs(form: Form, u, labels, lengths):
    return squashed(_pairs, form, u, labels, lengths) if form.squash else _pairs(form, u, labels, lengths)


def _pairs(form: Form, u, labels, lengths):
    labels, weights = as_graded(form, labels), ()
    if isinstance(labels, LabelRows):
        _, own, others, shares = pair_terms(form, labels)
        even = form.weigh == "no" and form.over == "pairs"
        weights = (own, None if form.bank is None else others, *((1.0, 1.0) if even else shares.tolist()))
    own, *bank = comparable(labels, form.bank)
    return ops.step_pairs(
        u, own, *(bank or (None, None, None)), lengths, form.function, form.constants, *(form.penalty or NO_PENALTY),
        form.weigh, form.over, form.clamp, form.reference_bits, *weights,
    )  # fmt: skip


def triplets(form: Form, u, labels, lengths):
    penalty = form.penalty or NO_PENALTY
    return ops.step_triplets(
        u, comparable(labels, None)[0], lengths, form.function, form.constants, *penalty, form.reference_bits,
        weights_of(labels),
    )  # fmt: skip


def softmax(form: Form, u, labels, lengths):
    given = labels.labels if isinstance(labels, LabelRows) else labels
    soft = isinstance(labels, LabelRows) and labels.soft
    return ops.step_softmax(
        u, given.contiguous() if soft else sets(given), form.centers.float(), lengths, form.function, form.constants,
        *(form.penalty or NO_PENALTY), form.reference_bits, weights_of(labels),
    )  # fmt: skip


def classifier(form: Form, u, labels, lengths):
    given = labels.labels if isinstance(labels, LabelRows) else labels
    soft, weights = isinstance(labels, LabelRows) and labels.soft, form.classifier.float()
    values, deltas, slopes = ops.step_classifier(
        u, given.contiguous() if soft else sets(given), weights.detach().contiguous(), lengths, form.function,
        form.constants, *(form.penalty or NO_PENALTY), weights_of(labels),
    )  # fmt: skip
    return known_gradient(weights, values, slopes, form.segments), deltas


def proxies(form: Form, u, labels, lengths):
    learned, by_weights = form.proxies.float(), isinstance(labels, LabelRows)
    rows = labels if by_weights else plain_rows(labels, torch.float32)
    table, count, own = learned.detach().contiguous(), len(learned), comparable(rows, None)[0]
    given = rows.labels.contiguous() if rows.soft else own
    classes = torch.arange(count) if own.ndim == 1 else torch.eye(count, dtype=given.dtype)

    def mean(x, labels, others, weigh, *weights):
        return ops.step_pairs(
            x, labels, *others, None, lengths, form.function, form.constants, *NO_PENALTY, weigh, "pairs", math.inf,
            0.0, *weights,
        )  # fmt: skip

    there = back = ()
    if by_weights:
        _, w, v, kinds = proxy_terms(form, rows)
        there, back = (w, v, *kinds.tolist()), (v, w, *kinds.tolist())
    values, deltas = mean(u, given, (table, classes), "rarity", *there)
    if (unlike := unlike_terms(form, rows)) is not None:
        more, slopes = mean(u, own, (None, None), "no", unlike[1], None, *unlike[3].tolist())
        values.add_(more), deltas.add_(slopes)
    if torch.is_grad_enabled() and learned.requires_grad:
        _, slopes = mean(table, classes, (u, given), "rarity", *back)
        values = known_gradient(expand(learned, lengths), values, slopes, form.segments)
    return values, deltas


def listwise(form: Form, u, labels, lengths):
    targets = (labels.float() if labels.is_floating_point() else labels).contiguous()
    scales = form.scales.float()
    values, deltas, slopes = ops.step_listwise(
        u, targets, scales.detach(), lengths, form.function, form.constants
    )  # fmt: skip
    return known_gradient(scales, values, slopes), deltas


BODIES: dict[str, Callable] = {
    "center": center, "pairs": pairs, "triplets": triplets, "softmax": softmax, "listwise": listwise,
    "classifier": classifier, "proxies": proxies,
}  # fmt: skip


@functools.cache
def functions(body: str) -> tuple[str, ...]:
    """Names of the functions that a body of the library takes."""
    return tuple(ops.step_functions("pairs" if body == "proxies" else body).split(", "))


def _has(body: str, function: str) -> bool:
    return function in functions(body)


# See `nhl_fast.core.first_use.load`; on what functools.cache makes the mark would go unseen.
_has._dynamo_marked_constant = True


def sets(labels: torch.Tensor) -> torch.Tensor:
    """Ids as they are, label sets as contiguous bool rows."""
    return labels if labels.ndim == 1 else labels.to(torch.bool).contiguous()


def weights_of(labels) -> torch.Tensor | None:
    """The rows' weights, where they have some."""
    return labels.weights if isinstance(labels, LabelRows) else None


def comparable(labels, bank: Bank | None) -> tuple[torch.Tensor, ...]:
    """(labels,), or (labels, bank, bank labels, written), both labels as ids, bool rows or rows at norm 1."""
    if isinstance(labels, LabelRows):
        if labels.soft:
            rows = F.normalize(labels.labels)
            return (rows,) if bank is None else (rows, bank.u, F.normalize(bank.labels), bank.written)
        labels = labels.labels
    if bank is None:
        return (sets(labels),)
    theirs = bank.labels
    if labels.ndim != theirs.ndim:
        labels, theirs = (to_multi_hot(t, bank.num_classes, torch.bool) for t in (labels, theirs))
    return sets(labels), bank.u, sets(theirs), bank.written


def sum_of_forms(forms, u: torch.Tensor, labels, lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (m,), deltas (N, sum of the lengths)) of the sum of the forms at u (N, L)."""
    first, *others = forms
    values, deltas = BODIES[first.body](first, u, labels, lengths)
    for form in others:
        more, slopes = BODIES[form.body](form, u, labels, lengths)
        values.add_(more), deltas.add_(slopes)
    return values, deltas


def values_and_deltas(
    loss: NestedLoss, u: torch.Tensor, labels, index, recorded: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (m,), deltas (N, sum of the lengths)) of a loss at u (N, L); a bank takes the rows in if `recorded`.

    The values are functions of the loss's own parameters, where its forms have some.
    """
    with torch.set_grad_enabled(recorded):
        u, labels = loss.prepare(u.detach(), labels, index)
        return sum_of_forms(loss.forms(), u.contiguous(), labels, loss.code_lengths)


@LOSS.serves("cpp", on="cpu", refuses=lambda loss, u, labels, index: refuses_loss(loss, u, labels), traced=False)
def loss_values(loss: NestedLoss, u: torch.Tensor, labels, index) -> torch.Tensor:
    """(m,) values of a loss as functions of u (N, L)."""
    values, deltas = values_and_deltas(loss, u, labels, index, torch.is_grad_enabled())
    found = known_gradient(expand(u.float(), loss.code_lengths), values.detach(), deltas, loss.segments)
    return with_parameters(found, values, u)


# ---------------------------------------------------------------------------------------------------- the step


class _Head(torch.autograd.Function):
    """The total as a function of features, weight and bias, whose gradient in the outputs is known."""

    @staticmethod
    def forward(features, weight, bias, total, du):
        return total.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        features, weight, bias, _, du = inputs
        ctx.save_for_backward(features, weight, bias, du)

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


@STEP.serves("cpp", on="cpu", refuses=refuses_step, leaves=refuses_head, traced=False)
def step(request: StepRequest):
    """(total, losses, distill, weights, dots or None) of a request; only the total has a gradient."""
    with no_autocast(request.features):
        return _step(request)


def _step(request: StepRequest):
    features, weight, bias, loss, lengths = (
        request.features, request.weight, request.bias, request.loss, request.code_lengths
    )  # fmt: skip
    fixed, recorded = request.fixed_weights, torch.is_grad_enabled()
    with torch.no_grad():
        x = _plain(features)
        u, gram = ops.step_project(x, _plain(weight), _plain(bias), fixed is None and uses_gram(*x.shape, lengths))
        if request.check_finite and not torch.compiler.is_compiling() and not ops.step_finite(u):
            raise ValueError(NOT_FINITE)
        served = refuses_loss(loss, u, request.labels) is None
        find = values_and_deltas if served else _foreign
        attached, deltas = find(loss, u, request.labels, request.index, recorded)
        values = attached.detach()
        total, distill, weights, dots, du = ops.step_combine(
            u, x, gram, values, deltas, lengths, request.distill_weight, fixed
        )
    total = _Head.apply(features, weight, bias, total, du)
    if any(p.requires_grad for p in loss.parameters()):
        total = with_parameters(total, weights @ attached, weight, features)
    return total, values, distill, weights, dots if fixed is None else None


def _foreign(loss, u, labels, index, recorded: bool):
    """Values (with their graph) and deltas of a loss without a C++ form."""
    with torch.inference_mode(False), torch.enable_grad():
        with torch.set_grad_enabled(recorded):
            u, labels = loss.prepare(u.clone(), labels, index)
        values, deltas = per_length_gradients(lambda v: loss.evaluated(v, labels), expand(u, loss.code_lengths))
    return values, deltas.detach().contiguous()


def uses_gram(n: int, d: int, code_lengths) -> bool:
    """Whether the dots come from the features' Gram matrix (n, n) rather than from the products deltas^T F."""
    total = sum(code_lengths)
    return n * (d + total) <= d * total
