"""What the tests of whole training steps share: problems, everything a step gives, and what it should be."""

import copy
import types

import torch
from losses_cases import ALL, Case, make_loss
from numeric import expected

from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import NestedLoss

NAMES = ("total", "losses", "distill", "weights", "dots")
BANKS = ("dsh", "dhn", "dbdh", "mdsh")


def make(name, n, d, lengths, multi=False, classes=5, num_train=None, std=1.0, loss_options=None, **options):
    """(layer, loss, features, labels, index, options of the objective); a fifth of the bank stays unwritten."""
    torch.manual_seed(n + d)
    layer = NestedHashLayer(d, lengths)
    torch.nn.init.normal_(layer.hash_layer.weight, std=std * d**-0.5)
    torch.nn.init.normal_(layer.hash_layer.bias, std=0.1)
    num_train = n + 150 if num_train is None else num_train
    case = Case(name, loss_options or {}, bank=name in BANKS)
    case = next((known for known in ALL if known[:3] == case[:3]), case)
    loss = make_loss(case, lengths, classes=classes, multi=multi, num_train=num_train)
    labels = case.labels(n, classes, multi)
    return layer, loss, torch.randn(n, d), labels, torch.randperm(num_train)[:n], options


def small(name="csq"):
    return make(name, 20, 33, (8, 20, 64))[:5]


def run(problem, backend, dtype=torch.float32, scale=1.0):
    """Everything a step gives, as one dict of tensors."""
    layer, loss, features, labels, index, options = problem
    layer, loss = copy.deepcopy(layer).to(dtype), copy.deepcopy(loss).to(dtype)
    features = features.to(dtype).clone().requires_grad_()
    result = NestedObjective(layer, loss, backend=backend, **options)(features, labels, index)
    (result.total * scale).backward()
    found = {key: value for key, value in zip(NAMES, result) if value is not None}
    found = {**found, "dF": features.grad, "dW": layer.hash_layer.weight.grad, "dc": layer.hash_layer.bias.grad}
    found |= {f"d{name}": p.grad for name, p in loss.named_parameters() if p.grad is not None}
    if getattr(loss, "bank", None) is not None:
        found["bank"] = loss.bank.u
    return {key: value.detach().clone() for key, value in found.items()}


def by_formulas(problem, backend, dtype, scale=1.0):
    """`run` with the loss's plain formulas (`nhl_fast.losses.naive`)."""
    loss = copy.deepcopy(problem[1])
    loss.expanded = types.MethodType(NestedLoss.expanded, loss)
    return run((problem[0], loss, *problem[2:]), backend, dtype, scale)


def check(problem, scale=1.0):
    """The step in float32 is the truth but for float32's own errors (see `numeric`)."""
    native = run(problem, "cpp", scale=scale)
    assert all(value.dtype == torch.float32 for value in native.values())
    return expected(run, problem, "reference", torch.float64, scale, truth=by_formulas).check(native)
