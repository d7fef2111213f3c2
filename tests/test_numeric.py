"""The bounds of `numeric` are wide enough for any right float32 computation, and too narrow for a mistake."""

import copy
import types

import pytest
import torch
from numeric import MARGIN, Expected, Rounded, expected
from step_cases import make, run

from nhl_fast.head import step as steps
from nhl_fast.losses import REGISTRY

LENGTHS = (8, 20, 64)
GRADIENTS = {"dF", "dW", "dc"}


def problem(name):
    return make(name, 40, 33, LENGTHS)


def reference(problem):
    return run(problem, "reference", torch.float64)


def truth(problem):
    return expected(run, problem, "reference", torch.float64, 1.0)


def in_format(x, dtype):
    return x.to(dtype).to(x.dtype)


def tf32(x):
    """The nearest numbers of 11 bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def accumulated(x, w, dtype):
    """x w^T, each sum in `dtype`."""
    total = torch.zeros(len(x), len(w), dtype=dtype)
    for k in range(x.shape[1]):
        total = (total.double() + x[:, k, None] * w[:, k]).to(dtype)
    return total.double()


def projected(problem, change):
    """The reference in float64, whose projection is change(x, w, b)."""
    layer = copy.deepcopy(problem[0])
    layer.project = types.MethodType(
        lambda self, x, backend: change(x, self.hash_layer.weight, self.hash_layer.bias), layer
    )
    return reference((layer, *problem[1:]))


def with_loss(problem, change):
    """The reference in float64, whose loss is change(expanded, v, labels)."""
    loss = copy.deepcopy(problem[1])
    plain = loss.expanded
    loss.expanded = types.MethodType(lambda self, v, labels: change(plain.__func__.__get__(self), v, labels), loss)
    return reference((problem[0], loss, *problem[2:]))


@pytest.mark.parametrize("name", list(REGISTRY))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "tf32"], ids=str)
def test_low_precision_in_the_projection_does_not_pass(name, dtype):
    if dtype == "tf32":
        found = projected(problem(name), lambda x, w, b: tf32(x) @ tf32(w).T + b)
    else:
        # Straight through: the gradient is the exact product's, the value has its sums in the format.
        found = projected(
            problem(name),
            lambda x, w, b: x @ w.T + b + (accumulated(x.detach(), w.detach(), dtype) - x.detach() @ w.detach().T),
        )
    assert truth(problem(name)).wrong(found).keys() >= GRADIENTS


@pytest.mark.parametrize("name", list(REGISTRY))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_in_values_gradients_and_dots_does_not_pass(name, dtype, monkeypatch):
    plain, right = steps.per_length_gradients, truth(problem(name))  # right before anything is changed

    def rounded(function, v):
        values, deltas = plain(function, v)
        scale = deltas.abs().max()  # so that float16 has no subnormal numbers here
        return in_format(values, dtype), in_format(deltas / scale, dtype) * scale

    monkeypatch.setattr(steps, "per_length_gradients", rounded)
    assert right.wrong(reference(problem(name))).keys() >= GRADIENTS | {"losses", "dots"}
    monkeypatch.undo()

    def dots(padded, features, lengths):
        scale = padded.abs().max()
        left = (padded / scale).flatten(1)
        right = (features @ features.T @ (padded / scale)).flatten(1)
        return accumulated(left, right, dtype).triu() * scale**2

    monkeypatch.setattr(steps, "dominance_dots", dots)
    assert "dots" in right.wrong(reference(problem(name)))


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_term_of_one_product_does_not_go_missing(name):
    def change(x, w, b, factor):
        lost = torch.zeros(len(x), len(w), dtype=x.dtype)
        lost[0, 0] = factor
        return x @ w.T + b - lost * (x[0, 0] * w[0, 0])

    for factor in (1, 2):  # left out, and with the wrong sign
        found = projected(problem(name), lambda x, w, b, factor=factor: change(x, w, b, factor))
        assert truth(problem(name)).wrong(found).keys() >= GRADIENTS, factor


@pytest.mark.parametrize("name", list(REGISTRY))
def test_one_element_of_a_gradient_is_neither_left_out_nor_turned(name, monkeypatch):
    plain = steps.per_length_gradients
    for factor in (0.0, -1.0):

        def changed(function, v, factor=factor):
            values, deltas = plain(function, v)
            typical = (deltas.abs() - deltas.square().mean().sqrt()).abs().argmin()
            deltas.view(-1)[typical] *= factor  # of the size of the others
            return values, deltas

        monkeypatch.setattr(steps, "per_length_gradients", changed)
        found = reference(problem(name))
        monkeypatch.undo()
        assert truth(problem(name)).wrong(found).keys() >= GRADIENTS, factor


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_row_of_the_batch_does_not_go_missing(name):
    found = with_loss(problem(name), lambda f, v, y: f(v[1:], y[1:]))
    assert truth(problem(name)).wrong(found).keys() >= GRADIENTS | {"losses"}


@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh", "mdsh"])
def test_a_row_of_the_bank_does_not_go_missing(name):
    whole, less = problem(name), problem(name)
    batch = set(whole[4].tolist())
    row = next(j for j in range(len(less[1].bank.written)) if less[1].bank.written[j] and j not in batch)
    less[1].bank.written[row] = False
    assert truth(whole).wrong(reference(less)).keys() >= GRADIENTS | {"losses"}


PENALTIES = dict.fromkeys(("csq", "dch", "dtsh", "mdsh", "shcir"), "quantization")
PENALTIES |= {"dsh": "alpha", "dhn": "alpha", "dbdh": "alpha", "lcdsh": "eta"}


@pytest.mark.parametrize(("name", "option"), PENALTIES.items())
def test_a_penalty_of_the_other_sign_does_not_pass(name, option):
    turned = problem(name)
    setattr(turned[1], option, -getattr(turned[1], option))
    assert truth(problem(name)).wrong(reference(turned)).keys() >= GRADIENTS | {"losses", "total"}


@pytest.mark.numeric
@pytest.mark.parametrize("name", list(REGISTRY))
def test_bounds_are_a_few_float32_roundings(name):
    """No bound is wider than 1e-5 of its result: a float16's last place is 100 times as much."""
    right = truth(problem(name))
    for key in right.truth.keys() - {"distill"}:
        assert right.bound(key) <= 1e-5 * right.truth[key].norm(), key
    assert right.bound("distill") <= 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("name", list(REGISTRY))
def test_the_reference_in_float32_passes(name):
    truth(problem(name)).check(run(problem(name), "reference"))


def test_the_bound_does_not_depend_on_the_run():
    a, b = (Expected(lambda: reference(problem("dhn"))) for _ in range(2))
    assert a.spread == b.spread


@pytest.mark.numeric
@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_sums_and_products_of_float32_keep_the_rules(count):
    """Sums from the first to the last term, the worst of the usual orders."""
    x, y = torch.rand(count), torch.randn(count)
    for terms in (x, y, x * y):
        right = Expected(lambda terms=terms: {"sum": terms.double().sum()[None]})
        total = torch.zeros(())
        for t in terms:
            total = total + t
        right.check({"sum": total[None]})
        assert right.bound("sum") <= MARGIN * 2**-24 * (count**0.5 + 1) * terms.abs().sum() + 1e-12
    right = Expected(lambda: {"dot": x.double()[None] @ y.double()[:, None]})
    right.check({"dot": x[None] @ y[:, None]})


def test_every_operation_has_its_rule():
    x = torch.rand(3, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="how does erfinv round"), Rounded(0):
        x.erfinv()


def test_whole_numbers_do_not_round():
    """So that a sum of +-1 that is 0, a tie of centres, stays one."""
    x = torch.randint(-1, 2, (5, 7)).double()
    with Rounded(0):
        found, rounded = (x @ x.T, (x + 1).sum(0), 2 * x - x), x / 3
    for a, b in zip(found, (x @ x.T, (x + 1).sum(0), x)):
        assert torch.equal(a, b)
    assert not torch.equal(rounded, x / 3)
