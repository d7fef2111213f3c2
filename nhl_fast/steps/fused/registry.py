"""Which losses have a fused form, and what a fused form is.

A fused form is `fused(loss, u, labels) -> (values, deltas)`:

    u       (N, L) contiguous float32, detached.
    labels  as the loss's `prepare` (or the `prepare` given here) returns them.
    values  (m,) float32, or (P, m) partial sums whose sum over the rows is the values (the combine kernel adds
            them up, which spares a launch).
    deltas  (N, sum of the code lengths) float32: the gradient of each length's value with respect to its own
            outputs, side by side (see `nhl_fast.core.prefixes`).

Nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...core.labels import check_form as label_form

FUSED: dict[type, Callable] = {}


class Extras(NamedTuple):
    """What a fused form may replace or refuse.

    Attributes:
        prepare: prepare(loss, u, labels, index) -> labels, in place of the loss's own `prepare`: for forms whose
            kernels check the labels' values themselves (each check in PyTorch costs several launches).
        refuses: refuses(loss, num_rows, labels) -> why the fused form cannot serve this configuration, or None.
            It looks at options, shapes and dtypes alone.
    """

    prepare: Callable | None = None
    refuses: Callable | None = None


EXTRAS: dict[type, Extras] = {}


def fuses(*losses: type, prepare: Callable | None = None, refuses: Callable | None = None):
    """Register the decorated function as the fused form of these loss classes (not of their subclasses)."""

    def register(function):
        for loss in losses:
            FUSED[loss] = function
            EXTRAS[loss] = Extras(prepare, refuses)
        return function

    return register


def check_form(loss, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Labels whose shape, dtype and device are right, as int64 ids or multi-hot rows; values are not looked at."""
    label_form(labels, u.shape[0], loss.num_classes)
    if labels.device != u.device:
        raise ValueError(f"labels: expected them on {u.device} like u, got {labels.device}")
    return labels.long() if labels.ndim == 1 else labels


def prepare_labels(loss, u: torch.Tensor, labels, index) -> torch.Tensor:
    """`prepare` of a loss without a bank: `check_form` alone.

    On a CUDA device ids out of range are an assertion of the kernels that look a class up; LCDSH, DCH and DTSH only
    compare ids, where one out of range is a class of its own (`nhl_fast.kernels.similarity`).
    """
    return check_form(loss, u, labels)


def outputs(u: torch.Tensor, code_lengths, programs: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty (values, deltas) of a fused form; values (m,), or partial sums (programs, m)."""
    m = len(code_lengths)
    return (
        torch.empty(m if programs is None else (programs, m), device=u.device, dtype=torch.float32),
        torch.empty(u.shape[0], sum(code_lengths), device=u.device, dtype=torch.float32),
    )
