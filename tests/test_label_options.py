"""Ignored rows, class weights, soft labels: against the plain formulas of rows that are there twice, or not."""

import copy

import pytest
import torch
from losses_cases import CASES, form_id, make_loss, naive_by_length, of_backend
from native_cases import AVAILABLE
from numeric import Expected
from soft_formulas import CLASSES, LENGTHS, PLAINLY, soft_weights

from nhl_fast import NestedHashLayer, NestedObjective
from nhl_fast.losses import REGISTRY, Neighbors, PerLength, build, weighted
from nhl_fast.losses.form import Form

SERVED = [case for case in CASES if case.name in REGISTRY]
HARD = [(case, multi) for case in SERVED for multi in (False, True) if not (multi and case.ids_only)]
BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(not AVAILABLE, reason="native library"))]
WEIGHTS = (2, 1, 0, 3)  # whole numbers: a row that counts twice is two rows


def problem(case, multi, n=11, dtype=torch.float32):
    loss = make_loss(case, LENGTHS, classes=CLASSES, multi=multi, num_train=17).to(dtype).eval()
    return loss, torch.randn(n, LENGTHS[-1], dtype=dtype), case.labels(n, CLASSES, multi)


def with_ignored(labels):
    """The third and the last row ignored."""
    labels = labels.long()
    labels[[2, -1]] = -1
    return labels


def counted(loss, times):
    """A loss whose bank holds every written row so many times as `times` of its labels says."""
    loss, bank = copy.deepcopy(loss), getattr(loss, "bank", None)
    if bank is None:
        return loss
    rows = torch.repeat_interleave(torch.arange(len(bank.u)), times(bank.labels) * bank.written)
    found = loss.bank
    found.num_train, found.u, found.labels = len(rows), bank.u[rows], bank.labels[rows]
    found.written = torch.ones(len(rows), dtype=torch.bool)
    return loss


def repeated(loss, u, labels, times):
    """The plain formulas' values and gradients where row i is there times(labels)[i] times."""
    rows = torch.repeat_interleave(torch.arange(len(u)), times(labels))
    names = naive_by_length(counted(loss, times), u[rows], labels[rows].clamp(min=0))
    return {
        name: x if name == "values" else torch.zeros(len(u), x.shape[1], dtype=x.dtype).index_add_(0, rows, x)
        for name, x in names.items()
    }


def of_classes(labels):
    """`WEIGHTS` of ids, 0 where ignored."""
    weights = torch.tensor(WEIGHTS)[labels.clamp(min=0)]
    return weights * (labels >= 0)


def not_ignored(labels):
    return ((labels if labels.ndim == 1 else labels.amin(1)) >= 0).long()


def check(loss, u, labels, backend, truth):
    """A loss in float32 is the truth but for float32's own errors (see `numeric`)."""

    right = Expected(lambda: in_double(loss, u, labels), truth=lambda: truth)
    return right.check(of_backend(loss, u, labels, backend))


def in_double(loss, u, labels):
    """Values and gradients of the reference in float64."""
    return of_backend(copy.deepcopy(loss).double(), u.double(), labels, "reference")


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "multi"), HARD, ids=form_id)
def test_ignored_rows_are_not_there(case, multi, backend):
    loss, u, labels = problem(case, multi)
    labels = with_ignored(labels)
    truth = repeated(loss, u, labels, not_ignored)
    found = check(loss.label_options(ignore_index=-1), u, labels, backend, truth)
    assert not any(found[f"gradient at {b} bits"][[2, -1]].any() for b in LENGTHS)


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_a_class_of_weight_two_is_there_twice(case, backend):
    loss, u, labels = problem(case, False)
    labels[0] = -1
    truth = repeated(loss, u, labels, of_classes)
    check(loss.label_options(ignore_index=-1, class_weights=WEIGHTS), u, labels, backend, truth)


# ------------------------------------------------------------------------------------------------------ soft labels


def mixed(n, classes=CLASSES):
    """Rows of two classes by quarters, some of one, one of none."""
    a, b = torch.randint(0, classes, (2, n))
    share = torch.randint(0, 5, (n, 1)) / 4
    rows = share * torch.eye(classes)[a] + (1 - share) * torch.eye(classes)[b]
    rows[1] = 0
    return rows


def soft_problem(case):
    loss = make_loss(case, LENGTHS, classes=CLASSES, num_train=17, unwritten=17).eval()
    loss.label_options(ignore_index=-1, class_weights=(2.0, 1.0, 0.0, 3.0), soft=True)
    if case.bank:
        loss.bank.update(torch.arange(1, 14), torch.randn(13, LENGTHS[-1]), mixed(13))
    u, labels = torch.randn(9, LENGTHS[-1]), mixed(9)
    labels[-1] = -1
    return loss, u, labels


def soft_truth(case, loss, u, labels):
    """Values and gradients of the plain definitions in float64."""
    loss, y, w = copy.deepcopy(loss).double(), labels.double().clamp(min=0), soft_weights(labels)
    values, gradients = [], {}
    for k, b in enumerate(LENGTHS):
        x = u[:, :b].double().requires_grad_()
        values.append(PLAINLY[case.name](loss, x, y, w, k))
        gradients[f"gradient at {b} bits"] = torch.autograd.grad(values[-1], x)[0]
    return {"values": torch.stack(values).detach(), **gradients}


SOFT = [case for case in SERVED if not case.pairs]


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SOFT, ids=str)
def test_soft_labels_are_mixtures(case, backend):
    loss, u, labels = soft_problem(case)
    found = check(loss, u, labels, backend, soft_truth(case, loss, u, labels))
    assert not any(found[f"gradient at {b} bits"][-1].any() for b in LENGTHS)


SMOOTH = [case for case in SOFT if not case.options and case.name != "greedyhash"]  # whose signs have no slope


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_gradients_of_soft_labels_are_those_of_the_values(case):
    loss, u, labels = soft_problem(case)
    loss, u = loss.double(), 1.3 * u.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: loss(u, labels, backend="reference"), u)


# ----------------------------------------------------------------------------------------------------------- use


def test_ignored_rows_stay_out_of_the_bank():
    loss = build("dsh", num_classes=CLASSES, code_lengths=LENGTHS, num_train=5).label_options(ignore_index=-1)
    loss(torch.randn(3, 9), torch.tensor([0, -1, 2]), torch.tensor([4, 1, 0]))
    assert loss.bank.written.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["csq", "dhn", "dtsh", "mdsh"])
def test_where_no_row_counts_there_is_no_loss(name, backend):
    loss = build(name, num_classes=CLASSES, code_lengths=LENGTHS, num_train=5).label_options(ignore_index=-1)
    u = torch.randn(3, 9, requires_grad=True)
    values = loss(u, torch.full((3,), -1), torch.arange(3), backend=backend)
    values.sum().backward()
    assert not values.any()
    assert not u.grad.any()


@pytest.mark.parametrize("name", ["csq", "dhn", "mdsh"])
def test_a_step_with_options(name):
    found = []
    for backend in ("auto", "reference"):
        torch.manual_seed(1)
        layer, x = NestedHashLayer(6, LENGTHS), torch.randn(8, 6)
        loss = build(name, num_classes=CLASSES, code_lengths=LENGTHS, num_train=9)
        loss.label_options(ignore_index=-1, class_weights=[1.0, 2.0, 0.5, 1.0], soft=True)
        labels = mixed(8)
        labels[3] = -1
        result = NestedObjective(layer, loss, backend=backend)(x, labels, torch.arange(8))
        found.append((*result[:4], *torch.autograd.grad(result.total, list(layer.parameters()))))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_options_move_with_the_loss_and_can_be_taken_back():
    loss = build("csq", num_classes=CLASSES, code_lengths=LENGTHS).label_options(class_weights=[0.3, 1, 1, 1])
    u, labels = torch.randn(4, 9), torch.arange(4)
    before = loss(u, labels)
    assert torch.equal(loss.half()(u, labels), before)
    assert torch.equal(copy.deepcopy(loss)(u, labels), before)
    assert not any("class_weights" in key for key in loss.state_dict())
    plain = loss.label_options()(u, labels)
    assert not torch.equal(plain, before)
    torch.testing.assert_close(plain, build("csq", num_classes=CLASSES, code_lengths=LENGTHS)(u, labels))


def test_banks_of_weights_and_of_sets_do_not_load_as_each_other():
    soft, hard = (build("dhn", num_classes=CLASSES, code_lengths=LENGTHS, num_train=5) for _ in range(2))
    soft.label_options(soft=True)(torch.randn(3, 9), mixed(3), torch.arange(3))
    hard(torch.randn(3, 9), mixed(3) > 0, torch.arange(3))
    again = build("dhn", num_classes=CLASSES, code_lengths=LENGTHS, num_train=5).label_options(soft=True)
    again.load_state_dict(soft.state_dict())
    assert torch.equal(again.bank.labels, soft.bank.labels)
    for one, other in ((soft, hard), (hard, soft)):
        with pytest.raises(
            RuntimeError, match=r"rows of weights \(`label_options`\) and label sets are not each other"
        ):
            one.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore_index": 2}, ValueError, "ignore_index: expected a number that is no class, got 2"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index: expected an integer"),
        ({"class_weights": [1.0, 2.0]}, ValueError, "class_weights: expected 4 finite numbers of at least 0"),
        ({"class_weights": [1.0, 2.0, -1.0, 1.0]}, ValueError, "class_weights: expected 4 finite numbers"),
        ({"class_weights": [0.0] * 4}, ValueError, "not all 0"),
        ({"class_weights": "balanced"}, TypeError, "class_weights: expected numbers"),
        ({"soft": 1}, TypeError, "soft: expected True or False"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        build("csq", num_classes=CLASSES, code_lengths=LENGTHS).label_options(**options)


def test_labels_that_the_options_do_not_allow():
    loss, u = build("csq", num_classes=CLASSES, code_lengths=LENGTHS), torch.randn(2, 9)
    with pytest.raises(ValueError, match="labels: expected class ids from 0 to 3"):
        loss(u, torch.tensor([0, -1]))
    loss.label_options(ignore_index=-1)
    with pytest.raises(ValueError, match="labels: expected class ids from 0 to 3"):
        loss(u, torch.tensor([0, -2]))
    with pytest.raises(ValueError, match="labels: expected multi-hot rows of zeros and ones"):
        loss(u, torch.full((2, 4), 0.5))
    loss.label_options(soft=True)
    with pytest.raises(ValueError, match="labels: expected weights of classes between 0 and 1"):
        loss(u, torch.full((2, 4), 1.5))


@pytest.mark.parametrize(
    "loss",
    [PerLength([lambda u, y: u.mean()] * 2, LENGTHS), build("dch", num_classes=4, reference_bits=16), Neighbors()],
)
def test_losses_that_do_not_say_how_labels_count_refuse(loss):
    with pytest.raises(ValueError, match=r"label_options: .* (has no forms|takes no classes)"):
        loss.label_options(ignore_index=-1)


def test_a_function_without_a_definition_is_refused_by_name():
    assert weighted.refuses((Form("pairs", "contrastive", (1.0,)),), "Mine") is None
    assert "Mine's function 'mine'" in weighted.refuses((Form("pairs", "mine", ()),), "Mine")
