"""The C++ training step as part of the package: what is taken, what is refused, dtypes, layouts, compilation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL
from step_cases import small

from nhl_fast.core import backend as backends
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import REGISTRY, PerLength

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["csq", "dsh"])
def test_half_precision_features_and_weights(name):
    layer, loss, features, labels, index = small(name)
    for dtype, weights in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        ours = copy.deepcopy(layer).to(weights), copy.deepcopy(loss)
        theirs = copy.deepcopy(ours)
        found = []
        for (head, pair), backend in ((ours, "cpp"), (theirs, "reference")):
            x = features.to(dtype).requires_grad_()
            result = NestedObjective(head, pair, backend=backend)(x, labels, index)
            result.total.backward()
            found.append((result.total, x.grad, head.hash_layer.weight.grad, head.hash_layer.bias.grad))
        assert found[0][1].dtype == dtype
        assert found[0][2].dtype == weights
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=2e-2 if a.dtype == torch.bfloat16 else 2e-3, atol=1e-4)


def test_strided_features_and_outputs():
    layer, loss, features, labels, _ = small()
    objective = NestedObjective(layer, loss, backend="cpp")
    expected = objective(features, labels)
    for strided in (features.T.contiguous().T, features.repeat_interleave(2, 1)[:, ::2]):
        assert torch.equal(objective(strided, labels).total, expected.total)
    u = torch.randn(20, 64)
    expected = loss(u, labels, backend="cpp")
    assert torch.equal(loss(u.T.contiguous().T, labels, backend="cpp"), expected)
    assert torch.equal(loss(u.repeat(1, 2)[:, 64:], labels, backend="cpp"), expected)


@pytest.mark.numeric
@pytest.mark.parametrize("frozen", ["features", "layer", "both", "weight"])
def test_frozen_parts(frozen):
    layer, loss, features, labels, _ = small()
    parameters = {"features": features, "weight": layer.hash_layer.weight, "bias": layer.hash_layer.bias}
    still = {"both": parameters, "layer": ("weight", "bias")}.get(frozen, (frozen,))
    for key, tensor in parameters.items():
        tensor.requires_grad_(key not in still)
    totals = [NestedObjective(layer, loss, backend=b)(features, labels).total for b in ("cpp", "reference")]
    assert totals[0].requires_grad == (frozen != "both")
    moving = [tensor for key, tensor in parameters.items() if key not in still]
    if moving:
        for a, b in zip(*(torch.autograd.grad(total, moving) for total in totals)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_a_graph(mode):
    for name in ("csq", "dhn"):
        layer, loss, features, labels, index = small(name)
        objective = NestedObjective(layer, loss, backend="cpp")
        expected = objective(features, labels, index)
        with mode():
            result = objective(features, labels, index)
        assert not result.total.requires_grad
        for a, b in zip(result, expected):
            assert torch.equal(a, b.detach())


def test_gradient_of_changed_weights_is_refused():
    layer, loss, features, labels, _ = small()
    result = NestedObjective(layer, loss, backend="cpp")(features.requires_grad_(), labels)
    with torch.no_grad():
        layer.hash_layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.total.backward()


def test_bad_input_is_refused_as_by_the_reference():
    layer, loss, features, labels, index = small("dhn")
    for change in (
        lambda f, y, i: (f[:0], y[:0], i[:0]),
        lambda f, y, i: (f[:, :4], y, i),
        lambda f, y, i: (f * float("inf"), y, i),
        lambda f, y, i: (f, y[:4], i),
        lambda f, y, i: (f, y + 5, i),
        lambda f, y, i: (f, y.float() + 0.5, i),
        lambda f, y, i: (f, y, i + 500),
        lambda f, y, i: (f, y, None),
    ):
        errors = []
        for backend in ("cpp", "reference"):
            with pytest.raises((TypeError, ValueError)) as caught:
                NestedObjective(layer, copy.deepcopy(loss), backend=backend)(*change(features, labels, index))
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


def used(monkeypatch):
    """Names of the step's operators that are called."""
    calls, combine = [], torch.ops.nhl_fast.step_combine

    def spy(*arguments):
        calls.append(arguments)
        return combine(*arguments)

    from nhl_fast.steps import native as step

    class Spy:
        def __getattr__(self, name):
            return spy if name == "step_combine" else getattr(torch.ops.nhl_fast, name)

    monkeypatch.setattr(step, "ops", Spy())
    return calls


def test_auto_takes_it_for_float32_on_the_cpu(monkeypatch):
    calls = used(monkeypatch)
    layer, loss, features, labels, _ = small()
    NestedObjective(layer, loss)(features, labels)
    NestedObjective(layer, loss)(features.half(), labels)
    assert len(calls) == 2
    NestedObjective(layer, loss, backend="reference")(features, labels)
    NestedObjective(copy.deepcopy(layer).double(), copy.deepcopy(loss).double())(features.double(), labels)
    NestedObjective(layer, loss, weighting=lambda dots, values: torch.ones(3))(features, labels)
    NestedObjective(layer, loss, teacher="longest")(features, labels)
    assert len(calls) == 2


@pytest.mark.numeric
def test_auto_takes_it_for_other_losses_too(monkeypatch):
    class Classify(torch.nn.Module):
        def __init__(self, bits):
            super().__init__()
            self.head = torch.nn.Linear(bits, 5)

        def forward(self, u, y):
            return F.cross_entropy(self.head(u), y)

    layer, _, features, labels, _ = small()
    loss = PerLength([Classify(b) for b in (8, 20, 64)], (8, 20, 64), num_classes=5)
    parameters, calls = [layer.hash_layer.weight, *loss.parameters()], used(monkeypatch)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            ours = NestedObjective(layer, loss)(features, labels)
            theirs = NestedObjective(layer, loss, backend="reference")(features, labels)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        if mode is torch.enable_grad:
            for a, b in zip(*(torch.autograd.grad(r.total, parameters) for r in (ours, theirs))):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(calls) == 3


def test_named_and_not_able_raises():
    layer, loss, features, labels, _ = small()

    class Own(NestedHashLayer):
        def project(self, x, backend="auto"):
            return super().project(x, backend).tanh()

    user = PerLength([lambda u, y: u.square().mean()] * 3, (8, 20, 64))
    double = copy.deepcopy(layer).double(), copy.deepcopy(loss).double()
    for objective, x, message in (
        (NestedObjective(layer, user, backend="cpp"), features, "PerLength has no C"),
        (NestedObjective(Own(33, (8, 20, 64)), loss, backend="cpp"), features, "Own has its own projection"),
        (NestedObjective(*double, backend="cpp"), features.double(), "float64"),
        (NestedObjective(layer, loss, backend="cpp", teacher="longest"), features, "teacher"),
        (NestedObjective(layer, loss, backend="cpp", weighting=lambda d, v: v), features, "callable"),
    ):
        with pytest.raises(RuntimeError, match=message):
            objective(x, labels)
    with pytest.raises(RuntimeError, match="float64"):
        loss(torch.randn(20, 64).double(), labels, backend="cpp")
    # "auto" serves them all the same.
    NestedObjective(Own(33, (8, 20, 64)), loss)(features, labels).total.backward()


def test_without_the_library(monkeypatch):
    missing = backends.Backend("cpp", False, "it has not been built")
    monkeypatch.setattr(
        backends, "probe", lambda name: missing if name == "cpp" else backends.Backend(name, True, "")
    )
    layer, loss, features, labels, _ = small()
    expected = NestedObjective(layer, loss, backend="reference")(features, labels)
    assert torch.equal(NestedObjective(layer, loss)(features, labels).total, expected.total)
    with pytest.raises(RuntimeError, match="'cpp' is not available for NestedObjective: it has not been built"):
        NestedObjective(layer, loss, backend="cpp")(features, labels)
    with pytest.raises(RuntimeError, match="'cpp' is not available for CSQ"):
        loss(torch.randn(20, 64), labels, backend="cpp")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    layer, loss, features, labels, index = small(name)
    objective, plain = NestedObjective(layer, loss, backend="cpp"), copy.deepcopy(loss)
    features.requires_grad_()
    expected = NestedObjective(layer, plain, backend="cpp")(features, labels, index)
    (grad,) = torch.autograd.grad(expected.total, features)
    result = torch.compile(objective, fullgraph=True, backend="aot_eager")(features, labels, index)
    for a, b in zip(result, expected):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(result.total, features)[0], grad, rtol=1e-6, atol=1e-7)


def test_auto_compiles_the_reference():
    torch._dynamo.reset()
    layer, loss, features, labels, _ = small()
    graphs = []

    def look(graph, inputs):
        graphs.append(graph.code)
        return graph

    result = torch.compile(NestedObjective(layer, loss), fullgraph=True, backend=look)(features, labels)
    assert not any("step_combine" in code for code in graphs)
    torch.testing.assert_close(result.total, NestedObjective(layer, loss)(features, labels).total)
