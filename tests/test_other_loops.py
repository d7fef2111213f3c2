"""What loops of other code bases hand over: tuples of outputs, labels and indices as their loaders leave them."""

import numpy as np
import pytest
import torch
from torch import nn

import nhl_fast as nhl
from nhl_fast.losses import PerLength

LENGTHS, CLASSES = (4, 8), 3
U, Y = torch.linspace(-1, 1, 48).view(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])


def loss_of(name="csq", **options):
    return nhl.losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, num_train=9, **options)


@pytest.mark.parametrize(
    "labels", [Y[:, None], Y.float(), Y.float()[:, None], Y.tolist(), Y.numpy(), np.eye(CLASSES)[Y.numpy()]], ids=repr
)
def test_labels_as_loaders_leave_them(labels):
    loss = loss_of()
    torch.testing.assert_close(loss(U, labels), loss(U, Y))
    layer = nhl.NestedHashLayer(8, LENGTHS)
    objective = nhl.NestedObjective(layer, loss)
    torch.testing.assert_close(objective(U, labels).losses, objective(U, Y).losses)


def test_floats_that_are_no_ids_are_refused():
    with pytest.raises(ValueError, match="labels: expected class ids, got floats that are no whole numbers"):
        loss_of()(U, Y + 0.5)


def test_a_loss_takes_the_layers_tuple():
    layer, loss = nhl.NestedHashLayer(5, LENGTHS), loss_of("dch")
    x = torch.randn(6, 5)
    torch.testing.assert_close(loss(layer(x), Y), loss(layer.project(x), Y))
    with pytest.raises(ValueError, match=r"u: expected \(N, L\) outputs, or the layer's prefixes of \(4, 8\)"):
        loss(layer(x)[1:], Y)


def test_settings_in_place_of_the_index_are_named():
    with pytest.raises(TypeError, match="settings are given when the loss is made"):
        loss_of()(U, Y, {"bit": 8})
    with pytest.raises(TypeError, match=r"got 1 more arguments, dict .* first: call loss\(u, labels, index\)"):
        loss_of()(U, Y, torch.arange(6), {"bit": 8})


@pytest.mark.parametrize("name", ["dsh", "csq", "dtsh"])
@pytest.mark.parametrize("weighting", ["dominance", "uniform"])
def test_outputs_of_a_layer_elsewhere(name, weighting):
    layer = nhl.NestedHashLayer(5, LENGTHS).double()
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), layer).double()
    x, index = torch.randn(6, 5, dtype=torch.float64), torch.arange(6)
    first, second = (
        nhl.NestedObjective(layer, loss_of(name).double(), weighting=weighting, backend="reference") for _ in range(2)
    )
    features = model[:2](x)
    expected = first(features, Y, index)
    wanted = torch.autograd.grad(expected.total, list(model.parameters()))
    features = model[:2](x)
    found = second(features if weighting == "dominance" else None, Y, index, outputs=layer(features))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(found.total, list(model.parameters())), wanted):
        torch.testing.assert_close(a, b)


def test_outputs_alone_have_no_dominance_aware_weights():
    objective = nhl.NestedObjective(nhl.NestedHashLayer(5, LENGTHS), loss_of())
    with pytest.raises(ValueError, match="features: expected the features of the given outputs"):
        objective(labels=Y, outputs=U)


def test_per_length_losses_get_the_index_where_they_want_it():
    seen = []

    def wants(u, labels, index):
        seen.append(index)
        return u.mean() + index.sum()

    loss = PerLength([wants, lambda u, labels: u.mean()], LENGTHS)
    values = loss(U, Y, torch.arange(6))
    torch.testing.assert_close(values, torch.stack([U[:, :4].mean() + 15, U.mean()]))
    assert seen
    assert all(torch.equal(index, torch.arange(6)) for index in seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_bank(dtype):
    objective = nhl.NestedObjective(nhl.NestedHashLayer(8, LENGTHS), loss_of("dsh"))
    objective(U, Y, torch.arange(6))
    before = objective.loss.bank.u.clone()
    objective.to(dtype)
    assert objective.loss.bank.u.dtype == torch.float32
    assert torch.equal(objective.loss.bank.u, before)
    assert objective.layer.hash_layer.weight.dtype == dtype
    assert torch.isfinite(objective(U.to(dtype), Y, torch.arange(6)).total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_centres(dtype):
    plain = loss_of("dpn")
    half = nhl.NestedObjective(nhl.NestedHashLayer(8, LENGTHS), loss_of("dpn")).to(dtype).loss
    assert half.center_table.dtype == half.tie_table.dtype == torch.float32
    u = torch.tensor([2048.0, 0.5, -2048.9]).repeat_interleave(2)[:, None].expand(6, 8)
    for loss in (plain, half):
        loss.adapt_centers(u, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(half.center_table, plain.center_table)
    assert half.double().center_table.dtype == torch.float64


def test_a_bank_takes_an_index_from_elsewhere():
    bank = nhl.losses.build("dsh", num_classes=CLASSES, code_lengths=LENGTHS, num_train=9).bank
    bank.update(torch.arange(6, dtype=torch.int32), U, Y)
    assert bank.written.tolist() == [True] * 6 + [False] * 3
    assert torch.equal(bank.u[:6], U)


def their_top_map(rb, qb, retrieval, query, topk):
    """The usual loop, with a stable order of ties."""
    total = 0.0
    for code, labels in zip(qb, query):
        relevant = (labels @ retrieval.T) > 0
        found = relevant[np.argsort(0.5 * (qb.shape[1] - code @ rb.T), kind="stable")][:topk]
        if found.any():
            places = np.flatnonzero(found) + 1.0
            total += np.mean(np.arange(1, len(places) + 1) / places)
    return total / len(qb)


@pytest.mark.parametrize("topk", [1, 7, 40])
def test_their_metric_by_their_arguments(topk):
    random = np.random.default_rng(2)
    rb, qb = (np.where(random.random((n, 12)) < 0.5, -1.0, 1.0) for n in (40, 6))
    retrieval, query = (np.eye(4)[random.integers(0, 4, n)] for n in (40, 6))
    expected = their_top_map(rb, qb, retrieval, query, topk)
    assert nhl.compat.calc_top_map(rb, qb, retrieval, query, topk) == pytest.approx(expected, rel=1e-12)
    if topk == 40:
        assert nhl.compat.calc_top_map(rb, qb, retrieval, query) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="qB: expected codes of -1 and \\+1, one width in both"):
        nhl.compat.calc_top_map(rb, qb[:, :5], retrieval, query, topk)


@pytest.mark.parametrize("shape", [(2, 3, 5), (5,), (0, 3, 5), (2, 1, 3, 5)], ids=str)
def test_the_layer_takes_features_of_the_shapes_that_linear_takes(shape):
    layer, x = nhl.NestedHashLayer(5, LENGTHS), torch.randn(shape)
    for bits, u in zip(LENGTHS, layer(x), strict=True):
        assert u.shape == (*shape[:-1], bits)
        torch.testing.assert_close(u, layer.hash_layer(x)[..., :bits])
    with pytest.raises(ValueError, match=r"features of shape \(N, 5\)"):
        layer(torch.randn(2, 3, 4))
    with pytest.raises(TypeError, match="x: expected a dense tensor"):
        layer(torch.randn(2, 3, 5).to_sparse())


def test_the_layer_takes_tokens_whose_outputs_are_not_contiguous():
    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x).T.contiguous().T

    layer, x = nhl.NestedHashLayer(5, LENGTHS), torch.randn(2, 3, 5)
    layer.hash_layer = Turned(5, 8)
    assert torch.equal(layer(x)[1], layer.hash_layer(x))


class TheirHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.hash_layer_q, self.hash_layer_k = nn.Linear(5, 8), nn.Linear(5, 8)


def test_weights_of_a_momentum_head_load():
    theirs, layer = TheirHead(), nhl.NestedHashLayer(5, LENGTHS)
    state = theirs.state_dict()
    keys = list(state)
    layer.load_state_dict(state)
    assert torch.equal(layer.hash_layer.weight, theirs.hash_layer_q.weight)
    assert torch.equal(layer.hash_layer.bias, theirs.hash_layer_q.bias)
    assert list(state) == keys
    inside = nn.ModuleDict({"head": nhl.NestedHashLayer(5, LENGTHS)})
    inside.load_state_dict({f"head.{key}": value for key, value in state.items()})
    assert torch.equal(inside["head"].hash_layer.weight, theirs.hash_layer_q.weight)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"hash_layer.weight\""):
        layer.load_state_dict({"hash_layer_k.weight": state["hash_layer_k.weight"]})


def test_a_bank_of_other_training_items_is_set_aside():
    old, new = loss_of("dsh"), nhl.losses.build("dsh", num_classes=CLASSES, code_lengths=LENGTHS, num_train=20)
    old(U, Y, torch.arange(6))
    new(U, Y, torch.arange(6))
    with pytest.warns(UserWarning, match=r"bank is of 9 training items, this one of 20: it is left out"):
        new.load_state_dict(old.state_dict())
    assert not new.bank.written.any()
    assert new.bank.u.shape == (20, 8)
    other = nhl.losses.build("dsh", num_classes=CLASSES, code_lengths=(4, 16), num_train=9)
    with pytest.raises(RuntimeError, match=r"size mismatch for bank\.u"):
        other.load_state_dict(old.state_dict())


@pytest.mark.parametrize("name", nhl.losses.NAMES)
def test_gradients_of_each_sample(name):
    layer = nhl.NestedHashLayer(5, LENGTHS)
    nn.init.normal_(layer.hash_layer.weight, std=0.5)
    objective = nhl.NestedObjective(layer, loss_of(name)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    objective(x, Y, torch.arange(6))  # fills a bank
    objective.eval()
    parameters = {key: p.detach() for key, p in objective.named_parameters()}

    def of_one(parameters, x, label):
        return torch.func.functional_call(objective, parameters, (x[None], label[None])).total

    found = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))(parameters, x, Y)
    for row in range(6):
        total = objective(x[row : row + 1], Y[row : row + 1]).total
        for a, b in zip(found.values(), torch.autograd.grad(total, list(objective.parameters()))):
            torch.testing.assert_close(a[row], b)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["csq", "dch"])
def test_functional_gradients(name, backend):
    objective = nhl.NestedObjective(nhl.NestedHashLayer(5, LENGTHS), loss_of(name), backend=backend)
    x = torch.randn(6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(objective(x, Y).total, x)
    assert torch.equal(torch.func.grad(lambda x: objective(x, Y).total)(x.detach()), expected)


@pytest.mark.parametrize("name", ["shcir", "dtsh"])
def test_losses_compile_whole(name):
    loss = loss_of(name)
    compiled = torch.compile(lambda u: loss(u, Y, backend="reference"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(U), loss(U, Y, backend="reference"))


@pytest.mark.parametrize("what", [0, 1, 2])
def test_torchscript_is_refused_in_words(what):
    layer, loss = nhl.NestedHashLayer(5, LENGTHS), loss_of()
    module = (layer, loss, nhl.NestedObjective(layer, loss))[what]
    for script in (module, nn.Sequential(nn.Linear(5, 5), module)):
        with pytest.raises(TypeError, match=r"torch\.jit\.script: .* is no TorchScript; torch.compile speeds it up"):
            torch.jit.script(script)
