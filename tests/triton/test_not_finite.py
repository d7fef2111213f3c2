"""What is not a number stays so: no kernel makes a finite value of it."""

import pytest
import torch
from against import fused, reference

from nhl_fast.losses import REGISTRY, build

BANK = ("dsh", "dhn", "dbdh")
OPTIONS = [("dpn", {"ternary": True}), *((name, {"clamp": False}) for name in ("lcdsh", "dtsh", "dbdh"))]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in REGISTRY), *OPTIONS], ids=str)
def test_nan_outputs_are_seen_in_the_values(name, options, device):
    options = {**options, **({"num_train": 6} if name in BANK else {})}
    loss = build(name, num_classes=3, code_lengths=(8, 16), **options).to(device).eval()
    labels = torch.arange(5, device=device) % 3
    if name in BANK:
        rows = torch.arange(6, device=device)
        loss.bank.update(rows, torch.randn(6, 16, device=device), rows % 3)
    u = torch.randn(5, 16, device=device)
    u[3, 2] = float("nan")
    expected = reference(loss, u, labels, torch.float64)
    assert expected[0].isnan().all()
    for ours, theirs in zip(fused(loss, u, labels), expected):
        assert torch.equal(ours.isnan().any(-1), theirs.isnan().any(-1))
