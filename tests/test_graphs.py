"""A graphed objective against the objective; without a CUDA device a stand-in replays by computing again."""

import copy

import pytest
import torch

from nhl_fast import NestedHashLayer, NestedObjective, losses, make_graphed
from nhl_fast.data import RetrievalData
from nhl_fast.head import graphs
from nhl_fast.head.graphs import GraphedObjective, replayable
from nhl_fast.training import trainer as training
from nhl_fast.training.config import TrainConfig

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.cuda.is_available()
N, D, CLASSES, LENGTHS = 24, 20, 5, (8, 16, 32)


class Again:
    """A capture that replays by computing again, into the same tensors."""

    def __init__(self, device):
        pass

    def warm_up(self, function, times):
        for _ in range(times):
            function()

    def __call__(self, function):
        outputs = function()

        def replay():
            for old, new in zip(outputs, function()):
                old.copy_(new)

        return outputs, replay


def problem(name="csq", device="cuda" if CUDA else "cpu", multi=False, **options):
    torch.manual_seed(0)
    layer = NestedHashLayer(D, LENGTHS, device=device)
    settings = {} if name == "mdsh" else {"num_train": 60}
    loss = losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, **settings).to(device)
    objective = NestedObjective(layer, loss, **options)
    batches = []
    for _ in range(3):
        x = torch.randn(N, D, device=device, requires_grad=True)
        labels = torch.randint(0, CLASSES, (N,), device=device)
        if multi:
            labels = torch.nn.functional.one_hot(labels, CLASSES)
        batches.append((x, labels, torch.randperm(60, device=device)[:N] if name == "dhn" else None))
    return objective, batches


# No replay gives gradients to what a loss learns, and `make_graphed` refuses it.
LEARNS = [name for name in losses.REGISTRY if list(problem(name)[0].loss.parameters())]
REPLAYED = [name for name in losses.REGISTRY if name not in LEARNS]


def graphed(objective, batch):
    """A graphed objective on whatever device there is."""
    if CUDA:
        return make_graphed(objective, *batch)
    made = GraphedObjective(objective)
    made.capture(*batch, 2)
    return made


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    if not CUDA:
        monkeypatch.setattr(graphs, "_Capture", Again)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("name", ["csq", "dhn"])
def test_several_batches_equal_the_objective(name, multi):
    objective, batches = problem(name, multi=multi)
    plain = copy.deepcopy(objective)
    replay = graphed(objective, batches[0])
    for k, (x, labels, index) in enumerate(batches):
        results, gradients = [], []
        for function, module in ((plain, plain), (replay, objective)):
            result = function(x, labels, index)
            parameters = (x, *module.layer.parameters())
            gradients.append(torch.autograd.grad(2.5 * result.total, parameters))
            results.append(result)
        for a, b in zip(results[1], results[0]):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)
        for a, b in zip(gradients[1], gradients[0]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert replay.replays == k + 1
    for a, b in zip(objective.buffers(), plain.buffers()):
        torch.testing.assert_close(a, b)


def test_results_and_gradients_are_their_own():
    """Nothing of a call changes with the next one, and accumulated gradients add up."""
    objective, batches = problem()
    plain = copy.deepcopy(objective)
    replay = graphed(objective, batches[0])
    kept = []
    for batch in batches:
        result = replay(*batch)
        result.total.backward()
        kept.append((result, [t.detach().clone() for t in result]))
        plain(*batch).total.backward()
    for result, values in kept:
        assert all(torch.equal(a, b) for a, b in zip(result, values))
    for a, b in zip(objective.layer.parameters(), plain.layer.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_other_settings_are_not_replayed():
    """A graph knows nothing of what a module is told after its capture."""
    objective, batches = problem()
    replay = graphed(objective, batches[0])
    objective.loss.label_options(ignore_index=-1)
    features, labels, _ = batches[1]
    labels[3] = -1
    found, expected = replay(features, labels), objective(features, labels)
    assert replay.replays == 0
    torch.testing.assert_close(found.losses, expected.losses)
    objective.loss.label_options()
    replay(*batches[2])
    assert replay.replays == 1
    objective.distill_weight = 0.5
    torch.testing.assert_close(replay(*batches[2]).total, objective(*batches[2]).total)
    assert replay.replays == 1
    objective.distill_weight = 1.0
    replay(*batches[2])
    assert replay.replays == 2
    objective.loss = losses.build("dch", num_classes=CLASSES, code_lengths=LENGTHS).to(features.device)
    torch.testing.assert_close(replay(*batches[2]).total, objective(*batches[2]).total)
    assert replay.replays == 2


@pytest.mark.parametrize("name", REPLAYED)
def test_no_setting_of_a_loss_changes_with_its_steps(name):
    """mdsh, whose epochs change one, is told them from outside."""
    objective, batches = problem(name)
    batches = [(x, labels, torch.randperm(60, device=x.device)[:N]) for x, labels, _ in batches]
    replay = graphed(objective, batches[0])
    for batch in batches:
        replay(*batch)
    assert replay.replays == len(batches)


def test_inputs_filled_in_place():
    objective, batches = problem()
    replay = graphed(objective, batches[0])
    x, labels = replay.inputs
    with torch.no_grad():
        x.copy_(batches[1][0])
        labels.copy_(batches[1][1])
    result = replay(x, labels)
    expected = objective(*batches[1])
    torch.testing.assert_close(result.total, expected.total)
    ours, other = torch.autograd.grad(result.total, x), torch.autograd.grad(expected.total, batches[1][0])
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_evaluated_eagerly():
    objective, batches = problem()
    replay = graphed(objective, batches[0])
    x, labels, _ = batches[1]
    expected = objective(x[:7], labels[:7])
    result = replay(x[:7], labels[:7])
    torch.testing.assert_close(result.total, expected.total)
    assert replay.replays == 0
    objective.eval()
    replay(x, labels)
    assert replay.replays == 0
    objective.train()
    with torch.no_grad():
        assert not replay(x, labels).total.requires_grad
    assert replay.replays == 1
    with pytest.raises(TypeError, match="labels"):
        replay(x, object())


def test_backward_comes_before_the_next_call():
    objective, batches = problem()
    replay = graphed(objective, batches[0])
    first = replay(*batches[0])
    replay(*batches[1])
    with pytest.raises(RuntimeError, match="before its next call"):
        first.total.backward()


def test_replaced_tensors_are_an_error():
    objective, batches = problem()
    replay = graphed(objective, batches[0])
    state = objective.state_dict()
    objective.load_state_dict({k: v + 0 for k, v in state.items()})  # in place
    replay(*batches[0])
    objective.layer.hash_layer.weight = torch.nn.Parameter(objective.layer.hash_layer.weight.detach().clone())
    with pytest.raises(RuntimeError, match="replaced"):
        replay(*batches[0])


def test_the_warm_up_leaves_the_bank_alone():
    objective, batches = problem("dhn")
    before = [t.clone() for t in objective.buffers()]
    graphed(objective, batches[0])
    assert all(torch.equal(a, b) for a, b in zip(objective.buffers(), before))


def test_fixed_weights_frozen_layer_and_features_without_gradient():
    objective, batches = problem(weighting="uniform", distill_weight=0.0)
    objective.layer.hash_layer.weight.requires_grad_(False)
    x = batches[0][0].detach()
    replay = graphed(objective, (x, *batches[0][1:]))
    result = replay(x, batches[1][1])
    assert result.dots is None
    result.total.backward()
    assert objective.layer.hash_layer.weight.grad is None
    bias = objective.layer.hash_layer.bias
    torch.testing.assert_close(
        bias.grad, torch.autograd.grad(objective(x, batches[1][1]).total, bias)[0], rtol=1e-4, atol=1e-6
    )
    wanting = replay(x.clone().requires_grad_(), batches[1][1])  # not captured: eager
    assert replay.replays == 1
    assert wanting.total.requires_grad


def test_on_a_cpu_it_is_the_objective():
    objective, batches = problem(device="cpu")
    made = make_graphed(objective, *batches[0])
    assert torch.equal(made(*batches[1]).total, objective(*batches[1]).total)
    assert made.replays == 0


def test_bad_input():
    objective, (batch, *_) = problem(device="cpu")
    with pytest.raises(TypeError, match="objective: expected a NestedObjective"):
        make_graphed(objective.layer, *batch)
    with pytest.raises(ValueError, match="expected features"):
        make_graphed(objective, batch[0][:, :3], batch[1])
    with pytest.raises(TypeError, match="labels"):
        make_graphed(objective, batch[0], batch[1].tolist())
    with pytest.raises(TypeError, match="index"):
        make_graphed(objective, *batch[:2], [1, 2])
    with pytest.raises((TypeError, ValueError), match="num_warmup_iters"):
        make_graphed(objective, *batch, num_warmup_iters=0)


@pytest.mark.parametrize("name", ["csq", "dhn"])
def test_the_trainer_replays_its_full_batches(name, monkeypatch):
    torch.manual_seed(0)
    labels = torch.arange(70) % CLASSES
    inputs = torch.randn(CLASSES, D)[labels] + 0.3 * torch.randn(70, D)
    data = RetrievalData.from_tensors(inputs, labels, train=range(20, 70), query=range(20), num_classes=CLASSES)
    config = TrainConfig(
        loss=name, code_lengths=LENGTHS, hidden=(16,), epochs=2, batch_size=16, device="cuda" if CUDA else "cpu"
    )
    made, results = [], []

    def make(objective, *batch):
        made.append(graphed(objective, batch))
        return made[-1]

    monkeypatch.setattr(training, "make_graphed", make)
    for replays in (False, True):
        monkeypatch.setattr(training, "replayable", lambda *call, replays=replays: replays)
        results.append(training.train(data, config, progress=False))
    (graph,) = made
    rows = len(data.train)
    assert graph.replays == 2 * (rows // 16) > 0
    assert rows % 16
    for a, b in zip(results[1].history, results[0].history):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
        assert a["total"] == pytest.approx(b["total"], rel=1e-4)
    for a, b in zip(results[1].model.parameters(), results[0].model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["csq", "dhn", "mdsh"])
def test_what_the_trainer_replays(name):
    objective, (batch, *_) = problem(name)
    assert replayable(objective, *batch[:2]) == (CUDA and name != "mdsh")
    objective.backend = "reference"
    assert not replayable(objective, *batch[:2])


@pytest.mark.parametrize("name", ["csq", "mdsh"])
def test_a_loss_that_learns_or_is_told_the_epoch_is_not_replayed(name, monkeypatch):
    objective, (batch, *_) = problem(name, device="cpu")
    monkeypatch.setattr(graphs, "served_by", lambda *call: "triton")
    features = type("OnCuda", (), {"device": torch.device("cuda")})()
    assert replayable(objective, features, batch[1]) == (name != "mdsh")
    objective.loss.register_parameter("learned", torch.nn.Parameter(torch.zeros(1)))
    assert not replayable(objective, features, batch[1])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["csq", "dpn", "dhn"])
def test_compiled_with_cuda_graphs(name):
    objective, batches = problem(name, backend="triton")
    compiled = torch.compile(objective, mode="reduce-overhead")
    for batch in (*batches, *batches):
        torch.compiler.cudagraph_mark_step_begin()
        parameters = (batch[0], *objective.layer.parameters())
        found = torch.autograd.grad(compiled(*batch).total, parameters)
        found = [t.clone() for t in found]
        for a, b in zip(found, torch.autograd.grad(objective(*batch).total, parameters)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", REPLAYED)
def test_every_loss_replays(name):
    objective, batches = problem(name, backend="triton")
    batches = [(x, labels, torch.randperm(60, device="cuda")[:N]) for x, labels, _ in batches]
    plain = copy.deepcopy(objective)
    replay = make_graphed(objective, *batches[0])
    for batch in batches:
        a, b = replay(*batch), plain(*batch)
        torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(a.total, batch[0])[0], torch.autograd.grad(b.total, batch[0])[0], rtol=1e-4, atol=1e-6
        )
    assert replay.replays == len(batches)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", LEARNS)
def test_a_loss_that_learns_is_refused(name):
    objective, batches = problem(name, backend="triton")
    with pytest.raises(ValueError, match="objective: its loss learns"):
        make_graphed(objective, *batches[0])
