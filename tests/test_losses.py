"""Golden values, hazards and variants of the ten losses. The formulas themselves: test_losses_naive.py."""

import pytest
import torch
import torch.nn.functional as F
from losses_cases import LENGTHS, PLAIN, draw_labels, golden_gradient, golden_loss, make_loss, naive, reference

from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, segment_matrix, split
from nhl_fast.head.distillation import distillation_losses, expanded_distillation_losses
from nhl_fast.losses import PerLength, build
from nhl_fast.losses.softmax import softmax_likelihood

pytestmark = pytest.mark.numeric

FORMULAS = {
    "float32": lambda *problem: reference(*problem, torch.float32),
    "float64": reference,
    "plainly": naive,
}


@pytest.mark.parametrize("form", ["multi-hot", "ids"])
@pytest.mark.parametrize("formulas", FORMULAS)
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_golden_values_and_gradients(golden, case, formulas, form):
    if f"{case.name}_loss" not in golden:
        pytest.skip("the loss is single-label, these labels are not")
    labels = torch.from_numpy(golden["labels"])
    if form == "ids":
        if golden["name"].startswith("multi"):
            pytest.skip("multi-label data has no ids")
        labels = labels.argmax(1)
    loss = golden_loss(golden, case, torch.float32 if formulas == "float32" else torch.float64)
    u, labels = loss.prepare(torch.from_numpy(golden["u"]), labels, torch.from_numpy(golden["index"]))
    values, deltas = FORMULAS[formulas](loss, u, labels)
    torch.testing.assert_close(values, torch.from_numpy(golden[f"{case.name}_loss"]).to(values), rtol=1e-4, atol=0)
    for b, found in zip(LENGTHS, split(deltas, LENGTHS)):
        want = golden_gradient(golden, case.name, b, loss, u)
        assert (found - want).norm() <= 1e-4 * want.norm(), b


def test_golden_distillation(golden):
    u = torch.from_numpy(golden["u"])
    values, grad = per_length_gradients(
        lambda v: expanded_distillation_losses(v, LENGTHS, segment_matrix(LENGTHS)),
        expand(u, LENGTHS),
    )
    expected = torch.from_numpy(golden["distill_loss"]).float()
    torch.testing.assert_close(values[:4].detach(), expected, rtol=1e-4, atol=0)
    assert values[4] == 0
    torch.testing.assert_close(distillation_losses(u, LENGTHS), values.detach())
    for b, g in zip(LENGTHS[:4], split(grad, LENGTHS)):
        want = torch.from_numpy(golden[f"distill_grad_{b}"])
        assert (g - want).norm() <= 1e-4 * want.norm(), b


def test_the_pair_term_of_mdsh_from_its_epoch_on():
    loss = build("mdsh", num_classes=4, code_lengths=(3, 12), num_train=9).double().eval()
    assert not loss.pair_term(torch.zeros(1, 15).double(), torch.tensor([0])).any()  # nothing is written yet
    loss.bank.update(torch.arange(6), torch.randn(6, 12).double(), torch.arange(6) % 4)
    u, labels = torch.randn(4, 12, dtype=torch.float64), torch.tensor([0, 1, 1, 3])
    with_pairs = loss(u, labels)
    loss.pair_from_epoch = 3
    assert (with_pairs > loss(u, labels)).all()  # the term is not active before its epoch
    loss.set_epoch(3)
    torch.testing.assert_close(loss(u, labels), with_pairs)


@pytest.mark.parametrize("form", ["ids", "multi-hot"])
@pytest.mark.parametrize("case", PLAIN, ids=str)
@pytest.mark.parametrize("lengths", [(8, 16, 32), (5, 12, 48, 100), (1,), (1024,)])
def test_odd_shapes_and_a_single_row(case, lengths, form):
    loss = make_loss(case, lengths, classes=3, num_train=4, unwritten=4)
    for n in (1, 3):
        labels = torch.arange(n) % 3
        if form == "multi-hot":
            labels = F.one_hot(labels, 3)
        u = torch.randn(n, lengths[-1], requires_grad=True)
        values = loss(u, labels, torch.arange(n))
        assert values.shape == (len(lengths),)
        values.sum().backward()
        assert torch.isfinite(values).all()
        assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("case", PLAIN, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
def test_extreme_outputs_stay_finite(case, scale):
    """exp and cosh overflow near 90, log 0 at zero rows, p that rounds to 1: none reaches value or gradient."""
    loss = make_loss(case, (8, 64), num_train=16, unwritten=16)
    u = (scale * torch.randn(16, 64)).requires_grad_()
    values = loss(u, torch.arange(16) % 5, torch.arange(16))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("name", ["mdsh", "shcir"])
def test_certain_probabilities(name):
    """p rounds to 1 in float32 and half precision; log(1 - p) must be that of float64."""
    loss = build(name, num_classes=4, code_lengths=(1024,))
    centers = loss.centers[0]
    u, labels = centers[[1, 1]].clone(), torch.tensor([2, 1])
    value = loss(u, labels)
    expected = loss.double()(u.double(), labels)
    assert expected > 5  # 1 - p of the confident mistake is about exp(-31), which 1 - p in float32 cannot hold
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    half = loss.float()(u.half(), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value)


@pytest.mark.parametrize("name", ["mdsh", "shcir"])
@pytest.mark.parametrize("bits", [128, 256, 1024])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradient_of_a_certain_mistake(name, bits, classes):
    """Where p rounds to 1, its own gradient p / (1 - p) * (1 - p) must not cancel: compare with float64."""
    loss = build(name, num_classes=classes, code_lengths=(bits,), centers="nested")
    center = loss.centers[0]
    u = torch.cat([center + 0.1 * torch.randn(classes, bits), 2 * center + 0.5 * torch.randn(classes, bits)])
    labels = (torch.arange(classes) + 1).remainder(classes).repeat(2)
    grads = []
    for dtype in (torch.float32, torch.float64):
        x = u.to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(loss.to(dtype)(x, labels).sum(), x)[0].double())
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm()


def test_softmax_likelihood_pushes_the_wrong_class_away():
    logits = torch.tensor([[[22.6, 0.0]], [[32.0, 0.0]]])
    _, grad = softmax_likelihood(logits, torch.tensor([[0.0, 1.0]]), 1.0)
    torch.testing.assert_close(grad, torch.tensor([[[2.0, -2.0]]]).expand(2, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_half_precision_is_computed_in_float32(case, dtype):
    loss = make_loss(case, (8, 32), classes=3, num_train=6, unwritten=6)
    u, labels, index = torch.randn(6, 32).to(dtype), torch.arange(6) % 3, torch.arange(6)
    values = loss(u, labels, index)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, loss(u.float(), labels, index), rtol=0, atol=0)


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)], ids=["all same", "all apart"])
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_batches_without_negatives_or_positives(case, labels):
    loss = make_loss(case, (8, 16), classes=6, num_train=6, unwritten=6)
    u = torch.randn(6, 16, requires_grad=True)
    values = loss(u, labels, torch.arange(6))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("case", [case for case in PLAIN if not case.ids_only], ids=str)
def test_labels_with_no_class(case):
    loss = make_loss(case, (8, 16), classes=3, num_train=4, unwritten=4)
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    u = torch.randn(4, 16, requires_grad=True)
    values = loss(u, labels, torch.arange(4))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()


def test_csq_multi_label_centre_breaks_ties_with_the_tie_centre():
    centers = [torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, 1, 1, -1]])]
    loss = build("csq", num_classes=3, code_lengths=(4,), centers=centers)
    labels = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    tie = loss.tie_centers[0]
    targets = loss.targets(labels, torch.zeros(1))
    assert targets[0].tolist() == [1, tie[1], tie[2], -1]
    assert targets[1].tolist() == [1, 1, 1, -1]
    assert targets[2].tolist() == tie.tolist()


def test_csq_keeps_its_gradient_where_tanh_saturates():
    loss = build("csq", num_classes=2, code_lengths=(4,), centers=[torch.ones(2, 4)])
    u = torch.full((1, 4), -30.0, requires_grad=True)
    loss(u, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(u.grad, torch.full((1, 4), -0.5))


@pytest.mark.parametrize(
    ("name", "options", "u", "labels"),
    [
        ("dtsh", {}, [[20.0, 0], [-20, 0.5], [20, 1]], [0, 0, 1]),
        ("lcdsh", {}, [[20.0, 0], [-20, 0.5]], [0, 0]),
        ("dch", {"max_cosine": None}, [[1.0, 0.0], [1, 1e-2]], [0, 1]),
        ("dbdh", {}, [[1.5, 0.4], [-2, 0.3]], [0, 0]),
    ],
)
def test_clamps_can_be_lifted(name, options, u, labels):
    """By default the worst pairs' gradient is killed, as published; the unclamped form keeps it."""
    lifted = options or {"clamp": False}
    gradients = []
    for chosen in ({}, lifted):
        bank = {"num_train": 3} if name == "dbdh" else {}
        loss = build(name, num_classes=2, code_lengths=(2,), **bank, **chosen)
        for penalty in ("quantization", "alpha", "eta"):
            if hasattr(loss, penalty):
                setattr(loss, penalty, 0.0)
        x = torch.tensor(u, requires_grad=True)
        loss(x, torch.tensor(labels), torch.arange(len(labels))).sum().backward()
        gradients.append(x.grad[:, 0] if name != "dch" else x.grad[:, 1])
    clamped, free = gradients
    assert free.abs().max() > 2 * clamped.abs().max()


def test_dpn_variants():
    loss = build("dpn", num_classes=2, code_lengths=(2, 4), ternary=True)
    u = torch.tensor([[0.5, -2.0, 3.0, 0.0]], requires_grad=True)
    value = loss(u, torch.tensor([1]))
    center = loss.centers[1][1]
    rounded = torch.tensor([0.0, -1, 1, 0])
    torch.testing.assert_close(value[1], (1 - rounded * center).clamp(min=0).mean())
    value.sum().backward()
    assert u.grad.abs().sum() > 0  # passed straight through the rounding
    loss = build("dpn", num_classes=3, code_lengths=(2, 4))
    before = [c.clone() for c in loss.centers]
    loss.adapt_centers(torch.tensor([[1.0, -1, 2, -3], [3, -1, -4, 1]]), torch.tensor([0, 0]))
    assert loss.centers[1][0].tolist() == [1, -1, -1, -1]
    assert loss.centers[0][0].tolist() == [1, -1]
    assert torch.equal(loss.centers[1][1:], before[1][1:])  # classes with no item keep theirs


def test_per_length_wraps_any_loss():
    head = torch.nn.Linear(4, 3)
    loss = PerLength([lambda u, y: (u.mean(1) - y).square().mean(), lambda u, y: F.cross_entropy(head(u), y)], (2, 4))
    u, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    values = loss(u, y)
    torch.testing.assert_close(values[0], (u[:, :2].mean(1) - y).square().mean())
    torch.testing.assert_close(values[1], F.cross_entropy(head(u), y))


def test_nested_centres_are_prefixes_in_the_loss():
    loss = build("csq", num_classes=10, centers="nested")
    for short, long in zip(loss.centers, loss.centers[1:]):
        assert torch.equal(short, long[:, : short.shape[1]])
    for short, long in zip(loss.tie_centers, loss.tie_centers[1:]):
        assert torch.equal(short, long[: short.shape[0]])


def test_code_lengths_stay_exact_in_a_half_precision_module():
    loss = build("dpn", num_classes=2, code_lengths=(257,))
    u, labels = torch.randn(3, 257), torch.tensor([0, 1, 0])
    torch.testing.assert_close(loss.bfloat16()(u, labels), loss.float()(u, labels), rtol=0, atol=0)


def test_distillation_inside_autocast_is_float32():
    u = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = distillation_losses(u, (4, 16))
    torch.testing.assert_close(values, distillation_losses(u, (4, 16)), rtol=0, atol=0)


@pytest.mark.parametrize("multi", [False, True])
def test_dch_of_one_range_is_the_published_one_with_gamma_in_proportion_to_the_length(multi):
    torch.manual_seed(0)
    lengths, one_range = (8, 24, 40), 16
    u = torch.randn(12, 40, dtype=torch.float64, requires_grad=True)
    labels = draw_labels(12, 3, multi)
    loss = build("dch", num_classes=3, code_lengths=lengths, gamma=20.0, reference_bits=one_range)
    got = loss(u, labels)
    torch.testing.assert_close(got, naive(loss, u.detach(), labels)[0], rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(got.sum(), u)
    total = torch.zeros_like(u)
    for value, b in zip(got, lengths):
        published = build("dch", num_classes=3, code_lengths=(b,), gamma=20.0 * b / one_range)
        part = u[:, :b].detach().requires_grad_()
        want = published(part, labels, backend="reference")[0]
        torch.testing.assert_close(value, want, rtol=1e-10, atol=0)
        total[:, :b] += torch.autograd.grad(want, part)[0]
    torch.testing.assert_close(gradient, total, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="reference_bits"):
        build("dch", num_classes=3, code_lengths=lengths, reference_bits=0)
