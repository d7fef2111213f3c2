"""Callbacks: methods that a trainer calls at certain moments of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core import check

if TYPE_CHECKING:
    from ...head.objective import ObjectiveResult


class Callback:
    """Override what you need. With several ranks the first one alone calls; an exception ends the training.

    `trainer` is the `nhl_fast.training.trainer.Trainer` everywhere.
    """

    def on_fit_begin(self, trainer) -> None:
        """Before the first epoch, or the first of a resumed run: `trainer.state.history` holds those before."""

    def on_step_end(self, trainer, step: int, result: ObjectiveResult) -> None:
        """After each batch: `step` counts from 1 over all epochs, `result` is the batch's, detached.

        To read a number makes a CUDA device wait, and its tensors may be written anew by the next step: copy what you
        keep.
        """

    def on_epoch_end(self, trainer, record: dict) -> None:
        """After an epoch, validated and kept: `record` is its entry of `TrainResult.history`."""

    def on_fit_end(self, trainer, result) -> None:
        """At the end, with the best weights loaded: `result` is a `TrainResult`, or None after an error."""


def check_callbacks(callbacks) -> tuple[Callback, ...]:
    """`callbacks` as a tuple; TypeError where one is no `Callback`."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a sequence of Callbacks, got {check.describe(callbacks)}")
    for one in callbacks:
        if not isinstance(one, Callback):
            raise TypeError(f"callbacks: expected instances of Callback, got {check.describe(one)}")
    return tuple(callbacks)
