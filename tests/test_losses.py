"""Golden values, gradients and hazards of the ten losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, segment_matrix, split
from nhl_fast.head.distillation import distillation_losses, expanded_distillation_losses
from nhl_fast.losses import PerLength, build
from nhl_fast.losses.softmax import softmax_likelihood

pytestmark = pytest.mark.numeric

LENGTHS = (8, 16, 32, 64, 128)
CENTER_LOSSES = ("csq", "dpn", "mdsh", "shcir")
BANK_LOSSES = ("dsh", "dhn", "dbdh")
BATCH_LOSSES = ("dtsh", "lcdsh", "dch")
ALL = CENTER_LOSSES + BANK_LOSSES + BATCH_LOSSES


def make(name, num_classes, lengths, num_train=50, **options):
    num_train = num_train if name in BANK_LOSSES else None
    return build(name, num_classes=num_classes, code_lengths=lengths, num_train=num_train, **options)


def golden_loss(golden, name, dtype):
    num_classes = golden["labels"].shape[1]
    options = {}
    if name in CENTER_LOSSES:
        options["centers"] = [torch.from_numpy(golden[f"centers_{b}"]) for b in LENGTHS]
    loss = make(name, num_classes, LENGTHS, num_train=len(golden["bank_u"]), **options)
    if name in CENTER_LOSSES:
        loss.tie_centers = [torch.from_numpy(golden[f"tie_center_{b}"]) for b in LENGTHS]
    if name in BANK_LOSSES:
        bank = torch.from_numpy(golden["bank_u"]).to(dtype)
        loss.bank.update(torch.arange(len(bank)), bank, torch.from_numpy(golden["bank_labels"]))
    return loss.to(dtype)


@pytest.mark.parametrize("form", ["multi-hot", "ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_golden_values_and_gradients(golden, name, dtype, form):
    if f"{name}_loss" not in golden:
        pytest.skip("the loss is single-label, these labels are not")
    labels = torch.from_numpy(golden["labels"])
    if form == "ids":
        if golden["name"].startswith("multi"):
            pytest.skip("multi-label data has no ids")
        labels = labels.argmax(1)
    loss = golden_loss(golden, name, dtype)
    u = torch.from_numpy(golden["u"]).to(dtype)
    u, labels = loss.prepare(u, labels, torch.from_numpy(golden["index"]))
    values, grad = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u, LENGTHS))
    expected = torch.from_numpy(golden[f"{name}_loss"]).to(dtype)
    torch.testing.assert_close(values.detach(), expected, rtol=1e-4, atol=0)
    for b, g in zip(LENGTHS, split(grad, LENGTHS)):
        want = torch.from_numpy(golden[f"{name}_grad_{b}"]).to(dtype)
        if (golden["name"], name, b) == ("multi12", "dbdh", 128):
            # theta of this pair is 1e-8 and rounds to 0 in float32, where the golden gradient, taken through
            # max(theta, 0) - |theta|, has slope 1 in place of sigmoid(0) = 1/2.
            row, column = 31, 56
            theta = 0.5 * u[row].detach().double().clamp(-1, 1) @ loss.bank.u[column].double().clamp(-1, 1)
            assert theta.abs() < 1e-7
            g = g.clone()
            passes = (u[row].abs() < 1) * loss.bank.u[column].clamp(-1, 1)
            g[row] += 0.5 * 0.5 * passes / (u.shape[0] * loss.bank.num_train)
        assert (g - want).norm() <= 1e-4 * want.norm(), (name, b)


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


def double_loss(name, lengths=(3, 5, 12), num_classes=4, num_train=9, **options):
    loss = make(name, num_classes, lengths, num_train, **options).double()
    if hasattr(loss, "bank") and loss.bank is not None:
        rows = torch.arange(num_train - 2)  # two rows stay unwritten
        loss.bank.update(rows, torch.randn(len(rows), lengths[-1]).double(), rows % num_classes)
    return loss


OPTIONS = {
    "dpn": [{}, {"centers": "nested"}],
    "dbdh": [{}, {"clamp": False}],
    "dtsh": [{}, {"clamp": False}],
    "lcdsh": [{}, {"clamp": False}],
    "dch": [{}, {"max_cosine": None}],
}


@pytest.mark.parametrize(("name", "options"), [(n, o) for n in ALL for o in OPTIONS.get(n, [{}])])
def test_gradcheck(name, options):
    loss = double_loss(name, **options).eval()
    labels = torch.tensor([0, 1, 1, 3, 2, 0, 1])
    u = (0.7 * torch.randn(7, 12, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), u)


def test_gradcheck_mdsh_pair_term():
    loss = build("mdsh", num_classes=4, code_lengths=(3, 12), num_train=9).double().eval()
    assert not loss.pair_term(torch.zeros(1, 15).double(), torch.tensor([0])).any()  # nothing is written yet
    loss.bank.update(torch.arange(6), torch.randn(6, 12).double(), torch.arange(6) % 4)
    labels = torch.tensor([0, 1, 1, 3])
    u = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), u)
    with_pairs = loss(u, labels)
    loss.pair_from_epoch = 3
    assert (with_pairs > loss(u, labels)).all()  # the term is not active before its epoch
    loss.set_epoch(3)
    torch.testing.assert_close(loss(u, labels), with_pairs)


def test_mdsh_pair_term_by_its_definition():
    loss = build("mdsh", num_classes=3, code_lengths=(4, 8), num_train=5).double().eval()
    stored, kept = torch.randn(3, 8).double(), torch.tensor([0, 2, 4])
    loss.bank.update(kept, stored, torch.tensor([0, 1, 0]))
    u, labels = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for value, b in zip(loss.pair_term(expand(u, (4, 8)), labels), (4, 8)):
        terms = [
            math.log(1 + math.exp((1 - F.cosine_similarity(u[i, :b], stored[j, :b], dim=0).item()) / 2))
            for i in range(4)
            for j, y in enumerate((0, 1, 0))
            if labels[i] == y
        ]
        assert value.item() == pytest.approx(sum(terms) / len(terms))


@pytest.mark.parametrize("form", ["ids", "multi-hot"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lengths", [(8, 16, 32), (5, 12, 48, 100), (1,), (1024,)])
def test_odd_shapes_and_a_single_row(name, lengths, form):
    loss = make(name, 3, lengths, num_train=4)
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


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
def test_extreme_outputs_stay_finite(name, scale):
    """exp and cosh overflow near 90, log 0 at zero rows, p that rounds to 1: none reaches value or gradient."""
    loss = make(name, 5, (8, 64), num_train=16)
    u = (scale * torch.randn(16, 64)).requires_grad_()
    values = loss(u, torch.arange(16) % 5, torch.arange(16))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("name", ["mdsh", "shcir"])
def test_certain_probabilities(name):
    """p rounds to 1 in float32 and half precision; log(1 - p) must be that of float64."""
    loss = make(name, 4, (1024,))
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
    loss = make(name, classes, (bits,), centers="nested")
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
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name, dtype):
    loss = make(name, 3, (8, 32), num_train=6)
    u, labels, index = torch.randn(6, 32).to(dtype), torch.arange(6) % 3, torch.arange(6)
    values = loss(u, labels, index)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, loss(u.float(), labels, index), rtol=0, atol=0)


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)], ids=["all same", "all apart"])
@pytest.mark.parametrize("name", ALL)
def test_batches_without_negatives_or_positives(name, labels):
    loss = make(name, 6, (8, 16), num_train=6)
    u = torch.randn(6, 16, requires_grad=True)
    values = loss(u, labels, torch.arange(6))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()


def test_dch_weights_are_one_where_one_kind_is_missing():
    u, lengths = torch.randn(5, 16), (16,)
    value = make("dch", 2, lengths, quantization=0.0)(u, torch.zeros(5, dtype=torch.long))
    cosine = F.cosine_similarity(u[:, None], u[None], dim=-1)
    d = 8 * (1 - cosine.clamp(max=0.99))
    torch.testing.assert_close(value[0], ((d / 20).log() + (1 + 20 / d).log()).mean())


@pytest.mark.parametrize("name", [n for n in ALL if n != "shcir"])
def test_labels_with_no_class(name):
    loss = make(name, 3, (8, 16), num_train=4)
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
        loss = make(name, 2, (2,), num_train=3, **chosen)
        for penalty in ("quantization", "alpha", "eta"):
            if hasattr(loss, penalty):
                setattr(loss, penalty, 0.0)
        x = torch.tensor(u, requires_grad=True)
        loss(x, torch.tensor(labels), torch.arange(len(labels))).sum().backward()
        gradients.append(x.grad[:, 0] if name != "dch" else x.grad[:, 1])
    clamped, free = gradients
    assert free.abs().max() > 2 * clamped.abs().max()


class TestBank:
    def test_rows_never_written_do_not_count(self):
        u, labels = torch.randn(4, 16), torch.tensor([0, 1, 2, 0])
        for name in BANK_LOSSES:
            large, small = make(name, 3, (8, 16), 50), make(name, 3, (8, 16), 4)
            torch.testing.assert_close(large(u, labels, torch.arange(4)), small(u, labels, torch.arange(4)))

    def test_mdsh_fills_its_own_bank_unless_told_otherwise(self):
        settings = {"num_classes": 3, "code_lengths": (8,), "num_train": 5}
        own, external = build("mdsh", **settings), build("mdsh", **settings, external_bank=True)
        u, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
        own(u, labels, torch.tensor([4, 0, 1]))
        assert torch.equal(own.bank.u[[4, 0, 1]], u)
        external(u, labels)
        assert not external.bank.written.any()
        with pytest.raises(ValueError, match="index"):
            own(u, labels)

    def test_float64_outputs_survive_a_state_dict(self):
        a, b = make("dhn", 3, (8,), 4).double(), make("dhn", 3, (8,), 4)
        a(torch.randn(2, 8, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([0, 3]))
        b.load_state_dict(a.state_dict())
        assert torch.equal(a.bank.u, b.bank.u)

    def test_an_empty_bank_leaves_the_penalty_alone(self):
        for name in BANK_LOSSES:
            loss = make(name, 3, (8, 16), 5).eval()
            u = torch.randn(2, 16)
            torch.testing.assert_close(
                loss(u, torch.tensor([0, 1])), loss.penalty(expand(u.clamp(-1, 1) if name == "dbdh" else u, (8, 16)))
            )

    def test_the_batch_is_stored_detached_before_it_is_read(self):
        loss = make("dsh", 3, (8, 16), 5)
        u = torch.randn(3, 16, requires_grad=True)
        loss(u, torch.tensor([0, 1, 2]), torch.tensor([4, 0, 2]))
        assert torch.equal(loss.bank.u[[4, 0, 2]], u.detach())
        assert loss.bank.written.tolist() == [True, False, True, False, True]
        assert not loss.bank.u.requires_grad

    def test_evaluation_reads_without_writing(self):
        loss = make("dhn", 3, (8, 16), 5)
        loss(torch.randn(3, 16), torch.tensor([0, 1, 2]), torch.arange(3))
        before = loss.bank.u.clone()
        loss.eval()
        loss(torch.randn(3, 16), torch.tensor([0, 1, 2]))
        assert torch.equal(loss.bank.u, before)

    def test_two_calls_before_backward(self):
        """The bank changes between forward and backward; nothing that backward needs is in it."""
        loss = make("dhn", 3, (8, 16), 8)
        u = torch.randn(4, 16, requires_grad=True)
        first = loss(u, torch.tensor([0, 1, 2, 0]), torch.arange(4))
        (expected,) = torch.autograd.grad(first.sum(), u, retain_graph=True)
        second = loss(u + 1, torch.tensor([0, 1, 2, 0]), torch.arange(4))
        (again,) = torch.autograd.grad(first.sum() + 0 * second.sum(), u)
        torch.testing.assert_close(again, expected)

    def test_ids_and_multi_hot_may_meet(self):
        loss = make("dsh", 3, (8,), 4)
        loss.bank.update(torch.tensor([0, 1]), torch.randn(2, 8), torch.tensor([2, 0]))
        loss.bank.update(torch.tensor([2]), torch.randn(1, 8), torch.tensor([[1, 0, 1]]))
        similar = loss.bank.similarity(torch.tensor([2, 0]))
        assert similar.tolist() == [[True, False, True, False], [False, True, True, False]]

    def test_state_dict_round_trip_with_multi_hot_labels(self):
        a, b = make("dsh", 3, (8,), 4), make("dsh", 3, (8,), 4)
        a(torch.randn(2, 8), torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.tensor([3, 1]))
        b.load_state_dict(a.state_dict())
        u, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
        torch.testing.assert_close(a.eval()(u, labels), b.eval()(u, labels), rtol=0, atol=0)


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


U, Y = torch.randn(4, 16), torch.tensor([0, 1, 2, 0])
BAD = [
    ("lengths that do not increase", lambda: build("csq", num_classes=3, code_lengths=(16, 8)), "increasing"),
    ("no lengths", lambda: build("csq", num_classes=3, code_lengths=()), "code_lengths"),
    ("a length of zero", lambda: build("csq", num_classes=3, code_lengths=(0, 8)), "code_lengths"),
    ("a float length", lambda: build("csq", num_classes=3, code_lengths=(8.5,)), "code_lengths"),
    ("no classes", lambda: build("csq", num_classes=0), "num_classes"),
    ("one class for a softmax", lambda: build("mdsh", num_classes=1), "num_classes"),
    ("unknown loss", lambda: build("cqs", num_classes=3), "'csq'"),
    ("unknown option", lambda: build("csq", num_classes=3, margin=2), "margin"),
    ("a bank of unknown size", lambda: build("dsh", num_classes=3), "num_train"),
    ("wrong width", lambda: make("csq", 3, (8, 16))(U[:, :8], Y), "u: expected 16"),
    ("no rows", lambda: make("csq", 3, (8, 16))(U[:0], Y[:0]), "at least one row"),
    ("integer outputs", lambda: make("csq", 3, (8, 16))(U.long(), Y), "floating"),
    ("a NumPy array", lambda: make("csq", 3, (8, 16))(U.numpy(), Y), "torch.Tensor"),
    ("labels too long", lambda: make("csq", 3, (8, 16))(U, Y.repeat(2)), "labels"),
    ("float ids", lambda: make("csq", 3, (8, 16))(U, Y.float()), "labels"),
    ("id out of range", lambda: make("csq", 3, (8, 16))(U, Y + 1), "from 0 to 2"),
    ("negative id", lambda: make("csq", 3, (8, 16))(U, Y - 1), "from 0 to 2"),
    ("multi-hot of other width", lambda: make("csq", 3, (8, 16))(U, F.one_hot(Y, 4)), "3 columns"),
    ("multi-hot with a two", lambda: make("csq", 3, (8, 16))(U, 2 * F.one_hot(Y, 3)), "zeros and ones"),
    ("two classes for shcir", lambda: make("shcir", 3, (8, 16))(U, torch.ones(4, 3)), "single-label"),
    ("no class for shcir", lambda: make("shcir", 3, (8, 16))(U, torch.zeros(4, 3)), "single-label"),
    ("no index", lambda: make("dsh", 3, (8, 16))(U, Y), "index"),
    ("index out of range", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(4) + 1), "from 0 to 3"),
    ("float index", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(4.0)), "index"),
    ("short index", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(3)), "index"),
    ("wrong bank width", lambda: make("dsh", 3, (8, 16), 4).bank.update(Y, U[:, :8], Y), "u: expected 16"),
    ("too few functions", lambda: PerLength([lambda u, y: u.sum()], (8, 16)), "functions: expected 2"),
    ("a function that is none", lambda: PerLength([3, 4], (8, 16)), "functions"),
    ("a function without a scalar", lambda: PerLength([lambda u, y: u], (16,))(U, Y), "0-d"),
    ("an option that is no number", lambda: make("dsh", 3, (8,), margin="wide"), "margin"),
    ("an option that is not finite", lambda: make("dch", 3, (8,), gamma=float("nan")), "gamma"),
    ("a negative option", lambda: make("lcdsh", 3, (8,), eta=-1), "eta"),
    ("a flag that is none", lambda: make("dtsh", 3, (8,), clamp="no"), "clamp"),
    ("a cosine beyond 1", lambda: make("dch", 3, (8,), max_cosine=1.5), "max_cosine"),
    (
        "the bank's size as an option",
        lambda: build("csq", num_classes=3, num_train=4, **{"num_classes_": 3}),
        "option",
    ),
    ("tie centres that are a number", lambda: setattr(make("csq", 3, (8, 16)), "tie_centers", 5), "tie_centers"),
    ("an unknown backend", lambda: make("csq", 3, (8, 16))(U, Y, backend="gpu"), "backend"),
    ("a missing backend", lambda: make("dch", 3, (8, 16))(U, Y, backend="cuda"), "backend"),
    ("short tie centres", lambda: setattr(make("csq", 3, (8, 16)), "tie_centers", [torch.ones(8)]), "tie_centers"),
]


@pytest.mark.parametrize(("call", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_code_lengths_stay_exact_in_a_half_precision_module():
    loss = make("dpn", 2, (257,))
    u, labels = torch.randn(3, 257), torch.tensor([0, 1, 0])
    torch.testing.assert_close(loss.bfloat16()(u, labels), loss.float()(u, labels), rtol=0, atol=0)


def test_distillation_inside_autocast_is_float32():
    u = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = distillation_losses(u, (4, 16))
    torch.testing.assert_close(values, distillation_losses(u, (4, 16)), rtol=0, atol=0)
