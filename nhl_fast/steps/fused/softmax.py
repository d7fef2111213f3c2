"""Fused centre softmax: MDSH, with its momentum-bank pair term, and SHCIR."""

from __future__ import annotations

import math

import torch

from nhl_fast.kernels import softmax as kernels

from ...losses.softmax import MDSH, SHCIR
from .operators import direct, operator
from .pairs import add_pairwise, prepare, refuses
from .registry import fuses, outputs, prepare_labels


def _outputs(u, code_lengths):
    return outputs(u, code_lengths, kernels.CONFIG.row_tiles(u.shape[0]))


@operator("nhl_fast::softmax_center", mutates_args=())
def softmax_center(
    u: torch.Tensor,
    centers: torch.Tensor,
    labels: torch.Tensor,
    code_lengths: list[int],
    negative_weight: float,
    scale: float,
    quantization: float,
    one_hot: bool,
    reference: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of scale * sum of -[y log p + negative_weight (1 - y) log(1 - p)]
    + quantization * mean (|u| - 1)^2; u (N, L), centers (C, T), labels ids or multi-hot rows (one class each if
    `one_hot`)."""
    values, deltas = _outputs(u, code_lengths)
    with torch.cuda.device_of(u):
        kernels.launch(
            u.contiguous(), centers.contiguous(), labels, code_lengths, negative_weight, scale, quantization, values,
            deltas, reference=reference, one_hot=one_hot,
        )  # fmt: skip
    return values, deltas


@softmax_center.register_fake
def _(u, centers, labels, code_lengths, negative_weight, scale, quantization, one_hot, reference=0.0):
    return _outputs(u, code_lengths)


def _likelihood(loss, u, labels, negative_weight, scale, one_hot):
    return direct(softmax_center)(
        u, loss._centers.float(), labels, list(loss.code_lengths), negative_weight, scale, float(loss.quantization),
        one_hot, float(loss.reference_bits or 0),
    )  # fmt: skip


def refuses_sharp(loss, rows, labels):
    """Why a loss on a softmax cannot be served."""
    if loss.reference_bits is not None and loss.reference_bits > kernels.MAX_REFERENCE:
        return f"reference_bits is {loss.reference_bits}, the kernels take at most {kernels.MAX_REFERENCE}"
    return None


@fuses(MDSH, prepare=prepare, refuses=lambda *given: refuses_sharp(*given) or refuses(*given))
def fused_mdsh(loss, u, labels):
    values, deltas = _likelihood(loss, u, labels, 1.0, 1 / (u.shape[0] * loss.num_classes), False)
    if loss.pair_term_active:
        bank, lengths = loss.bank, list(loss.code_lengths)
        direct(add_pairwise)(
            values, deltas, u, labels, bank.u, bank.labels, bank.written, lengths, "attraction", [], "none", 0.0, 0.0,
            math.inf, "no", "similar",
        )  # fmt: skip
    return values, deltas


@fuses(SHCIR, prepare=prepare_labels, refuses=refuses_sharp)
def fused_shcir(loss, u, labels):
    return _likelihood(loss, u, labels, 1 / (loss.num_classes - 1), 1 / u.shape[0], True)
