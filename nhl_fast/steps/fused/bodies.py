"""The bodies that the kernels serve, by name: each takes a form (`nhl_fast.losses.form`) to values and deltas.

    u       (N, L) contiguous float32, detached.
    labels  as `prepare` gives them: int64 ids, or multi-hot rows.
    values  (m,) float32, or (P, m) partial sums whose sum over the rows is the values (the combine kernel adds
            them up, which spares a launch).
    deltas  (N, sum of the code lengths) float32: the gradient of each length's value with respect to its own
            outputs, side by side (see `nhl_fast.core.prefixes`).

Where gradients are recorded, values are functions of what the loss itself learns (a listwise form's scales, a
classifier, proxies).
Nothing in it waits for the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from nhl_fast.kernels import pairs as pair_kernels
from nhl_fast.kernels import softmax as softmax_kernels

from ...core.known_gradient import known_gradient
from ...core.prefixes import expand
from ...losses.form import NO_PENALTY, Form, squashed
from ...losses.weighted import (
    LabelRows,
    as_graded,
    graded,
    pair_terms,
    plain_rows,
    proxy_terms,
    row_targets,
    unlike_terms,
)
from . import center as centers_alone
from . import classifier as learned_classes
from . import listwise as whole_lists
from . import pairs as all_pairs
from . import softmax as classes
from . import triplets as all_triplets
from .operators import direct


def center(form: Form, u, labels, lengths):
    if isinstance(labels, LabelRows):  # each row's own centre
        targets = row_targets(form, labels)
        problem = center_problem(dataclasses.replace(form, centers=targets), lengths)
        return direct(centers_alone.center)(u, torch.arange(len(u), device=u.device), *problem, labels.weights)
    return direct(centers_alone.center)(u, labels, *center_problem(form, lengths))


def center_problem(form: Form, lengths) -> tuple:
    """What `center` and `project_center` take of a form."""
    return form.centers, form.ties, lengths, form.function, list(form.constants)


def pairs(form: Form, u, labels, lengths):
    return squashed(_pairs, form, u, labels, lengths) if form.squash else _pairs(form, u, labels, lengths)


def _pairs(form: Form, u, labels, lengths):
    return direct(all_pairs.pairs)(*pair_problem(form, u, labels, lengths))


def pair_problem(form: Form, u, labels, lengths) -> tuple:
    bank, given, labels = form.bank, None, as_graded(form, labels)
    theirs = None if bank is None else bank.labels
    if isinstance(labels, LabelRows):
        given = [term.contiguous() for term in pair_terms(form, labels)]
        # Ids of no meaning beside S.
        labels = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        theirs = None if bank is None else torch.zeros(len(bank.u), dtype=torch.int64, device=u.device)
    others = (None, labels, None, None) if bank is None else (bank.u, labels, theirs, bank.written)
    penalty = form.penalty or NO_PENALTY
    return (
        u, *others, lengths, form.function, list(form.constants), *penalty, form.weigh, form.over, form.clamp,
        form.reference_bits, given,
    )  # fmt: skip


def triplets(form: Form, u, labels, lengths):
    weight, given = (form.penalty or NO_PENALTY).weight, ()
    if isinstance(labels, LabelRows):
        given, labels = (graded(labels, labels.labels), labels.weights), labels.labels
    return direct(all_triplets.triplets)(
        u, labels, lengths, form.function, list(form.constants), weight, form.reference_bits, *given
    )


def softmax(form: Form, u, labels, lengths):
    weight = (form.penalty or NO_PENALTY).weight
    given, weights, soft, one_hot = labels, None, False, form.one_hot
    if isinstance(labels, LabelRows):
        given, weights, soft, one_hot = labels.labels, labels.weights, labels.soft, False
    return direct(classes.softmax)(
        u, form.centers.float(), given, lengths, form.function, list(form.constants), weight, one_hot,
        form.reference_bits, weights, soft,
    )  # fmt: skip


def classifier(form: Form, u, labels, lengths):
    weight = (form.penalty or NO_PENALTY).weight
    given, weights, soft, learned = labels, None, False, form.classifier.float()
    if isinstance(labels, LabelRows):
        given, weights, soft = labels.labels, labels.weights, labels.soft
    learns = torch.is_grad_enabled() and learned.requires_grad
    values, deltas, slopes = direct(learned_classes.classifier)(
        u, learned.detach(), given, lengths, form.function, weight, learns, weights, soft
    )
    if learns:
        values = known_gradient(learned, values.sum(0), slopes.sum(0), form.segments)
    return values, deltas


def proxies(form: Form, u, labels, lengths):
    learned, by_weights = form.proxies.float(), isinstance(labels, LabelRows)
    table, classes = learned.detach(), torch.arange(len(learned), device=u.device)
    ids, there, back = labels, None, None
    if by_weights:  # ids of no meaning beside S
        s, w, v, kinds = proxy_terms(form, labels)
        ids, there, back = _no_ids(u), [s, w, v, kinds], [s.T.contiguous(), v, w, kinds]

    def problem(x, own, others, theirs, weigh, given):
        fixed = form.function, list(form.constants), *NO_PENALTY, weigh, "pairs", math.inf, 0.0, given
        return x, others, own, theirs, None, lengths, *fixed

    values, deltas = direct(all_pairs.pairs)(*problem(u, ids, table, classes, "rarity", there))
    if by_weights or labels.ndim == 2:
        unlike = unlike_terms(form, labels if by_weights else plain_rows(labels, torch.float32))
        if unlike is not None:
            direct(all_pairs.add_pairs)(values, deltas, *problem(u, _no_ids(u), None, None, "no", list(unlike)))
    if torch.is_grad_enabled() and learned.requires_grad:
        _, slopes = direct(all_pairs.pairs)(*problem(table, classes, u, ids, "rarity", back))
        values = known_gradient(expand(learned, lengths), values, slopes, form.segments)
    return values, deltas


def _no_ids(u):
    return torch.zeros(len(u), dtype=torch.int64, device=u.device)


def listwise(form: Form, u, labels, lengths):
    targets, scales = labels.float() if labels.is_floating_point() else labels, form.scales.float()
    values, deltas, slopes = direct(whole_lists.listwise)(
        u, targets, scales.detach(), lengths, form.function, list(form.constants)
    )
    if torch.is_grad_enabled() and scales.requires_grad:
        values = known_gradient(scales, values.sum(0), slopes.sum(0))
    return values, deltas


BODIES: dict[str, Callable] = {
    "center": center, "pairs": pairs, "triplets": triplets, "softmax": softmax, "listwise": listwise,
    "classifier": classifier, "proxies": proxies,
}  # fmt: skip


def refuses(form: Form) -> str | None:
    """Why a form cannot be served, or None."""
    if form.body not in BODIES:
        return f"there is no kernel for the body {form.body!r}"
    if form.bank is not None and form.bank.u.dtype != torch.float32:
        return f"the bank is {form.bank.u.dtype}, the kernels take float32"
    if form.body == "softmax" and form.reference_bits > softmax_kernels.MAX_REFERENCE:
        return f"reference_bits is {form.reference_bits}, the kernels take at most {softmax_kernels.MAX_REFERENCE}"
    if form.body == "softmax" and softmax_kernels.too_sharp(form.function, form.constants, form.reference_bits):
        return f"the margin is {form.constants[0]}, logits more than 64 apart are not served"
    if form.body == "pairs" and form.reference_bits and not pair_kernels.scales(form.function):
        return f"reference_bits is {form.reference_bits}, and {form.function!r} looks at no products"
    return None


def elsewhere(form: Form, device: torch.device) -> str | None:
    """Which tensor of a form is on another device than the outputs, or None."""
    held = {"centers": form.centers, "tie centers": form.ties, "scales": form.scales, "classifier": form.classifier}
    held |= {"proxies": form.proxies, "bank": None if form.bank is None else form.bank.u}
    for name, tensor in held.items():
        if tensor is not None and tensor.device != device:
            return f"the loss has its {name} on {tensor.device}, the outputs on {device}"
    return None


def values_and_deltas(forms, u, labels, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, deltas) of the sum of the forms."""
    values, deltas = BODIES[forms[0].body](forms[0], u, labels, lengths)
    if len(forms) > 1:
        add(values, deltas, forms[1:], u, labels, lengths)
    return values, deltas


def add(values, deltas, forms, u, labels, lengths: list[int]) -> None:
    """Add those of more forms to values and deltas, in place."""
    for form in forms:
        if form.body == "pairs" and not form.squash:
            direct(all_pairs.add_pairs)(values, deltas, *pair_problem(form, u, labels, lengths))
        else:
            more, slopes = BODIES[form.body](form, u, labels, lengths)
            (values if values.ndim == 1 else values[0]).add_(more if more.ndim == 1 else more.sum(0))
            deltas.add_(slopes)
