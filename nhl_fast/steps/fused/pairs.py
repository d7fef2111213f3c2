"""Fused pairwise losses: DSH, DHN and DBDH against the bank, LCDSH and DCH within the batch."""

from __future__ import annotations

import math

import torch

from nhl_fast.kernels import bank as bank_kernels
from nhl_fast.kernels import pairs as kernels

from ...core.labels import to_multi_hot
from ...losses.bank import refuse_ranks
from ...losses.bank_pairs import DBDH, DHN, DSH
from ...losses.batch_pairs import DCH, LCDSH
from .operators import direct, operator
from .registry import check_form, fuses, outputs, prepare_labels

PROBLEM = (
    "Tensor u, Tensor labels, Tensor? others, Tensor? other_labels, Tensor? written, int[] code_lengths, "
    "str function, float[] constants, str penalty='none', float penalty_weight=0.0, float reference=0.0, "
    "float? clamp=None, str weigh='no', str over='pairs'"
)


def _launch(
    values, deltas, add, u, labels, others, other_labels, written, code_lengths, function, constants, penalty="none",
    penalty_weight=0.0, reference=0.0, clamp=None, weigh="no", over="pairs",
):  # fmt: skip
    bank = None if others is None else (others.contiguous(), other_labels, written)
    clamp = math.inf if clamp is None else clamp
    with torch.cuda.device_of(u):
        kernels.launch(
            function, u.contiguous(), labels, code_lengths, constants, values, deltas, bank=bank,
            penalty=(penalty, penalty_weight), reference=reference, clamp=clamp, weigh=weigh, over=over, add=add,
        )  # fmt: skip


@operator("nhl_fast::pairwise", mutates_args=(), schema=f"({PROBLEM}) -> (Tensor, Tensor)")
def pairwise(u, labels, others, other_labels, written, code_lengths, *loss):
    """(values (m,), deltas (N, T)) of a pairwise loss plus its penalty, see `kernels.pairs.launch`.

    u (N, L) and others (M, L) float32, or None: the pairs of the batch itself; labels and other_labels ids or
    multi-hot rows; written (M,) bool, rows that count, or None for all.
    """
    found = outputs(u, code_lengths)
    _launch(*found, False, u, labels, others, other_labels, written, code_lengths, *loss)
    return found


@pairwise.register_fake
def _(u, labels, others, other_labels, written, code_lengths, *loss):
    return outputs(u, code_lengths)


@operator(
    "nhl_fast::add_pairwise",
    mutates_args=("values", "deltas"),
    schema=f"(Tensor(a0!) values, Tensor(a1!) deltas, {PROBLEM}) -> ()",
)
def add_pairwise(values, deltas, *problem):
    """`pairwise` added to `values` (m, or (P, m): to the first row) and `deltas` (N, T), in place."""
    _launch(values, deltas, True, *problem)


@add_pairwise.register_fake
def _(values, deltas, *problem):
    return None


@operator("nhl_fast::store_rows", mutates_args=("bank_u", "bank_labels", "written"))
def store_rows(
    bank_u: torch.Tensor,
    bank_labels: torch.Tensor,
    written: torch.Tensor,
    index: torch.Tensor,
    u: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
) -> None:
    """Write u (N, L) and labels into the rows `index` (N,) of a bank; each row is written at most once."""
    with torch.cuda.device_of(u):
        bank_kernels.launch(u.contiguous(), labels, index, bank_u, bank_labels, written, num_classes)
    for tensor in (bank_u, bank_labels, written):
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


@store_rows.register_fake
def _(bank_u, bank_labels, written, index, u, labels, num_classes):
    return None


def prepare(loss, u, labels, index):
    """`BankMixin.prepare` with the bank written by one launch; labels and index are checked on the device."""
    labels = check_form(loss, u, labels)
    if not loss.takes_rows():
        return labels
    refuse_ranks()
    bank = loss.bank
    if index is None:
        loss.prepare(u, labels, index)  # raises, and says why
    # No assertion stops the interpreter, the only way to run the kernels on a CPU.
    bank.check_index(index, u.shape[0], values=u.device.type == "cpu")
    if labels.ndim == 2 and bank.labels.ndim == 1:
        bank.labels = to_multi_hot(bank.labels, bank.num_classes, torch.bool)
    direct(store_rows)(bank.u, bank.labels, bank.written, index, u, labels, loss.num_classes)
    return labels


def refuses(loss, rows, labels):
    """Why a loss with a bank cannot be served."""
    if loss.bank is None or loss.bank.u.dtype == torch.float32:
        return None
    return f"the bank is {loss.bank.u.dtype}, the kernels take float32"


def _bank(loss, u, labels, function, constants, penalty, clamp=math.inf):
    bank = loss.bank
    return direct(pairwise)(
        u, labels, bank.u, bank.labels, bank.written, list(loss.code_lengths), function, constants, penalty,
        float(loss.alpha), float(loss.reference_bits or 0), clamp, "halves" if loss.balance else "no",
    )  # fmt: skip


@fuses(DSH, prepare=prepare, refuses=refuses)
def fused_dsh(loss, u, labels):
    return _bank(loss, u, labels, "contrastive", [float(loss.margin)], "absolute")


@fuses(DHN, prepare=prepare, refuses=refuses)
def fused_dhn(loss, u, labels):
    return _bank(loss, u, labels, "likelihood", [], "log_cosh")


@fuses(DBDH, prepare=prepare, refuses=refuses)
def fused_dbdh(loss, u, labels):
    return _bank(loss, u, labels, "likelihood", [], "balance", 1.0 if loss.clamp else math.inf)


@fuses(LCDSH, prepare=prepare_labels)
def fused_lcdsh(loss, u, labels):
    constants = [float(loss.eta), 50.0 if loss.clamp else math.inf]
    return direct(pairwise)(
        u, labels, None, None, None, list(loss.code_lengths), "locality", constants, "none", 0.0,
        float(loss.reference_bits or 0),
    )  # fmt: skip


@fuses(DCH, prepare=prepare_labels)
def fused_dch(loss, u, labels):
    constants = [float(loss.gamma), math.inf if loss.max_cosine is None else float(loss.max_cosine)]
    return direct(pairwise)(
        u, labels, None, None, None, list(loss.code_lengths), "cauchy", constants, "cauchy",
        float(loss.quantization), 0.0, math.inf, "rarity",
    )  # fmt: skip
