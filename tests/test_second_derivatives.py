"""create_graph=True is right, or a clear error, at every entry whose gradient is known in advance."""

import pytest
import torch
from torch import nn

import nhl_fast as nhl
from nhl_fast.core.known_gradient import known_gradient
from nhl_fast.native import cpu_status

LENGTHS, CLASSES = (4, 8, 12), 5
TWICE = {"csq", "dpn", "dch", "hashnet", "orthocos", "orthoarc", "idhn", "hyp2"}  # plain PyTorch in the reference
MESSAGE = "create_graph=True: this gradient of nhl_fast was computed together with its value"
BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(not cpu_status()[0], reason="no library"))]


def problem(name, **dtype):
    loss = nhl.losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, num_train=10)
    u = torch.randn(10, LENGTHS[-1], requires_grad=True, **dtype)
    return loss, u, torch.arange(10) % CLASSES, torch.arange(10)


def refused(gradient, *sources):
    """The gradient itself can be used; differentiating it by any of its sources raises."""
    assert torch.isfinite(gradient).all()
    for source in sources:
        with pytest.raises(RuntimeError, match=MESSAGE):
            torch.autograd.grad(gradient.square().sum(), source, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(nhl.losses.REGISTRY))
def test_losses(name, backend):
    loss, u, labels, index = problem(name)
    (plain,) = torch.autograd.grad(loss(u, labels, index, backend=backend).sum(), u)
    (gradient,) = torch.autograd.grad(loss(u, labels, index, backend=backend).sum(), u, create_graph=True)
    assert torch.equal(plain, gradient)
    if backend == "cpp" or name not in TWICE:
        return refused(gradient, u)
    loss, u, labels, _ = problem(name, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda u: loss(u, labels, backend=backend), u)


@pytest.mark.parametrize("name", sorted(nhl.losses.REGISTRY.keys() - {"greedyhash"}))  # whose signs have no slope
def test_plain_formulas(name):
    """They can be differentiated twice, as the message says."""
    loss, u, labels, index = problem(name, dtype=torch.float64)
    loss.prepare(u.detach(), labels, index)
    assert torch.autograd.gradgradcheck(lambda u: loss.naive(u[:, :8], labels, 1), u)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["csq", "dhn", "dtsh"])
def test_objective(name, backend):
    loss, _, labels, index = problem(name)
    layer = nhl.NestedHashLayer(6, LENGTHS)
    objective = nhl.NestedObjective(layer, loss, backend=backend)
    features = torch.randn(10, 6, requires_grad=True)
    sources = (features, *layer.parameters())
    for source in sources:
        (gradient,) = torch.autograd.grad(objective(features, labels, index).total, source, create_graph=True)
        refused(gradient, *sources)
    with pytest.raises(RuntimeError, match=MESSAGE):
        torch.autograd.functional.hessian(lambda f: objective(f, labels, index).total, features)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_parameters_of_the_loss(backend):
    """Their own second derivatives are right; those across to the layer would be lost."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, u, labels):
            return (u * self.scale).square().mean()

    functions = [Scaled() for _ in LENGTHS]
    layer = nhl.NestedHashLayer(6, LENGTHS)
    objective = nhl.NestedObjective(
        layer, nhl.losses.PerLength(functions, LENGTHS), weighting="uniform", distill_weight=0, backend=backend
    )
    features, scale = torch.randn(10, 6), functions[0].scale
    (gradient,) = torch.autograd.grad(objective(features, torch.zeros(10).long()).total, scale, create_graph=True)
    (own,) = torch.autograd.grad(objective(features, torch.zeros(10).long()).total, scale)
    assert torch.equal(gradient, own)
    refused(gradient, layer.hash_layer.weight)


def test_distillation_and_the_layer():
    u = torch.randn(6, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(nhl.distillation_losses(u, LENGTHS).sum(), u, create_graph=True)
    refused(gradient, u)
    layer, x = nhl.NestedHashLayer(3, LENGTHS).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer.project(x).square().sum(), x)


def test_a_gradient_that_is_not_differentiated_is_as_before():
    x = torch.ones(3, requires_grad=True)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(
            known_gradient(x, torch.tensor(2.0), torch.arange(3.0)), x, create_graph=create_graph
        )
        assert gradient.tolist() == [0, 1, 2]
        assert gradient.requires_grad == create_graph


def test_functional_gradients():
    loss, u, labels, _ = problem("lcdsh", dtype=torch.float64)

    def total(u):
        return loss(u, labels, backend="reference").sum()

    (expected,) = torch.autograd.grad(total(u), u)
    assert torch.equal(torch.func.grad(total)(u.detach()), expected)
    with pytest.raises(RuntimeError, match=MESSAGE):
        torch.func.grad(lambda u: torch.func.grad(total)(u).sum())(u.detach())
