"""The fused training step against the reference in float64: numbers, gradients, launches, compilation."""

import pytest
import torch
import torch.nn.functional as F
from launches import launches
from numeric import MARGIN, Expected

from nhl_fast.core.backend import backends
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import CSQ, DPN, REGISTRY, Bank, PerLength, build
from nhl_fast.steps.fused import step

POINTWISE = ("csq", "dpn")
OTHERS = tuple(name for name in REGISTRY if name not in POINTWISE)
NAMES = ("total", "losses", "distill", "weights", "dots")


def make(name, n, d, lengths, device, dtype=torch.float32, multi=False, loss_options=None, **options):
    torch.manual_seed(0)
    classes = 5
    layer = NestedHashLayer(d, lengths, device=device)
    torch.nn.init.normal_(layer.hash_layer.weight, std=d**-0.5)
    torch.nn.init.normal_(layer.hash_layer.bias, std=0.1)
    train = None if name == "mdsh" else n + 7
    settings = {"num_train": train, **(loss_options or {})}
    loss = build(name, num_classes=classes, code_lengths=lengths, **settings).to(device)
    if hasattr(loss, "bank") and loss.bank is not None:  # a few rows stay unwritten
        rows = torch.arange(n + 3, device=device)
        loss.bank.update(rows, torch.randn(n + 3, lengths[-1], device=device), rows % classes)
    features = torch.randn(n, d, device=device).to(dtype)
    labels = torch.randint(0, classes, (n,), device=device)
    if multi:
        labels = (torch.rand(n, classes, device=device) < 0.4).to(torch.int64)
    return layer, loss, features, labels, options


def run(problem, backend, dtype=None, scale=1.0):
    """Everything a step gives, as one dict of tensors."""
    layer, loss, features, labels, options = problem
    if dtype is not None:
        import copy

        layer, loss, features = copy.deepcopy(layer).to(dtype), copy.deepcopy(loss).to(dtype), features.to(dtype)
    features = features.detach().requires_grad_()
    layer.zero_grad()
    index = torch.arange(len(labels), device=labels.device)
    result = NestedObjective(layer, loss, backend=backend, **options)(features, labels, index)
    (result.total * scale).backward()
    found = dict(zip(NAMES, (t.detach() if t is not None else torch.zeros(1) for t in result)))
    found["dF"], found["dW"] = features.grad, layer.hash_layer.weight.grad
    found["dc"] = layer.hash_layer.bias.grad
    return {key: value.clone() for key, value in found.items()}


def check(problem):
    """The fused step is the reference in float64 but for float32's own errors (see `numeric`).

    A lone row's distillation is 0 by cancellation. The kernels compute the Gram matrix twice, in tiles of different
    sizes, so that its roundings do not cancel as the reference's do: ten times the error, still 1e-4 of the gradient.
    """
    layer, _, features, *_ = problem
    fused = run(problem, "triton")
    for key, like in {"dF": features, "dW": layer.hash_layer.weight, "dc": layer.hash_layer.bias}.items():
        assert fused[key].dtype == like.dtype, key
    assert all(value.dtype == torch.float32 for key, value in fused.items() if key not in ("dF", "dW", "dc"))
    margin = 10 * MARGIN if len(features) == 1 else MARGIN
    return Expected(lambda: run(problem, "reference", torch.float64)).check(fused, margin=margin)


SHAPES = [(1, 7), (3, 40), (33, 7), (12, 100), (64, 300)]


@pytest.mark.parametrize("distill", [0.0, 0.7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_step_equals_the_reference(name, shape, distill, device):
    check(make(name, *shape, (5, 12, 48, 100), device, distill_weight=distill))


@pytest.mark.parametrize("shape", [(1, 7), (33, 40)], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_step_of_the_other_losses(name, shape, device):
    check(make(name, *shape, (5, 12, 48), device, distill_weight=0.7))


@pytest.mark.parametrize("lengths", [(1,), (8, 16, 32, 64, 128), (3, 1024)], ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_lengths(name, lengths, device):
    check(make(name, 6, 20, lengths, device))
    check(make(name, 6, 300, lengths, device))


@pytest.mark.parametrize("d", [7, 300])
@pytest.mark.parametrize("name", POINTWISE)
def test_multi_hot_labels(name, d, device):
    problem = make(name, 20, d, (5, 12, 48), device, multi=True)
    assert (problem[3].sum(1) == 0).any()  # a row without a class takes the tie centre
    check(problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 7), (20, 300)], ids=str)
def test_half_precision_features(shape, dtype, device):
    fused = check(make("csq", *shape, (5, 12, 48), device, dtype=dtype))
    assert fused["dF"].dtype == dtype
    assert fused["dW"].dtype == torch.float32


@pytest.mark.parametrize("weighting", ["uniform", (1.0, 0.5, 2.0)], ids=str)
@pytest.mark.parametrize("d", [7, 300])
def test_fixed_weights(weighting, d, device):
    problem = make("csq", 20, d, (5, 12, 48), device, weighting=weighting)
    fused = check(problem)
    expected = torch.ones(3) if weighting == "uniform" else torch.tensor(weighting)
    torch.testing.assert_close(fused["weights"].cpu(), expected, rtol=0, atol=0)
    layer, loss, features, labels, options = problem
    assert NestedObjective(layer, loss, backend="triton", **options)(features, labels).dots is None


def test_a_large_batch_goes_in_slices(device):
    lengths, n = (4, 12), 1100
    for weighting in ("dominance", "uniform"):
        check(make("dpn", n, 9, lengths, device, weighting=weighting, distill_weight=0))


def test_scaled_total_and_other_memory_layouts(device):
    layer, loss, features, labels, _ = problem = make("csq", 20, 40, (5, 12, 48), device)
    expected = run(problem, "triton")
    scaled = run(problem, "triton", scale=-3.0)
    for key in ("dF", "dW", "dc"):
        torch.testing.assert_close(scaled[key], -3 * expected[key])
    strided = torch.empty(40, 20, device=device).T.copy_(features)
    doubled = torch.empty(20, 80, device=device)[:, ::2].copy_(features)
    spread = torch.empty(20, 2, dtype=torch.int64, device=device)[:, 0].copy_(labels)
    assert not any(t.is_contiguous() for t in (strided, doubled, spread))
    for x in (strided, doubled):
        other = run((layer, loss, x, spread, {}), "triton")
        for key, value in other.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("d", [7, 300])
@pytest.mark.parametrize("what", ["features", "layer", "bias only", "nothing"])
def test_partly_frozen(what, d, device):
    layer, loss, features, labels, _ = make("dpn", 10, d, (5, 12), device)
    want = {}
    for backend in ("reference", "triton"):
        layer.zero_grad()
        layer.requires_grad_(what == "layer")
        layer.hash_layer.bias.requires_grad_(what in ("layer", "bias only"))
        x = features.clone().requires_grad_(what == "features")
        result = NestedObjective(layer, loss, backend=backend)(x, labels)
        assert not any(t.requires_grad for t in result[1:])
        assert result.total.requires_grad == (what != "nothing")
        if what != "nothing":
            result.total.backward()
        want[backend] = (x.grad, layer.hash_layer.weight.grad, layer.hash_layer.bias.grad)
    for ours, expected in zip(want["triton"], want["reference"]):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_a_graph(mode, device):
    layer, loss, features, labels, _ = make("csq", 10, 40, (5, 12), device)
    objective = NestedObjective(layer, loss, backend="triton")
    expected = objective(features, labels)
    with mode():
        result = objective(features, labels)
    assert not result.total.requires_grad
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other.detach(), rtol=0, atol=0)


def test_the_same_bits_every_time(device):
    problem = make("csq", 40, 300, (5, 12, 48), device)
    first, second = run(problem, "triton"), run(problem, "triton")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


# A step's launches with class ids where the dots come from the Gram matrix; from the gradients it is two more.
# What bounds the outputs of HashNet and IDHN before the pairs, with its slope, and what adds up the gradients of what
# GreedyHash and HyP2 learn, is PyTorch's own.
BUDGET = {
    "csq": 5,
    "dpn": 5,
    "shcir": 6,
    "mdsh": 6,
    "orthocos": 6,
    "orthoarc": 6,
    "dtsh": 7,
    "lcdsh": 7,
    "greedyhash": 17,
    "hyp2": 25,
    "hashnet": 17,
    "idhn": 17,
}
BANK_BUDGET = 8


@pytest.mark.parametrize("distill", [0.0, 1.0])
@pytest.mark.parametrize("d", [7, 300])
@pytest.mark.parametrize(
    ("name", "loss_options"),
    [*((name, {}) for name in REGISTRY), ("mdsh", {"num_train": 27}), ("dhn", {"balance": True})],
    ids=str,
)
def test_launch_budget(name, loss_options, d, distill, device, monkeypatch):
    """Forward, losses, distillation, weights and all gradients keep to the budget, and nothing waits."""
    options = {"loss_options": loss_options, "distill_weight": distill}
    layer, loss, features, labels, options = make(name, 20, d, (5, 12, 48), device, **options)
    budget = BUDGET.get(name, BANK_BUDGET) if not loss_options else BANK_BUDGET + 1
    budget += (2 if d == 7 else 0) - (0 if distill else 2)
    if device.type == "cpu":  # there the values are looked at on the host, before the kernels that assert them
        monkeypatch.setattr(step, "check_on_host", lambda tensor: False)
        monkeypatch.setattr(Bank, "check_index", lambda self, index, rows, values=True: None)
    objective = NestedObjective(layer, loss, backend="triton", **options)
    index = torch.arange(20, device=device)
    features.requires_grad_()
    total = []
    forward = launches(lambda: total.append(objective(features, labels, index).total))
    one = torch.ones_like(total[0])
    backward = launches(lambda: total[0].backward(one))
    both = forward + backward
    assert len(both) <= budget, both
    assert not any(name in both for name in ("aten::item", "aten::_local_scalar_dense"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", REGISTRY)
def test_cuda_graph_and_no_synchronization(name, device):
    layer, loss, features, labels, _ = make(name, 64, 300, (8, 16, 32), device)
    objective = NestedObjective(layer, loss, backend="triton")
    features.requires_grad_()
    parameters = (features, *layer.parameters())
    index = torch.arange(64, device=device)

    def whole():
        total = objective(features, labels, index).total
        return total, *torch.autograd.grad(total, parameters)

    # Detached: what keeps a graph of the default stream alive cannot be captured on another.
    expected = [t.detach().clone() for t in whole()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        whole()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole()
    with torch.no_grad():
        features.copy_(features.flip(0))
        labels.copy_(labels.flip(0))
    graph.replay()
    torch.testing.assert_close(captured[0], expected[0])
    torch.testing.assert_close(captured[1].flip(0), expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("d", [7, 300])
@pytest.mark.parametrize("name", POINTWISE)
def test_compiles_in_one_graph(name, d, device):
    torch._dynamo.reset()
    layer, loss, features, labels, _ = make(name, 12, d, (5, 12), device)
    objective = NestedObjective(layer, loss, backend="triton")
    features.requires_grad_()
    expected = objective(features, labels)
    (grad,) = torch.autograd.grad(expected.total, features)
    result = torch.compile(lambda x, y: objective(x, y), fullgraph=True, backend="aot_eager")(features, labels)
    for ours, other in zip(result, expected):
        torch.testing.assert_close(ours, other)
    torch.testing.assert_close(torch.autograd.grad(result.total, features)[0], grad)


def test_autocast_and_grad_scaler(device):
    torch.manual_seed(3)
    backbone = torch.nn.Linear(6, 40, device=device)
    layer, loss, _, labels, _ = make("csq", 12, 40, (5, 12), device)
    objective = NestedObjective(layer, loss, backend="triton")
    x = torch.randn(12, 6, device=device)
    objective(backbone(x), labels).total.backward()
    expected = backbone.weight.grad.clone()
    for dtype in (torch.bfloat16, torch.float16):
        backbone.zero_grad()
        optimizer = torch.optim.SGD([*backbone.parameters()], lr=0.0)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        with torch.autocast(device.type, dtype=dtype):
            total = objective(backbone(x), labels).total
        assert total.dtype == torch.float32
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.testing.assert_close(backbone.weight.grad, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


def test_backend_choice(device):
    assert backends()["triton"].available
    layer, loss, features, labels, _ = make("csq", 12, 40, (5, 12), device)
    with pytest.raises(RuntimeError, match="float64"):
        NestedObjective(layer.double(), loss.double(), backend="triton")(features.double(), labels)
    NestedObjective(layer, loss)(features.double(), labels)  # "auto" takes the reference
    layer, loss = layer.float(), loss.float()
    user = PerLength([lambda u, y: u.square().mean()] * 2, (5, 12))
    with pytest.raises(RuntimeError, match="PerLength has no fused form"):
        NestedObjective(layer, user, backend="triton")(features, labels)

    class Mine(CSQ):
        def expanded(self, v, labels):
            return super().expanded(v, labels) * 2

    with pytest.raises(RuntimeError, match="Mine has no fused form"):
        NestedObjective(layer, Mine(5, (5, 12)).to(device), backend="triton")(features, labels)
    with pytest.raises(ValueError, match="backend"):
        NestedObjective(layer, loss, backend="cuda")
    wide = NestedHashLayer(8, (4, 2048), device=device)
    with pytest.raises(RuntimeError, match="1024"):
        NestedObjective(wide, DPN(5, (4, 2048)).to(device), backend="triton")(features[:, :8], labels)


def test_auto_on_a_cpu_is_the_reference():
    layer, loss, features, labels, _ = make("csq", 6, 8, (5, 12), "cpu")
    assert "combine_kernel" not in launches(lambda: NestedObjective(layer, loss)(features, labels))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA device these are device-side assertions")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, y: (f * float("nan"), y), "NaN"),
        (lambda f, y: (torch.where(f > 0, torch.inf, f), y), "infinity"),
        (lambda f, y: (f[:0], y[:0]), "at least one row"),
        (lambda f, y: (f[:, :4], y), "features: expected"),
        (lambda f, y: (f, y[:4]), "labels"),
        (lambda f, y: (f, y + 5), "class ids from 0 to 4"),
        (lambda f, y: (f, y - 1), "class ids from 0 to 4"),
        (lambda f, y: (f, y + 0.5), "class ids"),
        (lambda f, y: (f, 2 * F.one_hot(y, 5)), "zeros and ones"),
        (lambda f, y: (f, y.tolist()[:4]), "labels"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_input(change, message, device):
    layer, loss, features, labels, _ = make("csq", 12, 40, (5, 12), device)
    with pytest.raises((TypeError, ValueError), match=message):
        NestedObjective(layer, loss, backend="triton")(*change(features, labels))


def test_a_gradient_that_would_be_differentiated_again_is_refused(device):
    lengths, labels = (4, 8), torch.arange(6, device=device) % 3
    layer = NestedHashLayer(5, lengths).to(device)
    loss = CSQ(3, lengths).to(device)
    objective = NestedObjective(layer, loss, backend="triton")
    u = torch.randn(6, 8, device=device, requires_grad=True)
    x = torch.randn(6, 5, device=device, requires_grad=True)
    for function, sources in (
        (lambda: loss(u, labels, backend="triton").sum(), (u,)),
        (lambda: objective(x, labels).total, (x, *layer.parameters())),
        (lambda: layer.project(x, "triton").square().sum(), (x, *layer.parameters())),
    ):
        for source in sources:
            (gradient,) = torch.autograd.grad(function(), source, create_graph=True)
            for other in sources:
                with pytest.raises(RuntimeError, match="create_graph=True: this gradient of nhl_fast"):
                    torch.autograd.grad(gradient.sum(), other, retain_graph=True)
