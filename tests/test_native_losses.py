"""The losses of the C++ step against their plain formulas in float64, at every instruction level of this machine."""

import copy

import pytest
import torch
import torch.nn.functional as F
from losses_cases import (
    BANKS,
    FORMS,
    LENGTHS,
    PLAIN,
    draw_labels,
    form_id,
    golden_gradient,
    golden_loss,
    make_loss,
    naive_by_length,
    of_backend,
    reference_by_length,
)
from native_cases import AVAILABLE, DETAIL, each_isa  # noqa: F401
from numeric import expected
from step_cases import check, make

from nhl_fast.losses import REGISTRY, build

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


def check_loss(loss, u, labels):
    """A loss in float32 is the formulas' but for float32's own errors (see `numeric`). The bank stays as it is."""
    loss = loss.eval()
    right = expected(reference_by_length, loss, u, labels, truth=naive_by_length)
    return right.check(of_backend(loss, u, labels, "cpp"))


@pytest.mark.numeric
@pytest.mark.parametrize(("case", "multi"), FORMS, ids=form_id)
def test_losses_equal_their_formulas(isa, case, multi):
    loss = make_loss(case, (8, 20, 64), multi=multi, num_train=190)
    check_loss(loss, torch.randn(27, 64), case.labels(27, 5, multi))


@pytest.mark.numeric
@pytest.mark.parametrize("multi", [False, True], ids=form_id)
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_many_classes(isa, case, multi):
    if not (multi and case.ids_only):
        loss = make_loss(case, (8, 32), classes=101, multi=multi, num_train=190)
        check_loss(loss, torch.randn(27, 32), draw_labels(27, 101, multi))


@pytest.mark.numeric
@pytest.mark.parametrize("classes", [1, 400], ids=["all similar", "none similar"])
@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh"])
def test_balance_with_one_kind_of_pairs(isa, name, classes):
    layer, loss, features, labels, index, _ = make(
        name, 9, 12, (4, 8), classes=classes, loss_options={"balance": True}
    )
    loss.bank.written.zero_(), loss.bank.u.zero_()
    labels = torch.zeros_like(labels) if classes == 1 else torch.arange(9) * 40
    loss.bank.update(
        torch.arange(20, 40), torch.randn(20, 8), torch.full((20,), classes // 2 + 1 if classes > 1 else 0)
    )
    native = check((layer, loss.eval(), features, labels, index, {}))
    assert torch.isfinite(native["total"])


@pytest.mark.numeric
def test_balance_counts_label_sets_of_many_classes(isa):
    check(make("dhn", 12, 9, (4, 8), multi=True, classes=70, loss_options={"balance": True}))


@pytest.mark.numeric
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_golden_values_and_gradients(golden, isa, case):
    if f"{case.name}_loss" not in golden:
        pytest.skip("the loss is single-label, these labels are not")
    loss, labels = golden_loss(golden, case), torch.from_numpy(golden["labels"])
    u, index = torch.from_numpy(golden["u"]), torch.from_numpy(golden["index"])
    values, *gradients = of_backend(loss, u, labels, "cpp", index).values()
    torch.testing.assert_close(values, torch.from_numpy(golden[f"{case.name}_loss"]).float(), rtol=1e-4, atol=0)
    for b, found in zip(LENGTHS, gradients):
        want = golden_gradient(golden, case.name, b, loss, u)
        assert (found - want).norm() <= 1e-4 * want.norm(), b


@pytest.mark.numeric
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e2, 1e4])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_extreme_outputs_stay_finite(isa, name, scale):
    loss = build(name, num_classes=5, code_lengths=(8, 64), num_train=16)
    u = (scale * torch.randn(16, 64)).requires_grad_()
    values = loss(u, torch.arange(16) % 5, torch.arange(16), backend="cpp")
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()
    if scale != 1e-8:  # squares of 1e-8 have few digits in float32: the reference may differ from itself
        double = copy.deepcopy(loss).double()
        expected = double(u.detach().double(), torch.arange(16) % 5, torch.arange(16))
        torch.testing.assert_close(values.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)], ids=["all same", "all apart"])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_batches_without_negatives_or_positives(isa, name, labels):
    layer, loss, features, _, index, options = make(name, 6, 9, (8, 16), classes=6, num_train=6)
    check((layer, loss, features, labels, index, options))


@pytest.mark.numeric
@pytest.mark.parametrize("name", [n for n in REGISTRY if n != "shcir"])
def test_labels_with_no_class(isa, name):
    layer, loss, features, labels, index, options = make(name, 12, 9, (8, 16), multi=True)
    labels[:4] = False
    check((layer, loss, features, labels, index, options))


@pytest.mark.numeric
@pytest.mark.parametrize("case", BANKS, ids=str)
@pytest.mark.parametrize("state", ["empty", "ids, then sets", "sets, then ids"])
def test_banks(isa, case, state):
    """Nothing written before the batch; label forms that meet; evaluation reads the bank and leaves it as it is."""
    layer, _, features, ids, index, options = make(case.name, 20, 9, (8, 16), num_train=200)
    loss = make_loss(case, (8, 16), num_train=200, unwritten=200)
    sets, rows = F.one_hot(ids, 5), torch.arange(100, 150)
    if state == "ids, then sets":
        loss.bank.update(rows, torch.randn(50, 16), rows % 5)
    elif state == "sets, then ids":
        loss.bank.update(rows, torch.randn(50, 16), F.one_hot(rows % 5, 5))
    labels = ids if state == "sets, then ids" else sets
    check((layer, loss, features, labels, index, options))
    check((layer, loss.eval(), features, labels, None, options))
    check((layer, loss.eval(), features, ids, None, options))


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["mdsh", "shcir"])
def test_certain_probabilities(isa, name):
    """p rounds to 1, and logits lie too far apart for the other classes' p to be normal numbers."""
    for bits, sharpness in ((1024, None), (3000, None), (64, 2000)):
        loss = build(name, num_classes=4, code_lengths=(bits,), reference_bits=sharpness)
        center, labels = loss.centers[0], torch.tensor([2, 1, 0])
        u = torch.stack([center[1], center[1], -center[0]]).requires_grad_()
        value = loss(u, labels, backend="cpp")
        value.sum().backward()
        x = u.detach().double().requires_grad_()
        expected = copy.deepcopy(loss).double()(x, labels)
        expected.sum().backward()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        assert (u.grad - x.grad).norm() <= 1e-4 * x.grad.norm()
