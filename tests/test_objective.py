"""The training step against its definition: full gradients, one backward pass a length, plain autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nhl_fast.core import check as _check
from nhl_fast.head.distillation import distillation_losses
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.head.weighting import dominance_weights
from nhl_fast.losses import REGISTRY, PerLength, build

pytestmark = pytest.mark.numeric

LENGTHS = (4, 8, 16)


def problem(name="csq", n=12, d=10, lengths=LENGTHS, dtype=torch.float64, **options):
    layer = NestedHashLayer(d, lengths).to(dtype)
    torch.nn.init.normal_(layer.hash_layer.weight, std=0.4)
    loss = build(name, num_classes=3, code_lengths=lengths, num_train=None if name == "mdsh" else 40).to(dtype)
    features = torch.randn(n, d, dtype=dtype, requires_grad=True)
    labels, index = torch.arange(n) % 3, torch.arange(n)
    return NestedObjective(layer, loss, **options), features, labels, index


@pytest.mark.parametrize(
    "kind", ["int64", "int32", "uint8", "uint16", "uint64", "float32", "column", "list", "one-hot"]
)
def test_labels_and_index_as_numpy_gives_them(kind):
    objective, features, labels, index = problem("dsh", lengths=8)
    expected = objective(features, labels, index)
    given = {"column": lambda: labels.numpy()[:, None], "list": labels.tolist, "one-hot": lambda: np.eye(3)[labels]}
    given = given[kind]() if kind in given else labels.numpy().astype(kind)
    for rows in (index.numpy(), index.numpy().astype(np.int32), index.tolist()):
        result = objective(features, given, rows)
        assert torch.equal(result.total, expected.total)
    with pytest.raises(TypeError, match="index: expected"):
        objective(features, given, index.numpy() / 2)


def by_definition(objective, features, labels, index, lam):
    """Full per-length gradients of W, then the weighted sum's gradient, each by its own autograd pass."""
    layer, loss = objective.layer, objective.loss
    weight = layer.hash_layer.weight
    u = layer.project(features)
    per_length = loss(u, labels, index) + lam * distillation_losses(u, layer.code_lengths)
    m = len(layer.code_lengths)
    dots = torch.zeros(m, m, dtype=u.dtype)
    # A longer length's outputs hold the shorter ones, so each length's gradient comes from its own prefix alone.
    grads = [torch.autograd.grad(per_length[k], weight, retain_graph=True)[0] for k in range(m)]
    for k, b in enumerate(layer.code_lengths):
        for i in range(k, m):
            dots[k, i] = (grads[i][:b] * grads[k][:b]).sum()
    weights = dominance_weights(dots)
    total = (weights * per_length).sum()
    return total, weights, dots, torch.autograd.grad(total, [features, weight, layer.hash_layer.bias])


@pytest.mark.parametrize("shape", [(12, 10), (3, 40), (1, 7), (33, 7)], ids=str)
@pytest.mark.parametrize("name", list(REGISTRY))
def test_step_equals_its_definition(name, shape):
    objective, features, labels, index = problem(name, *shape[:1], d=shape[1], distill_weight=0.7)
    result = objective(features, labels, index)
    result.total.backward()
    total, weights, dots, grads = by_definition(objective, features, labels, index, 0.7)
    torch.testing.assert_close(result.total, total)
    torch.testing.assert_close(result.dots, dots)
    torch.testing.assert_close(result.weights, weights)
    layer = objective.layer.hash_layer
    for ours, expected in zip((features.grad, layer.weight.grad, layer.bias.grad), grads):
        torch.testing.assert_close(ours, expected)


def test_result_is_detached_except_the_total():
    objective, features, labels, index = problem()
    result = objective(features, labels, index)
    assert result.total.requires_grad
    assert not any(t.requires_grad for t in result[1:])
    u = objective.layer.project(features).detach()
    torch.testing.assert_close(result.losses, objective.loss(u, labels))
    torch.testing.assert_close(result.distill, distillation_losses(u, LENGTHS))
    torch.testing.assert_close(result.total.detach(), (result.weights * (result.losses + result.distill)).sum())


@pytest.mark.parametrize("weighting", ["uniform", (1.0, 0.5, 2.0), torch.tensor([0.0, 1.0, 3.0])], ids=str)
def test_fixed_weights(weighting):
    objective, features, labels, index = problem(weighting=weighting, distill_weight=0)
    result = objective(features, labels, index)
    expected = torch.ones(3) if isinstance(weighting, str) else torch.as_tensor(weighting)
    torch.testing.assert_close(result.weights, expected.double())
    assert result.dots is None
    result.total.backward()
    u = objective.layer.project(features)
    direct = (expected.double() * objective.loss(u, labels)).sum()
    torch.testing.assert_close(features.grad, torch.autograd.grad(direct, features)[0])
    assert not result.distill.any()


def test_each_loss_is_evaluated_once_and_the_backbone_is_walked_once():
    calls, passes = [], []
    backbone = torch.nn.Linear(6, 10)
    layer = NestedHashLayer(10, LENGTHS)

    def counted(u, labels):
        calls.append(u.shape[1])
        return u.square().mean()

    objective = NestedObjective(layer, PerLength([counted] * 3, LENGTHS))
    backbone.register_full_backward_hook(lambda *_: passes.append(1))
    objective(backbone(torch.randn(5, 6, requires_grad=True)), torch.zeros(5, dtype=torch.long)).total.backward()
    assert calls == [4, 8, 16]
    assert len(passes) == 1


def test_trainable_parameters_of_a_user_loss_get_the_weighted_gradient():
    heads = [torch.nn.Linear(b, 3).double() for b in LENGTHS]
    functions = [torch.nn.Module() for _ in LENGTHS]

    class Classify(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, u, y):
            return F.cross_entropy(self.head(u), y)

    functions = [Classify(h) for h in heads]
    layer = NestedHashLayer(10, LENGTHS).double()
    objective = NestedObjective(layer, PerLength(functions, LENGTHS, num_classes=3).double())
    features, labels = torch.randn(9, 10, dtype=torch.float64, requires_grad=True), torch.arange(9) % 3
    result = objective(features, labels)
    result.total.backward()
    for k, (head, b) in enumerate(zip(heads, LENGTHS)):
        value = F.cross_entropy(head(layer.project(features)[:, :b].detach()), labels)
        expected = result.weights[k] * torch.autograd.grad(value, head.weight)[0]
        torch.testing.assert_close(head.weight.grad, expected)


def test_a_loss_that_does_not_depend_on_the_outputs():
    layer = NestedHashLayer(10, LENGTHS)
    objective = NestedObjective(layer, PerLength([lambda u, y: torch.tensor(1.0)] * 3, LENGTHS), distill_weight=0)
    features = torch.randn(4, 10, requires_grad=True)
    objective(features, torch.zeros(4, dtype=torch.long)).total.backward()
    assert not features.grad.any()


class NoHostSync(TorchDispatchMode):
    """Forbids what would wait for a CUDA device, or copy a number to it."""

    FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, function
        if name.startswith("index"):
            indices = [i for a in args if isinstance(a, (list, tuple)) for i in a if isinstance(i, torch.Tensor)]
            assert not any(i.dtype == torch.bool for i in indices), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("labels_as", ["ids", "multi-hot"])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_no_host_sync_in_the_step(name, labels_as, monkeypatch):
    objective, features, labels, index = problem(name, dtype=torch.float32, backend="reference")
    if labels_as == "multi-hot":
        labels = F.one_hot(labels, 3)
    if name == "mdsh":
        objective.loss = build("mdsh", num_classes=3, code_lengths=LENGTHS, num_train=40)
    objective(features, labels, index)  # a bank takes the form of its first labels
    monkeypatch.setattr(_check, "values", lambda condition, message: None)  # asynchronous on a CUDA device
    # The check of one_hot reads a number back on the CPU alone.
    monkeypatch.setattr(F, "one_hot", lambda t, c: torch.eye(c, dtype=torch.long)[t])
    with NoHostSync():
        objective(features, labels, index).total.backward()


def test_a_single_length_has_nothing_to_weigh_or_distil():
    objective, features, labels, index = problem(lengths=(8,))
    result = objective(features, labels, index)
    assert result.dots is None
    assert result.weights.tolist() == [1.0]
    assert result.distill.tolist() == [0.0]
    torch.testing.assert_close(result.total.detach(), result.losses[0])


def test_gradient_accumulation_adds_up():
    objective, features, labels, index = problem()
    weight = objective.layer.hash_layer.weight
    first = torch.autograd.grad(objective(features[:6], labels[:6], index[:6]).total, weight)[0]
    second = torch.autograd.grad(objective(features[6:], labels[6:], index[6:]).total, weight)[0]
    for part in (slice(0, 6), slice(6, 12)):
        (objective(features[part], labels[part], index[part]).total / 2).backward()
    torch.testing.assert_close(weight.grad, (first + second) / 2)


def test_frozen_layer_and_frozen_features():
    objective, features, labels, index = problem()
    objective.layer.requires_grad_(False)
    objective(features, labels, index).total.backward()
    assert features.grad.abs().sum() > 0
    assert objective.layer.hash_layer.weight.grad is None
    objective.layer.requires_grad_(True)
    objective(features.detach(), labels, index).total.backward()
    assert objective.layer.hash_layer.weight.grad.abs().sum() > 0
    objective.layer.requires_grad_(False)
    assert not objective(features.detach(), labels, index).total.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_gives_the_same_numbers_without_a_graph(mode):
    objective, features, labels, index = problem()
    expected = objective(features, labels, index)
    with mode():
        result = objective(features, labels, index)
    assert not result.total.requires_grad
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other.detach())


@pytest.mark.parametrize("name", list(REGISTRY))
def test_autocast_changes_nothing_in_the_head(name):
    objective, features, labels, index = problem(name, dtype=torch.float32)
    expected = objective(features, labels, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = objective(features, labels, index)
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_autocast_backbone_and_grad_scaler():
    torch.manual_seed(3)
    backbone = torch.nn.Linear(6, 10)
    objective, _, labels, index = problem(dtype=torch.float32)
    x = torch.randn(12, 6)
    objective(backbone(x), labels, index).total.backward()
    expected = backbone.weight.grad.clone()
    for dtype in (torch.bfloat16, torch.float16):
        backbone.zero_grad()
        optimizer = torch.optim.SGD([*backbone.parameters()], lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with torch.autocast("cpu", dtype=dtype):
            features = backbone(x)
            assert features.dtype == dtype
            total = objective(features, labels, index).total
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.testing.assert_close(backbone.weight.grad, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


def test_scaled_total_scales_the_gradient():
    objective, features, labels, index = problem()
    (g1,) = torch.autograd.grad(objective(features, labels, index).total, features)
    (g2,) = torch.autograd.grad(-3 * objective(features, labels, index).total, features)
    torch.testing.assert_close(g2, -3 * g1)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    objective, features, labels, index = problem(name)
    expected = objective(features, labels, index)
    (grad,) = torch.autograd.grad(expected.total, features)

    def step(features, labels, index):
        return objective(features, labels, index)

    result = torch.compile(step, fullgraph=True, backend="aot_eager")(features, labels, index)
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other)
    torch.testing.assert_close(torch.autograd.grad(result.total, features)[0], grad)


@pytest.mark.parametrize("lengths", [(1,), (5, 12, 48, 100), (3, 1024)], ids=str)
def test_odd_lengths_and_one_row(lengths):
    for name in REGISTRY:
        objective, features, labels, index = problem(name, 1, 7, lengths, torch.float32)
        result = objective(features, labels, index)
        result.total.backward()
        assert torch.isfinite(features.grad).all()
        assert result.weights.sum().item() == pytest.approx(len(lengths))


def test_multi_hot_labels_give_what_ids_give():
    for name in REGISTRY:
        torch.manual_seed(1)
        objective, features, labels, index = problem(name)
        a = objective(features, labels, index)
        b = objective(features, F.one_hot(labels, 3), index)
        torch.testing.assert_close(a.total, b.total)


def bad(change):
    objective, features, labels, index = problem()
    return lambda: change(objective, features, labels, index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad(lambda o, f, y, i: o(f * float("nan"), y, i)), "NaN"),
        (bad(lambda o, f, y, i: o(torch.where(f > 0, torch.inf, f), y, i)), "infinity"),
        (bad(lambda o, f, y, i: o(f[:0], y[:0], i[:0])), "at least one row"),
        (bad(lambda o, f, y, i: o(f[:, :4], y, i)), "features: expected"),
        (bad(lambda o, f, y, i: o(f, y[:4], i)), "labels"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, F.cross_entropy)), "PerLength"),
        (bad(lambda o, f, y, i: NestedObjective(torch.nn.Linear(3, 4), o.loss)), "NestedHashLayer"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, build("csq", num_classes=3))), "code lengths"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, o.loss, weighting="fair")), "weighting"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, o.loss, weighting=(1, 2))), "weighting"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, o.loss, distill_weight=-1)), "distill_weight"),
        (bad(lambda o, f, y, i: NestedObjective(o.layer, o.loss, distill_weight="1")), "distill_weight"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csq", "dhn", "dtsh", "mdsh"])
def test_compiled_by_inductor(name):
    torch._dynamo.reset()
    objective, features, labels, index = problem(name, dtype=torch.float32)
    expected = objective(features, labels, index)
    (grad,) = torch.autograd.grad(expected.total, features)
    result = torch.compile(objective, fullgraph=True)(features, labels, index)
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(result.total, features)[0], grad, rtol=1e-4, atol=1e-5)
