"""Settings to start from, by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..core import check
from ..losses.tuned import TUNED, WIDE

# The best found on CIFAR-10 features (docs/experiments.md); the loss's own part is in nhl_fast/losses/tuned.py.
_TUNED = {"epochs": 60, "schedule": "cosine", "dropout": 0.5, "centers": "aligned"}
PRESETS: dict[str, dict] = {
    "default": {},
    # The settings of arXiv 2412.08922; torchvision fetches the pretrained weights.
    "paper": {
        "backbone": "resnet50",
        "weights": "DEFAULT",
        "centers": "hadamard",
        "lr": 1e-5,
        "weight_decay": 1e-5,
        "batch_size": 64,
        "distill_weight": 0.1,
    },
    "tuned": _TUNED,
    # The same for about a hundred classes: a wide net, since all lengths share it (docs/experiments-100.md).
    "wide": {**_TUNED, "hidden": (2048,)},
}


def settings(name: str, changes: Mapping, default_loss: str, default_lengths) -> dict:
    """The settings `name` with changes, for `TrainConfig`; given loss options are added to those of the preset.

    "tuned" weighs several code lengths by 1, 2, 3, ... from the shortest to the longest, "wide" by 1, 2, 4, ... (of
    some losses equally, or by ..., 4, 2, 1), unless the loss has a better rule.
    """
    found = dict(PRESETS[check.one_of(name, "preset", tuple(PRESETS))])
    if name in ("tuned", "wide"):
        lengths = check.code_lengths(changes.get("code_lengths", default_lengths))
        rules = {**TUNED, **WIDE} if name == "wide" else TUNED
        own = dict(rules.get(changes.get("loss", default_loss), {}))
        growth, count = own.pop("growth", 2.0), len(lengths)
        if count > 1:
            grown = (growth ** (i if growth >= 1 else i + 1 - count) for i in range(count))
            found["weighting"] = tuple(grown) if name == "wide" else tuple(i + 1.0 for i in range(count))
        found |= own
    options = {**found.get("loss_options", {}), **changes.get("loss_options", {})}
    return {**found, **changes, **({"loss_options": options} if options else {})}
