"""Shapes of the training step's operators for tracing (torch.compile, opcheck); see `nhl_fast.steps.native`."""

from __future__ import annotations

import torch


def register() -> None:
    """Register them; the library is loaded."""
    fake = torch.library.register_fake

    def loss(u, *rest):
        lengths = next(r for r in rest if isinstance(r, (list, tuple)))
        return u.new_empty(len(lengths)), u.new_empty(u.shape[0], sum(lengths))

    for name in ("csq", "dpn", "dsh", "dhn", "dbdh", "lcdsh", "dch", "dtsh", "center_softmax"):
        fake(f"nhl_fast::step_{name}", loss)

    @fake("nhl_fast::step_project")
    def _(features, weight, bias, want_gram):
        n = features.shape[0]
        return features.new_empty(n, weight.shape[0]), features.new_empty((n, n) if want_gram else (0, 0))

    @fake("nhl_fast::step_project_back")
    def _(scale, du, features, weight, need_features, need_weight):
        return (
            features.new_empty(features.shape if need_features else (0, 0)),
            features.new_empty(weight.shape if need_weight else (0, 0)),
            features.new_empty(weight.shape[:1] if need_weight else (0,)),
        )

    @fake("nhl_fast::step_combine")
    def _(u, features, gram, values, deltas, lengths, distill_weight, fixed_weights):
        m = len(lengths)
        return (
            u.new_empty(()),
            u.new_empty(m),
            u.new_empty(m),
            u.new_empty((m, m) if fixed_weights is None else (0, 0)),
            u.new_empty(u.shape),
        )
