"""How far a training is: bars on a terminal, one line an epoch elsewhere, both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

_STEPS_FROM = 2.0  # seconds: shorter epochs show no bar of steps


class Progress:
    """The progress of one training; with `shown` False nothing is written."""

    def __init__(self, shown: bool):
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bars, self._lines = shown and terminal, shown and sys.stderr is not None and not terminal
        self._bar = None

    def epochs(self, epochs: range) -> Iterable[int]:
        self._last = epochs.stop - 1
        self._bar = _bar(epochs, desc="training", unit="epoch", disable=not self._bars, leave=False)
        return self._bar

    def steps(self, batches: Iterable, number: int) -> Iterator:
        return iter(
            _bar(
                batches,
                total=number,
                desc="epoch",
                unit="step",
                disable=not self._bars,
                leave=False,
                position=1,
                delay=_STEPS_FROM,
            )
        )

    def close_epoch(self, record: dict) -> None:
        """Say an epoch's loss, validation mAP (the mean over the lengths) and seconds."""
        scores = (record["validation"] or {}).values()
        mean = f"{sum(scores) / len(scores):.3f}" if scores else None
        if mean is not None:
            self._bar.set_postfix(loss=f"{record['total']:.3f}", mAP=mean)
        if self._lines:
            found = "" if mean is None else f", validation mAP {mean}"
            text = (
                f"epoch {record['epoch']}/{self._last}: loss {record['total']:.4f}{found}, {record['seconds']:.1f} s"
            )
            print(text, file=sys.stderr, flush=True)


def watch(batches: Iterable, number: int, shown: bool) -> Iterable:
    """The batches, of which there are `number`, with a bar on a terminal where they take longer than a moment."""
    if not shown or sys.stderr is None or not sys.stderr.isatty():
        return batches
    return _bar(batches, total=number, desc="encoding", unit="batch", leave=False, delay=_STEPS_FROM)


def _bar(*args, **options):
    from tqdm.auto import tqdm  # `import nhl_fast` does without it

    return tqdm(*args, **options)
