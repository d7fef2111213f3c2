"""Forms: what a loss tells the compiled steps. Served is what a class itself says, and the sum of it."""

import dataclasses

import pytest
import torch
from native_cases import AVAILABLE, DETAIL

from nhl_fast.core.prefixes import split
from nhl_fast.losses import CSQ, DCH, DTSH, REGISTRY, SHCIR, NestedLoss, PerLength, build
from nhl_fast.losses.form import PENALTIES, Form, Penalty

LENGTHS = (5, 12, 48)
native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


def make(name, **options):
    return build(name, num_classes=4, code_lengths=LENGTHS, num_train=20, **options)


def inputs(n=9):
    torch.manual_seed(0)
    return torch.randn(n, LENGTHS[-1]), torch.arange(n) % 4, torch.arange(n)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_published_loss_has_forms(name):
    loss = make(name)
    forms = loss.forms()
    assert forms
    assert {form.body for form in forms} <= set(PENALTIES)
    for form in forms:
        assert form.bank in (None, getattr(loss, "bank", None))
        assert all(isinstance(c, float) for c in (*form.constants, form.reference_bits, form.clamp))


def test_a_plain_loss_has_none():
    assert NestedLoss(4, LENGTHS).forms() == ()
    assert PerLength([lambda u, labels: u.sum()] * 3, LENGTHS).forms() == ()


class Doubled(DCH):
    def expanded(self, v, labels):
        return 2 * super().expanded(v, labels)


class Served(Doubled):
    """Says that it has its grandparent's forms."""

    def forms(self):
        return DCH.forms(self)


class Silent(Served):
    pass


class ChecksFirst:
    """A mixin, in front of a class with forms."""

    def prepare(self, u, labels, index):
        return super().prepare(u, labels, index)


class Mixed(ChecksFirst, DCH):
    pass


@native
def test_forms_are_not_inherited():
    """A subclass may override any part of what its parent's forms describe: the plain definition serves it."""
    u, labels, _ = inputs()
    loss, plain = Doubled(4, LENGTHS), DCH(4, LENGTHS)
    assert loss.forms() == Silent(4, LENGTHS).forms() == Mixed(4, LENGTHS).forms() == ()
    torch.testing.assert_close(loss(u, labels), 2 * plain(u, labels))
    with pytest.raises(RuntimeError, match="Doubled has no C\\+\\+ form"):
        loss(u, labels, backend="cpp")
    said = Served(4, LENGTHS)
    torch.testing.assert_close(said(u, labels, backend="cpp"), plain(u, labels), rtol=0, atol=0)


class Together(CSQ):
    """A sum of all bodies: centres, triplets, a softmax, and pairs with a bank and without."""

    def __init__(self):
        super().__init__(4, LENGTHS)
        options = {"num_classes": 4, "code_lengths": LENGTHS}
        self.others = torch.nn.ModuleList([DTSH(**options), SHCIR(**options), DCH(**options), make("dhn").eval()])
        self.others[-1].bank.update(torch.arange(15), torch.randn(15, LENGTHS[-1]), torch.arange(15) % 4)

    def expanded(self, v, labels):
        return sum((loss.expanded(v, labels) for loss in self.others), super().expanded(v, labels))

    def forms(self):
        return sum((loss.forms() for loss in self.others), super().forms())


@native
def test_a_loss_is_the_sum_of_its_forms():
    u, labels, _ = inputs()
    loss, u = Together(), u.requires_grad_()
    assert [form.body for form in loss.forms()] == ["center", "triplets", "softmax", "pairs", "pairs"]
    found, expected = (loss(u, labels, backend=backend) for backend in ("cpp", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for weights in torch.eye(3):
        a, b = (torch.autograd.grad(values, u, weights, retain_graph=True)[0] for values in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Named(NestedLoss):
    def __init__(self, form):
        super().__init__(4, LENGTHS)
        self.form = form

    def _apply(self, function, *args, **options):
        given = {field.name: getattr(self.form, field.name) for field in dataclasses.fields(self.form)}
        tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
        self.form = dataclasses.replace(self.form, **{k: function(v) for k, v in tensors.items()})
        return super()._apply(function, *args, **options)

    def forms(self):
        return (self.form,)


def center(function="csq"):
    loss = make("csq")
    return Form("center", function, (1.0,), centers=loss.center_table, ties=loss.tie_table)


def softmax(function="likelihood"):
    return Form("softmax", function, (1.0, 1.0), centers=make("csq").center_table)


@native
@pytest.mark.parametrize(
    ("form", "known"),
    [
        (center("hinge"), "dpn_ternary"),
        (Form("pairs", "hinge"), "cauchy"),
        (Form("triplets", "hinge"), "logistic"),
        (softmax("hinge"), "likelihood"),
    ],
    ids=lambda x: getattr(x, "body", x),
)
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_a_function_that_there_is_not(form, known, backend):
    u, labels, _ = inputs()
    with pytest.raises(ValueError, match=f"function: expected one of .*{known}.*, got 'hinge'"):
        Named(form)(u, labels, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": "lines"}, "body: expected one of 'center', 'pairs'"),
        ({"weigh": "twice"}, "weigh: expected one of 'no', 'rarity', 'halves'"),
        ({"over": "all"}, "over: expected one of 'pairs', 'similar'"),
        ({"penalty": Penalty("square", 1.0)}, "penalty: the body 'pairs' takes absolute, .*, got 'square'"),
        ({"body": "triplets", "penalty": Penalty("cauchy", 1.0)}, "penalty: the body 'triplets' takes sign, got"),
        ({"penalty": Penalty("cauchy", 1.0)}, r"constants: the penalty 'cauchy' needs .*, got \(\)"),
        ({"penalty": Penalty("cauchy", 1.0), "constants": (0.0, 0.9)}, "constants: the penalty 'cauchy' needs"),
        ({"body": "softmax"}, "centers: the body 'softmax' needs"),
        ({"centers": torch.ones(4, 65)}, "centers: the body 'pairs' takes none"),
        ({"body": "center", "centers": torch.ones(4, 65)}, "ties: the body 'center' needs"),
        ({"body": "listwise"}, "scales: the body 'listwise' needs"),
        ({"scales": torch.ones(3)}, "scales: the body 'pairs' takes none"),
        ({"ties": torch.ones(65)}, "ties: the body 'pairs' takes none"),
    ],
    ids=str,
)
def test_wrong_forms(change, message):
    with pytest.raises(ValueError, match=message):
        Form(**{"body": "pairs", "function": "cauchy", **change})


def test_forms_follow_the_loss():
    """They are made at each call: centres that adapt, an epoch that begins."""
    loss = make("dpn")
    (before,) = loss.forms()
    loss.adapt_centers(-before.centers[:, -48:], torch.arange(4))
    (after,) = loss.forms()
    assert torch.equal(split(after.centers, LENGTHS)[-1], -split(before.centers, LENGTHS)[-1])
    loss = make("mdsh", pair_from_epoch=1)
    assert [form.function for form in loss.forms()] == ["likelihood"]
    loss.set_epoch(1)
    assert [form.function for form in loss.forms()] == ["likelihood", "attraction"]


def test_what_a_checkpoint_holds_keeps_its_name():
    assert set(make("csq").state_dict()) == {"_centers", "_tie_centers"}
    assert set(make("mdsh").state_dict()) == {"_centers", "_tie_centers", "bank.u", "bank.labels", "bank.written"}
    assert set(make("dch").state_dict()) == set()


@native
def test_a_bank_in_double_is_refused_where_a_form_reads_it():
    u, labels, index = inputs()
    for epoch in (0, 1):
        loss = make("mdsh", pair_from_epoch=1)
        loss.bank.update(index, u.double(), labels)
        loss.set_epoch(epoch)
        if epoch == 0:
            loss(u, labels, index, backend="cpp")
        else:
            with pytest.raises(RuntimeError, match="the bank is torch\\.float64"):
                loss(u, labels, index, backend="cpp")


def test_a_bank_is_refused_where_the_function_is_one_of_soft_similarity():
    bank = make("dsh").bank
    assert Form("pairs", "likelihood", bank=bank).bank is bank
    with pytest.raises(ValueError, match=r"^bank: pairs of the function 'graded'"):
        Form("pairs", "graded", bank=bank)
