"""What is not a number stays so: no kernel makes a finite value of it."""

import pytest
import torch
from against import fused
from losses_cases import ALL, make_loss, reference


@pytest.mark.parametrize("case", ALL, ids=str)
def test_nan_outputs_are_seen_in_the_values(case, device):
    loss = make_loss(case, (8, 16), classes=3, num_train=6, unwritten=0, device=device).eval()
    u, labels = torch.randn(5, 16, device=device), case.labels(5, 3, device=device)
    labels[1] = labels[0]  # similar ones
    u[3, 2] = float("nan")
    expected = reference(loss, u, labels)
    assert expected[0].isnan().all()
    for ours, theirs in zip(fused(loss, u, labels), expected):
        assert torch.equal(ours.isnan().any(-1), theirs.isnan().any(-1))
