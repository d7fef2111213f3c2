"""The pairs' body: a batch against a bank, or against itself."""

from __future__ import annotations

import functools
import math

import torch

from nhl_fast.kernels import pairs as kernels

from ...core import check
from .operators import operator, outputs

PROBLEM = (
    "Tensor u, Tensor others, Tensor labels, Tensor other_labels, Tensor? written, int[] code_lengths, "
    "str function, float[] constants, str penalty, float penalty_weight, str weigh, str over, float clamp, "
    "float reference=0.0"
)
FUNCTIONS = ("contrastive", "likelihood", "locality", "cauchy", "attraction")
# What the kernels have: (function, penalty, batch alone, clamp, over) -> (their name, {weigh: balance}).
WEIGHED = {"no": False, "halves": True}
KINDS = {
    ("contrastive", "absolute", False, math.inf, "pairs"): ("dsh", WEIGHED),
    ("likelihood", "log_cosh", False, math.inf, "pairs"): ("dhn", WEIGHED),
    ("likelihood", "balance", False, 1.0, "pairs"): ("dbdh", WEIGHED),
    ("likelihood", "balance", False, math.inf, "pairs"): ("dbdh_unclamped", WEIGHED),
    ("locality", "none", True, math.inf, "pairs"): ("lcdsh", {"no": False}),
    ("cauchy", "cauchy", True, math.inf, "pairs"): ("dch", {"rarity": False}),
    ("attraction", "none", False, math.inf, "similar"): ("mdsh_pairs", {"no": False}),
}
PENALTIES = {"contrastive": "absolute", "likelihood": "log_cosh", "cauchy": "cauchy"}  # what a weight of 0 may be


@functools.cache
def kind_of(function, penalty, batch: bool, clamp, over, weigh, reference) -> tuple[str, bool] | None:
    """The kernels' name of a loss, and its `balance`; None where they have none."""
    if reference and function not in ("likelihood", "locality"):
        return None
    penalty = PENALTIES.get(function, penalty) if penalty == "none" else penalty
    kind, weighed = KINDS.get((function, penalty, batch, clamp, over), (None, {}))
    return (kind, weighed[weigh]) if weigh in weighed else None


def _launch(
    values, deltas, add, u, others, labels, other_labels, written, code_lengths, function, constants, penalty,
    penalty_weight, weigh, over, clamp, reference=0.0,
):  # fmt: skip
    check.one_of(function, "function", FUNCTIONS)
    found = kind_of(function, penalty, written is None, clamp, over, weigh, reference)
    if found is None:
        raise ValueError(f"function: the kernels have no {function!r} with these options")
    (kind, balance), (c0, c1) = found, (*constants, 0.0, 0.0)[:2]
    with torch.cuda.device_of(u):
        kernels.launch(
            kind, u.contiguous(), others.contiguous(), labels, other_labels, written, code_lengths, c0, c1,
            penalty_weight, values, deltas, reference=reference, balance=balance, add=add,
        )  # fmt: skip


@operator("nhl_fast::pairs", mutates_args=(), schema=f"({PROBLEM}) -> (Tensor, Tensor)")
def pairs(u, others, labels, other_labels, written, code_lengths, *form):
    """(values (m,), deltas (N, T)) of a function of pairs (see `kernels.pair_functions`) plus its penalty.

    u (N, L) and others (M, L) float32; labels and other_labels ids or multi-hot rows; written (M,) bool, rows that
    count, or None for all of the batch itself; the rest as in `nhl_fast.losses.form.Form`.
    """
    found = outputs(u, code_lengths)
    _launch(*found, False, u, others, labels, other_labels, written, code_lengths, *form)
    return found


@pairs.register_fake
def _(u, others, labels, other_labels, written, code_lengths, *form):
    return outputs(u, code_lengths)


@operator(
    "nhl_fast::add_pairs",
    mutates_args=("values", "deltas"),
    schema=f"(Tensor(a0!) values, Tensor(a1!) deltas, {PROBLEM}) -> ()",
)
def add_pairs(values, deltas, *problem):
    """`pairs` added to `values` (m, or (P, m): to the first row) and `deltas` (N, T), in place."""
    _launch(values, deltas, True, *problem)


@add_pairs.register_fake
def _(values, deltas, *problem):
    return None
