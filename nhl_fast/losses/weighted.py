"""Labels that count by weights: ignored rows, class weights, soft labels and graded similarity.

Here is what they mean, by the forms alone, in plain PyTorch: the reference of every loss that has forms. A function
of a bit or of a pair knows two cases, and what lies between is their mixture: a pair of similarity S is S of a
similar and 1 - S of a dissimilar one, a bit whose centre is c is (1 + c) / 2 of +1 and (1 - c) / 2 of -1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..core import check
from ..core.labels import check_form, check_labels, similarity, to_multi_hot
from ..core.prefixes import split
from . import naive
from .bank import Bank
from .form import GRADED, Form, row_centers, squash

# A cosine of label rows that is so near to 1 is 1: equal rows are no bit unlike.
NEARLY_ONE = 1 - 1e-6


class LabelRows(NamedTuple):
    """Labels of N rows as a body takes them, and how much each row counts.

    Attributes:
        labels: int64 ids (N,), multi-hot rows, or with `soft` weights (N, C); an ignored row's are of no meaning.
        weights: (N,), 1 in the mean; all 0 where no row counts.
        counted: (N,) bool, not ignored; None: all.
        soft: labels are weights, similarity is the cosine of two rows.
        class_weights: (C,) or None.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    counted: torch.Tensor | None
    soft: bool
    class_weights: torch.Tensor | None


class LabelOptions(NamedTuple):
    """See `NestedLoss.label_options`."""

    ignore_index: int | None
    weighted: bool
    soft: bool


def check_options(num_classes: int, ignore_index, class_weights, soft) -> tuple[LabelOptions, torch.Tensor | None]:
    """Options and class weights (float32) as given to `NestedLoss.label_options`, or a clear error."""
    if ignore_index is not None:
        ignore_index = check.positive_int(ignore_index, "ignore_index", minimum=-check.MAX_INT)
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index: expected a number that is no class, got {ignore_index}")
    if class_weights is not None:
        try:
            class_weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().cpu().clone()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"class_weights: expected numbers, got {check.describe(class_weights)}") from None
        usable = class_weights.shape == (num_classes,) and bool(
            torch.isfinite(class_weights).all() and (class_weights >= 0).all() and class_weights.any()
        )
        if not usable:
            raise ValueError(
                f"class_weights: expected {num_classes} finite numbers of at least 0, one a class, not all 0, "
                f"got {check.describe(class_weights)}"
            )
    check.flag(soft, "soft")
    return LabelOptions(ignore_index, class_weights is not None, soft), class_weights


def ignored_rows(labels: torch.Tensor, ignore_index: int | None) -> torch.Tensor | None:
    """(N,) bool: ids that are `ignore_index`, rows that hold nothing else; None where there is none to look for."""
    if ignore_index is None or labels.dtype == torch.bool or (labels.dtype == torch.uint8 and ignore_index < 0):
        return None
    found = labels == ignore_index
    return found if labels.ndim == 1 else found.all(1)


def without_ignored(labels: torch.Tensor, ignored: torch.Tensor | None) -> torch.Tensor:
    """Labels with zeros in ignored rows."""
    return labels if ignored is None else labels.masked_fill(ignored if labels.ndim == 1 else ignored[:, None], 0)


def check_options_labels(labels, num_rows: int, num_classes: int, options: LabelOptions) -> torch.Tensor:
    """`check_labels` with ignored rows and, where they are soft, weights between 0 and 1; unchanged in value."""
    check_form(labels, num_rows, num_classes)
    plain = without_ignored(labels, ignored_rows(labels, options.ignore_index))
    if labels.ndim == 1 or not options.soft:
        check_labels(plain, num_rows, num_classes)
    elif labels.dtype != torch.bool and labels.numel():
        check.values(((plain >= 0) & (plain <= 1)).all(), "labels: expected weights of classes between 0 and 1")
    return labels.long() if labels.ndim == 1 else labels


def label_rows(labels, num_classes: int, options: LabelOptions, class_weights, dtype) -> LabelRows:
    """Checked labels as the bodies take them."""
    ignored = ignored_rows(labels, options.ignore_index)
    plain = without_ignored(labels, ignored)
    if options.soft:
        plain = to_multi_hot(plain, num_classes, dtype)
    class_weights = class_weights.to(dtype) if options.weighted else None
    counted = None if ignored is None else ~ignored
    weights = row_weights(plain, class_weights, counted, dtype)
    return LabelRows(plain, weights, counted, options.soft, class_weights)


def as_graded(form: Form, labels):
    """Label sets as rows of weights where the form's function is one of S itself; else labels as they are."""
    if form.function not in GRADED or isinstance(labels, LabelRows) or labels.ndim == 1:
        return labels
    return label_rows(labels, labels.shape[1], LabelOptions(None, False, True), None, torch.float32)


def row_weights(labels, class_weights, counted, dtype) -> torch.Tensor:
    """(N,) weights, 1 in the mean over the rows: those of the rows' classes at their mean; 0 where not counted.

    A row without a class has weight 1 before all are divided by their mean.
    """
    if class_weights is None:
        weights = torch.ones(len(labels), dtype=dtype, device=labels.device)
    elif labels.ndim == 1:
        weights = class_weights[labels]
    else:
        y = labels.to(dtype)
        total = y.sum(1)
        weights = torch.where(total > 0, (y @ class_weights) / total.where(total > 0, 1.0), 1.0)
    weights = weights if counted is None else weights * counted
    total = weights.sum()
    return weights * (len(labels) / total.where(total > 0, torch.inf))


def plain_rows(labels: torch.Tensor, dtype) -> LabelRows:
    """Labels of which every row counts once."""
    return LabelRows(labels, torch.ones(len(labels), dtype=dtype, device=labels.device), None, False, None)


def bank_weights(rows: LabelRows, bank: Bank) -> torch.Tensor:
    """(M,) weights of the bank's rows, 1 in the mean over those written, 0 for the others."""
    written = bank.written.to(rows.weights)
    weights = row_weights(bank.labels, rows.class_weights, written, rows.weights.dtype)
    return weights * (written.sum() / len(written))


def graded(rows: LabelRows, others: torch.Tensor) -> torch.Tensor:
    """S (N, M) of pairs: whether they share a class; soft: the cosine of their rows of weights."""
    if not rows.soft:
        return similarity(rows.labels, others).to(rows.weights)
    cosine = naive.unit(rows.labels) @ naive.unit(others.to(rows.weights)).T
    return torch.where(cosine > NEARLY_ONE, 1.0, cosine)


def kinds(weigh: str, over: str, s: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(2,) what similar and dissimilar pairs count, by `Form.weigh` and `Form.over`, of pairs that count w_i v_j."""
    near, far = w @ (s @ v), w @ ((1 - s) @ v)
    total = near + far
    share = {"no": None, "rarity": 1.0, "halves": 0.5}[weigh]
    if share is None:
        both = torch.ones(2, dtype=w.dtype, device=w.device)
    else:
        parts = torch.stack([near, far])
        both = torch.where((parts > 0).all(), share * total / parts.where(parts > 0, 1.0), 1.0)
    if over == "pairs":
        return both
    return torch.stack([both[0] * total / near.where(near > 0, torch.inf), torch.zeros_like(near)])


def pair_terms(form: Form, rows: LabelRows) -> tuple[torch.Tensor, ...]:
    """(S, w, v, kinds) of the pairs of a form."""
    bank = form.bank
    s = graded(rows, rows.labels if bank is None else bank.labels)
    v = rows.weights if bank is None else bank_weights(rows, bank)
    return s, rows.weights, v, kinds(form.weigh, form.over, s, rows.weights, v)


def proxy_terms(form: Form, rows: LabelRows) -> tuple[torch.Tensor, ...]:
    """(S, w, v, kinds) of the pairs of rows and proxies, either kind at its mean."""
    w, v = rows.weights, rows.weights.new_ones(len(form.proxies))
    y = to_multi_hot(rows.labels, len(v), w.dtype)
    return y, w, v, kinds("rarity", "pairs", y, w, v)


def unlike_terms(form: Form, rows: LabelRows) -> tuple[torch.Tensor, ...] | None:
    """(S, w, w, kinds) of rows of several classes, of whose pairs the dissimilar ones count; None: there are none."""
    if rows.labels.ndim == 1 or not form.among:
        return None
    s, w = graded(rows, rows.labels), rows.weights * ((rows.labels > 0).sum(1) > 1)
    unlike = w @ ((1 - s) @ w)
    amount = form.among * s.numel() / unlike.where(unlike > 0, torch.inf)
    return s, w, w, torch.stack([torch.zeros_like(amount), amount])


# ------------------------------------------------------------------------------------------------ the definitions


def expanded(forms: tuple[Form, ...], v: torch.Tensor, rows: LabelRows, lengths) -> torch.Tensor:
    """(m,) values of the sum of the forms for expanded outputs v (N, sum of the lengths)."""
    total = 0
    for form in forms:
        body = _BODIES[form.body](form, rows, lengths)
        total = total + torch.stack([body(u, k) for k, u in enumerate(split(v, lengths))])
    return total


def _center(form: Form, rows: LabelRows, lengths):
    targets = row_targets(form, rows)

    def value(u, k):
        c = split(targets, lengths)[k]
        at = [_CENTER[form.function](u, torch.full_like(u, side), *form.constants) for side in (1.0, -1.0)]
        return (rows.weights[:, None] * ((1 + c) / 2 * at[0] + (1 - c) / 2 * at[1])).mean()

    return value


def row_targets(form: Form, rows: LabelRows) -> torch.Tensor:
    """Each row's centre (N, sum of the lengths); soft: the mean of the classes' centres by their weights."""
    centers, ties = form.centers.to(rows.weights), form.ties.to(rows.weights)
    if not rows.soft:
        return row_centers(rows.labels, centers, ties)
    total = rows.labels.sum(1, keepdim=True)
    return torch.where(total > 0, (rows.labels @ centers) / total.where(total > 0, 1.0), ties)


def _csq(u, c, weight):
    return naive.softplus(-2 * u * c) + weight * (1 - u.tanh().abs()).square()


def _dpn(u, c, margin):
    return (margin - u * c).relu()


def _dpn_ternary(u, c, margin):
    return _dpn(torch.where(u.abs() > margin, u.sign(), 0).detach() + (u - u.detach()), c, margin)


_CENTER = {"csq": _csq, "dpn": _dpn, "dpn_ternary": _dpn_ternary}


def _pairs(form: Form, rows: LabelRows, lengths):
    terms, bank = pair_terms(form, rows), form.bank
    count = len(rows.weights) * (len(rows.weights) if bank is None else bank.written.sum().clamp(min=1))
    mean = _mean_of_pairs(form, *terms, count)

    def value(u, k):
        u = squash(form, u) if form.squash else u
        others = u if bank is None else bank.u[:, : u.shape[1]].to(u)
        x, y = u.clamp(-form.clamp, form.clamp), others.clamp(-form.clamp, form.clamp)
        return mean(x, y, k) + _penalty(form, x, rows.weights)

    return value


def _mean_of_pairs(form: Form, s, w, v, both, count):
    """A function of rows, others and k: the k-th length's mean over their pairs, of which there are `count`."""
    near, far = both
    amount, f = w[:, None] * v, _PAIRS[form.function]
    amounts = ((True, amount * s * near), (False, amount * (1 - s) * far))
    if form.function in GRADED:  # knows what lies between
        amounts = ((s, amount * (s * near + (1 - s) * far)),)

    def mean(x, y, k):
        constants = form.reference_bits, *form.constants_at(k)
        return sum((amount * f(x, y, side, *constants)).sum() for side, amount in amounts) / count

    return mean


def _proxies(form: Form, rows: LabelRows, lengths):
    terms = proxy_terms(form, rows), unlike_terms(form, rows)
    near, unlike = (_mean_of_pairs(form, *term, term[0].numel()) if term else None for term in terms)

    def value(u, k):
        found = near(u, form.proxies[:, : u.shape[1]].to(u), k)
        return found + unlike(u, u, k) if unlike else found

    return value


def _products(x, y, bits: float) -> torch.Tensor:
    return x @ y.T * (bits / x.shape[1] if bits else 1.0)


def _contrastive(x, y, similar, bits, margin):
    distance = x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)
    return distance / 2 if similar else (margin * x.shape[1] - distance).relu() / 2


def _likelihood(x, y, similar, bits):
    theta = _products(x, y, bits) / 2
    return naive.softplus(-theta if similar else theta)


def _locality(x, y, similar, bits, eta, bound):
    theta = (_products(x, y, bits) / 2).clamp(-bound, bound)
    coded = _products(naive.signs(x.detach()), naive.signs(y.detach()), bits) / 2
    return naive.softplus(-theta if similar else theta) + eta * (theta.sigmoid() - coded.sigmoid()).square()


def _cauchy_distance(cosine, b, cap):
    return (b / 2 * (1 - cosine.clamp(max=cap))).clamp(min=1e-6)


def _cauchy(x, y, similar, bits, gamma, cap):
    ratio = _cauchy_distance(naive.unit(x) @ naive.unit(y).T, x.shape[1], cap) / gamma
    return ratio.log1p() if similar else (1 / ratio).log1p()


def _attraction(x, y, similar, bits):
    if not similar:
        return x.new_zeros(())
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    return naive.softplus((1 - cosine) / 2)


def _graded(x, y, s, bits, sharpness, weight):
    return naive.graded_pairs(_products(x, y, bits) / x.shape[1], s, x.shape[1], sharpness, weight)


def _margin(x, y, similar, bits, threshold):
    cosine = naive.unit(x) @ naive.unit(y).T
    return 1 - cosine if similar else (cosine - threshold).relu()


_PAIRS = {
    "contrastive": _contrastive, "likelihood": _likelihood, "locality": _locality, "cauchy": _cauchy,
    "attraction": _attraction, "graded": _graded, "margin": _margin,
}  # fmt: skip


def _triplets(form: Form, rows: LabelRows, lengths):
    s, w = graded(rows, rows.labels), rows.weights
    positive, negative = s * w, (1 - s) * w
    number = positive.sum(1) * negative.sum(1)
    anchors = torch.where(number > 0, w, 0.0)
    anchors = anchors / anchors.sum().where(anchors.any(), torch.inf) / number.where(number > 0, 1.0)
    margin, low, high = form.constants

    def value(u, k):
        theta = _products(u, u, form.reference_bits)
        t = (theta[:, :, None] - theta[:, None, :] - margin).clamp(low, high)
        found = torch.einsum("i,ip,iq,ipq->", anchors, positive, negative, naive.softplus(-t))
        return found + _penalty(form, u, w)

    return value


def _softmax(form: Form, rows: LabelRows, lengths):
    constant, share = form.constants
    y = to_multi_hot(rows.labels, len(form.centers), rows.weights.dtype)
    centers = form.centers.to(y)
    number = y.sum(1)
    along = across = None
    if form.function == "angle" and rows.soft:
        along, across = (constant * y).cos(), (constant * y).sin()
    elif form.function == "angle":
        along, across = torch.where(y == 1, math.cos(constant), 1.0).to(y), y * math.sin(constant)

    def value(u, k):
        sharp = math.sqrt(form.reference_bits or u.shape[1])
        cosine = naive.unit(u) @ naive.unit(split(centers, lengths)[k]).T
        if form.function == "likelihood":
            log_p = (sharp * cosine).log_softmax(1)
            found = (y * log_p + constant * (1 - y) * _log_rest(log_p)).sum(1)
        else:
            if form.function == "cosine":
                cosine = cosine - constant * y
            else:
                sine = (1 - cosine.square()).clamp(min=1e-4).sqrt()
                cosine = cosine * along - sine * across
            log_p = (sharp * cosine).log_softmax(1)
            found = (y * log_p).sum(1) / number.where(number > 0, 1.0)
        return -share * (rows.weights * found).mean() + _penalty(form, u, rows.weights)

    return value


def _log_rest(log_p):
    """log(1 - p) of every class: the sum of the others' p."""
    top = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, log_p.argmax(1, keepdim=True), True)
    rest = log_p.masked_fill(top, -torch.inf).logsumexp(1, keepdim=True)  # only the largest p can be near 1
    return torch.where(top, rest, (-log_p.exp().masked_fill(top, 0)).log1p())


def _classifier(form: Form, rows: LabelRows, lengths):
    y = to_multi_hot(rows.labels, len(form.classifier), rows.weights.dtype)
    number = y.sum(1)

    def value(u, k):
        z = u + (naive.signs(u) - u).detach()
        log_p = (z @ split(form.classifier.to(y), lengths)[k].T).log_softmax(1)
        found = (y * log_p).sum(1) / number.where(number > 0, 1.0)
        return -(rows.weights * found).mean() + _penalty(form, u, rows.weights)

    return value


_BODIES = {
    "center": _center, "pairs": _pairs, "triplets": _triplets, "softmax": _softmax, "classifier": _classifier,
    "proxies": _proxies,
}  # fmt: skip
_FUNCTIONS = {
    "center": tuple(_CENTER), "pairs": tuple(_PAIRS), "triplets": ("logistic",),
    "softmax": ("likelihood", "cosine", "angle"), "classifier": ("cross_entropy",),
    "proxies": ("margin",),
}  # fmt: skip


def _penalty(form: Form, u, w) -> torch.Tensor | float:
    """The mean over the rows, by their weights, of the form's penalty."""
    if form.penalty is None:
        return 0.0
    kind, magnitude, b = form.penalty.kind, u.abs(), u.shape[1]
    if kind == "absolute":
        rows = (magnitude - 1).abs().mean(1)
    elif kind == "log_cosh":
        x = (magnitude - 1).abs()
        rows = (x + naive.softplus(-2 * x) - math.log(2)).mean(1)
    elif kind == "balance":
        rows = u.mean(1).square()
    elif kind == "cauchy":
        gamma, cap = form.constants
        cosine = naive.unit(u).abs().sum(1) / b**0.5
        rows = (_cauchy_distance(cosine, b, cap) / gamma).log1p()
    elif kind == "cube":
        rows = (magnitude - 1).abs().pow(3).mean(1)
    elif kind == "sign":
        rows = (u - naive.signs(u.detach())).square().mean(1)
    else:
        rows = (magnitude - 1).square().mean(1)
    return form.penalty.weight * (w * rows).mean()


def refuses(forms: tuple[Form, ...], name: str) -> str | None:
    """Why the labels of a loss with these forms cannot count by weights, or None."""
    if not forms:
        return f"{name} has no forms, which alone say how labels count"
    if any(form.body not in _FUNCTIONS for form in forms):
        return f"{name} takes no classes"
    unknown = [form.function for form in forms if form.function not in _FUNCTIONS[form.body]]
    return f"{name}'s function {unknown[0]!r} has no definition by labels that count by weights" if unknown else None
