"""What the compiled steps must know of a loss, as data: they serve bodies, and no loss by its name.

A loss is the sum of its forms. Functions and penalties have one name in Python, in the kernels and in C++; what they
compute is said in docs/add-a-loss.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..core import check
from ..core.labels import to_multi_hot
from ..core.prefixes import expand
from .bank import Bank

# Which penalties on the outputs a body can add.
PENALTIES = {
    "center": (),
    "pairs": ("absolute", "log_cosh", "balance", "cauchy", "sign"),
    "triplets": ("sign",),
    "softmax": ("square",),
    "listwise": (),
    "classifier": ("cube",),
    "proxies": (),
}
WEIGHINGS = ("no", "rarity", "halves")
MEANS = ("pairs", "similar")
BOUNDS = ("tanh", "softsign")
# Functions of pairs that are functions of S itself, from 0 to 1.
GRADED = ("graded",)
# Functions of pairs with a constant for every length.
BY_LENGTH = ("margin",)
# What bodies must be given: (which, what of it).
_NEEDS = {
    "centers": (("center", "softmax"), "those of every class"),
    "ties": (("center",), "them"),
    "scales": (("listwise",), "one a length"),
    "classifier": (("classifier",), "the weights of every class"),
    "proxies": (("proxies",), "one a class"),
    "segments": (("classifier", "proxies"), "those of the loss"),
}


class Penalty(NamedTuple):
    """A penalty on the outputs, and its weight."""

    kind: str
    weight: float


NO_PENALTY = Penalty("none", 0.0)


@dataclass(slots=True, eq=False)  # not frozen: a step makes several, and those take ten times as long to make
class Form:
    """One term of a loss, for a compiled body. See docs/add-a-loss.md.

    Attributes:
        body: "center", "pairs", "triplets", "softmax", "listwise", "classifier" or "proxies".
        function: the body's function of one output, pair, triplet or row.
        constants: what the function takes, or one for every length (`BY_LENGTH`).
        penalty: one of `PENALTIES[body]` on the outputs, or none.
        reference_bits: inner products of b bits count reference_bits / b times; 0: as they are.
        clamp: pairs: outputs and bank are clamped to +-clamp first.
        squash: pairs: the body sees bound(squash u) for outputs u; 0: as they are. Not with a bank.
        bound: of `squash`: "tanh" or "softsign", x / (1 + |x|).
        weigh: pairs: "no"; "rarity": by N / n, n of the N pairs being of the pair's kind (similar or not);
            "halves": by half of that. Where one kind is missing every pair weighs 1.
        over: pairs: the mean is over all "pairs" that count, or over the "similar" ones.
        bank: pairs: whose written rows the batch is compared with; None: the batch itself, each pair in both orders.
            Not with a function in `GRADED`.
        centers: center, softmax: (C, sum of the code lengths) of +-1.
        ties: center: (sum of the code lengths,) of +-1, where the sum of several centres is 0.
        scales: listwise: (m,) what cosines of codes are multiplied by; gradients go there, too.
        classifier: classifier: (C, sum of the code lengths) weights of the classes; gradients go there, too.
        proxies: proxies: (C, longest length) a row a class; gradients go there, too.
        among: proxies: weight of the mean over the rows' pairs among themselves.
        segments: classifier, proxies: `NestedLoss.segments`, which columns are each length's.
        one_hot: softmax: the body refuses a row of labels that has not exactly one class.
    """

    body: str
    function: str
    constants: tuple[float, ...] = ()
    penalty: Penalty | None = None
    reference_bits: float = 0.0
    clamp: float = math.inf
    weigh: str = "no"
    over: str = "pairs"
    bank: Bank | None = None
    centers: torch.Tensor | None = None
    ties: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    one_hot: bool = False
    squash: float = 0.0
    bound: str = "tanh"
    classifier: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    proxies: torch.Tensor | None = None
    among: float = 0.0

    def __post_init__(self):
        if self.body not in PENALTIES or self.weigh not in WEIGHINGS or self.over not in MEANS:
            check.one_of(self.body, "body", tuple(PENALTIES))
            check.one_of(self.weigh, "weigh", WEIGHINGS)
            check.one_of(self.over, "over", MEANS)
        if self.penalty is not None and self.penalty.kind not in PENALTIES[self.body]:
            taken = ", ".join(PENALTIES[self.body]) or "none"
            raise ValueError(f"penalty: the body {self.body!r} takes {taken}, got {self.penalty.kind!r}")
        if self.squash:
            check.one_of(self.bound, "bound", BOUNDS)
        if self.squash and (self.body != "pairs" or self.bank is not None):
            raise ValueError("squash: taken by pairs within the batch alone")
        if self.function in GRADED and self.bank is not None:
            raise ValueError(f"bank: pairs of the function {self.function!r} are taken within the batch alone")
        enough = len(self.constants) >= 2 and self.constants[0] > 0
        if self.penalty is not None and self.penalty.kind == "cauchy" and not enough:
            raise ValueError(
                f"constants: the penalty 'cauchy' needs (gamma > 0, largest cosine), got {self.constants}"
            )
        for name, (bodies, wanted) in _NEEDS.items():
            if (getattr(self, name) is None) == (self.body in bodies):
                wanted = f"needs {wanted}" if self.body in bodies else "takes none"
                raise ValueError(f"{name}: the body {self.body!r} {wanted}")

    def constants_at(self, k: int) -> tuple[float, ...]:
        """The constants of the k-th length."""
        return self.constants[k : k + 1] if self.function in BY_LENGTH else self.constants


def row_centers(labels: torch.Tensor, centers: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    """Each row's centre: its class's, or the sign of the sum of its classes' (`ties` where that is 0).

    labels ids (N,) or multi-hot rows (N, C); centers (C, T) and ties (T,) of +-1. Gives (N, T).
    """
    if labels.ndim == 1:
        return centers[labels]
    total = to_multi_hot(labels, centers.shape[0], centers.dtype) @ centers
    return torch.where(total == 0, ties, total.sign())


def squash(form: Form, u: torch.Tensor) -> torch.Tensor:
    """What a form's body sees of outputs u."""
    x = form.squash * u
    return x.tanh() if form.bound == "tanh" else x / (1 + x.abs())


def squashed(body, form: Form, u: torch.Tensor, labels, lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and deltas of `body(form, u, labels, lengths)` at `squash(form, u)`, as functions of u (N, L)."""
    values, deltas = body(form, squash(form, u), labels, lengths)
    if form.bound == "tanh":
        fall = (-2 * form.squash * u.abs()).exp()  # 1 - tanh^2 = 4 fall / (1 + fall)^2, which keeps its digits
        slope = 4 * form.squash * fall / (1 + fall).square()
    else:
        slope = form.squash / (1 + form.squash * u.abs()).square()
    return values, deltas * expand(slope, lengths)
