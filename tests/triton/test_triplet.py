"""The fused triplet loss (DTSH) against the reference."""

import pytest
import torch
from against import check, check_golden, fused
from launches import launches
from losses_cases import reference
from nhl_fast.kernels import triplets as kernels

from nhl_fast.losses import build
from nhl_fast.steps.fused.triplets import triplets

LENGTHS = (8, 16, 32, 64, 128)


def make(lengths, classes=4, **options):
    return build("dtsh", num_classes=classes, code_lengths=lengths, **options)


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("n", [1, 3, 33, pytest.param(70, marks=pytest.mark.slow)])
def test_equals_the_reference(n, multi, device):
    labels = (torch.rand(n, 40, device=device) < 0.1).long() if multi else torch.arange(n, device=device) % 4
    check(make((5, 48), 40 if multi else 4).to(device), torch.randn(n, 48, device=device), labels)


@pytest.mark.parametrize("lengths", [(1,), LENGTHS, (5, 12, 48, 100), (1024,)], ids=str)
def test_lengths(lengths, device):
    check(make(lengths).to(device), torch.randn(9, lengths[-1], device=device), torch.arange(9, device=device) % 4)


@pytest.mark.slow
def test_larger(device):
    check(make((8, 32)).to(device), torch.randn(130, 32, device=device), torch.arange(130, device=device) % 4)


@pytest.mark.slow
def test_golden(golden, device):
    u, labels = torch.from_numpy(golden["u"]).to(device), torch.from_numpy(golden["labels"]).to(device)
    check_golden(golden, "dtsh", make(LENGTHS, labels.shape[1]).to(device), u, labels, LENGTHS)


def test_the_clamp_kills_the_gradient_of_the_worst_triplets(device):
    u = torch.tensor([[20.0, 0], [-20, 0.5], [20, 1]], device=device)
    labels = torch.tensor([0, 0, 1], device=device)
    clamped, free = (fused(make((2,), quantization=0.0, clamp=c), u, labels)[1] for c in (True, False))
    assert free[:, 0].abs().max() > 2 * clamped[:, 0].abs().max()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
def test_extreme_outputs_stay_finite(scale, device):
    loss, u = make((8, 64)).to(device), scale * torch.randn(16, 64, device=device)
    labels = torch.arange(16, device=device) % 4
    values, deltas = fused(loss, u, labels)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, reference(loss, u, labels, torch.float64)[0].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [[0] * 6, list(range(6))], ids=["all same", "all apart"])
def test_no_negative_or_no_positive_but_itself(labels, device):
    check(make((8, 16), 6).to(device), torch.randn(6, 16, device=device), torch.tensor(labels, device=device))


def test_weights_that_are_one_change_nothing(device, monkeypatch):
    """More rows than a tile has."""
    monkeypatch.setattr(kernels, "ANCHORS", kernels.ANCHORS._replace(rows=8, columns=8))
    u, labels = torch.randn(11, 6, device=device), torch.arange(11, device=device) % 3
    given = (u, labels, [6], "logistic", [0.5, -100.0, 50.0], 1.0, 0.0)
    similar = (labels[:, None] == labels).float()
    (plain, deltas), (values, slopes) = triplets(*given), triplets(*given, similar, torch.ones(11, device=device))
    torch.testing.assert_close(values.sum(0), plain.sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes, deltas, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="grades: expected S of pairs and weights of rows together"):
        triplets(*given, similar)


def test_labels_with_no_class(device):
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], device=device)
    check(make((8, 16), 3).to(device), torch.randn(4, 16, device=device), labels)


def test_opcheck_launches_and_repetition(device):
    u, labels = torch.randn(6, 24, device=device), torch.arange(6, device=device) % 3
    given = (u, labels, [8, 24], "logistic", [5.0, -100.0, 50.0], 1.0)
    torch.library.opcheck(triplets, given)
    torch.library.opcheck(triplets, (*given, 32.0))
    weighed = (*given, 0.0, torch.rand(6, 6, device=device), torch.rand(6, device=device))
    torch.library.opcheck(triplets, weighed)
    assert launches(lambda: triplets(*weighed)) == ["anchor_kernel", "gradient_kernel"]
    assert launches(lambda: triplets(*given)) == ["anchor_kernel", "gradient_kernel"]
    hot = torch.nn.functional.one_hot(labels, 3)
    assert launches(lambda: triplets(u, hot, *given[2:])) == ["pack_kernel", "anchor_kernel", "gradient_kernel"]
    for first, second in zip(triplets(*given), triplets(u.T.contiguous().T, hot, *given[2:])):
        assert torch.equal(first, second)
