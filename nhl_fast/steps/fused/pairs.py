"""The pairs' body: a batch against a bank, or against itself."""

from __future__ import annotations

import torch

from nhl_fast.kernels import pairs as kernels

from .operators import operator, outputs

PROBLEM = (
    "Tensor u, Tensor? others, Tensor labels, Tensor? other_labels, Tensor? written, int[] code_lengths, "
    "str function, float[] constants, str penalty, float penalty_weight, str weigh, str over, float clamp, "
    "float reference=0.0, Tensor[]? given=None"
)


def _launch(
    values, deltas, add, u, others, labels, other_labels, written, code_lengths, function, constants, penalty,
    penalty_weight, weigh, over, clamp, reference=0.0, given=None,
):  # fmt: skip
    bank = None if others is None else (others.contiguous(), other_labels, written)
    with torch.cuda.device_of(u):
        kernels.launch(
            function, u.contiguous(), labels, code_lengths, constants, values, deltas, bank=bank,
            penalty=(penalty, penalty_weight), reference=reference, clamp=clamp, weigh=weigh, over=over, add=add,
            given=None if given is None else tuple(given),
        )  # fmt: skip


@operator("nhl_fast::pairs", mutates_args=(), schema=f"({PROBLEM}) -> (Tensor, Tensor)")
def pairs(u, others, labels, other_labels, written, code_lengths, *form):
    """(values (m,), deltas (N, T)) of a function of pairs (see `kernels.pair_functions`) plus its penalty.

    u (N, L) and others (M, L) float32, or None: the batch itself; labels and other_labels ids or multi-hot rows;
    written (M,) bool, rows that count, or None for all; the rest as in `nhl_fast.losses.form.Form`.
    given: (S, weights of rows and columns, what both kinds count) in place of labels, `weigh` and `over`.
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
