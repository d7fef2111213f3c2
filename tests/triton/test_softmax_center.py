"""Fused MDSH and SHCIR against the reference."""

import pytest
import torch
from against import check, check_golden, fused, same_by_ids_and_rows
from launches import launches
from losses_cases import reference

from nhl_fast.losses import build
from nhl_fast.steps.fused.bodies import values_and_deltas
from nhl_fast.steps.fused.softmax import softmax

LENGTHS = (8, 16, 32, 64, 128)
NAMES = ("mdsh", "shcir")


def make(name, lengths, device, classes=5, **options):
    return build(name, num_classes=classes, code_lengths=lengths, **options).to(device)


@pytest.mark.parametrize("classes", [2, 32, 45])
@pytest.mark.parametrize("n", [1, 3, 33])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name, n, classes, device):
    labels = torch.arange(n, device=device) % classes
    check(make(name, (5, 48), device, classes), torch.randn(n, 48, device=device), labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "lengths", [(1,), LENGTHS, (5, 12, 48, 100), pytest.param((1024,), marks=pytest.mark.slow)], ids=str
)
def test_lengths(name, lengths, device):
    labels = torch.arange(4, device=device)
    # At 1 bit the cosine is +-1: the likelihood's gradient cancels to 0.
    check(make(name, lengths, device), torch.randn(4, lengths[-1], device=device), labels)


@pytest.mark.parametrize("reference_bits", [3, 400])
@pytest.mark.parametrize("name", NAMES)
def test_sharpness_of_another_length(name, reference_bits, device):
    labels = torch.arange(12, device=device) % 5
    loss = make(name, (5, 48), device, reference_bits=reference_bits)
    check(loss, torch.randn(12, 48, device=device), labels, plainly=reference_bits < 100)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_the_sharpest_softmax_that_is_served(name, classes, device):
    """Logits 64 apart, on the right side and on the wrong one; what is sharper is refused."""
    centers = torch.randn(classes, 16).sign()
    centers[1] = -centers[0]
    loss = make(name, (16,), device, classes, centers=[centers], reference_bits=1024)
    u, labels = loss.centers[0][[0, 1, 1]].clone() + 0.01, torch.tensor([0, 0, 1], device=device)
    check(loss, u, labels, plainly=False)
    sharper = make(name, (16,), device, classes, reference_bits=1025)
    with pytest.raises(RuntimeError, match="at most 1024"):
        sharper(u, labels, backend="triton")
    with pytest.raises(ValueError, match="at most 1024"):
        softmax(u, loss.center_table, labels, [16], "likelihood", [1.0, 1.0], 0.0, False, 1025.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_multi_hot(dtype, device):
    labels = torch.rand(20, 12, device=device) < 0.3
    labels[4] = False
    loss, u = make("mdsh", (8, 40), device, 12), torch.randn(20, 40, device=device)
    check(loss, u, labels.to(dtype))
    ids = torch.arange(20, device=device) % 12
    hot = torch.nn.functional.one_hot(ids, 12).to(dtype)
    for name in NAMES:
        loss = make(name, (8, 40), device, 12)
        same_by_ids_and_rows(loss, u, ids, hot)


@pytest.mark.parametrize("name", NAMES)
def test_golden(golden, name, device):
    if f"{name}_loss" not in golden:
        pytest.skip("the loss is single-label, these labels are not")
    centers = [torch.from_numpy(golden[f"centers_{b}"]) for b in LENGTHS]
    labels, u = torch.from_numpy(golden["labels"]).to(device), torch.from_numpy(golden["u"]).to(device)
    loss = make(name, LENGTHS, device, labels.shape[1], centers=centers)
    check_golden(golden, name, loss, u, labels, LENGTHS)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_outputs_stay_finite(name, scale, device):
    loss, u = make(name, (8, 64), device), scale * torch.randn(16, 64, device=device)
    labels = torch.arange(16, device=device) % 5
    values, deltas = fused(loss, u, labels)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, reference(loss, u, labels, torch.float64)[0].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("b", [400, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_certain_probabilities(name, b, device):
    """p rounds to 1 in float32; log(1 - p) must be that of float64."""
    loss = make(name, (b,), device, 4)
    u, labels = loss.centers[0][[1, 1]].clone(), torch.tensor([2, 1], device=device)
    values, deltas = check(loss, u, labels, plainly=False)
    assert values[0] > 4
    assert torch.isfinite(deltas).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [128, 256, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_gradient_of_a_certain_mistake(name, bits, classes, device):
    """Where p rounds to 1, its own gradient p / (1 - p) * (1 - p) must not cancel: compare with float64."""
    loss = make(name, (bits,), device, classes, centers="nested")
    center = loss.centers[0]
    noise = torch.randn(2, classes, bits, device=device)
    u = torch.cat([center + 0.1 * noise[0], 2 * center + 0.5 * noise[1]])
    labels = (torch.arange(classes, device=device) + 1).remainder(classes).repeat(2)
    _, deltas = fused(loss, u, labels)
    truth = reference(loss, u, labels, torch.float64)[1]
    assert (deltas - truth).norm() <= 1e-4 * truth.norm()


def test_equal_logits(device):
    """The largest logit is not unique: every class's p is the same, and the likelihood's gradient cancels to 0."""
    loss = make("mdsh", (8,), device, 2, centers=[torch.ones(2, 8)])
    check(loss, torch.randn(3, 8, device=device), torch.tensor([0, 1, 1], device=device))


class TestPairTerm:
    def test_from_its_epoch_on(self, device):
        loss = make("mdsh", (8, 40), device, num_train=30, pair_from_epoch=2)
        rows = torch.arange(24, device=device)
        loss.bank.update(rows, torch.randn(24, 40, device=device), rows % 5)
        u, labels = torch.randn(9, 40, device=device), torch.arange(9, device=device) % 5
        without, _ = check(loss, u, labels)
        loss.set_epoch(2)
        with_pairs, _ = check(loss, u, labels)
        assert (with_pairs > without).all()

    def test_nothing_similar_yet(self, device):
        loss = make("mdsh", (8, 40), device, num_train=6)
        check(loss, torch.randn(3, 40, device=device), torch.arange(3, device=device))

    def test_rows_without_a_direction(self, device):
        loss = make("mdsh", (8, 40), device, num_train=6, quantization=0.0)
        rows = torch.arange(6, device=device)
        loss.bank.update(rows, torch.randn(6, 40, device=device), rows % 2)
        u = torch.randn(3, 40, device=device)
        u[0] = 0
        check(loss, u, rows[:3])


def test_opcheck_launches_and_repetition(device):
    u, labels = torch.randn(20, 24, device=device), torch.arange(20, device=device) % 7
    centers = torch.randn(7, 32, device=device).sign()
    given = (u, centers, labels, [8, 24], "likelihood", [1.0, 0.01], 1e-4, False)
    torch.library.opcheck(softmax, given)
    assert launches(lambda: softmax(*given)) == ["softmax_kernel"]
    for first, second in zip(softmax(*given), softmax(u.T.contiguous().T, *given[1:])):
        assert torch.equal(first, second)
    loss = make("mdsh", (8, 24), device, num_train=30)
    labels = labels % 5
    found = launches(lambda: values_and_deltas(loss.forms(), u, labels, [8, 24]))
    assert found == ["softmax_kernel", "pair_kernel", "finish_kernel"]
