"""Fused triplet likelihood: DTSH."""

from __future__ import annotations

import math

import torch

from nhl_fast.kernels import triplets as kernels

from ...losses.triplet import DTSH
from .operators import direct, operator
from .registry import fuses, outputs, prepare_labels


def _outputs(u, code_lengths):
    return outputs(u, code_lengths, kernels.CONFIG.row_tiles(u.shape[0]))


@operator("nhl_fast::triplet", mutates_args=())
def triplet(
    u: torch.Tensor,
    labels: torch.Tensor,
    code_lengths: list[int],
    margin: float,
    low: float,
    high: float,
    quantization: float,
    reference: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial sums (P, m), deltas (N, T)) of the triplet loss of u (N, L); t is clamped to [low, high]."""
    values, deltas = _outputs(u, code_lengths)
    with torch.cuda.device_of(u):
        kernels.launch(
            u.contiguous(), labels, code_lengths, margin, low, high, quantization, values, deltas, reference=reference
        )
    return values, deltas


@triplet.register_fake
def _(u, labels, code_lengths, margin, low, high, quantization, reference=0.0):
    return _outputs(u, code_lengths)


@fuses(DTSH, prepare=prepare_labels)
def fused(loss, u, labels):
    """Values and deltas of a DTSH loss."""
    low, high = (-100.0, 50.0) if loss.clamp else (-math.inf, math.inf)
    return direct(triplet)(
        u, labels, list(loss.code_lengths), float(loss.margin), low, high, float(loss.quantization),
        float(loss.reference_bits or 0),
    )  # fmt: skip
