"""The kernels' bodies: sums of forms, functions that there are not, and who checks the labels."""

import pytest
import torch
from against import check
from losses_cases import draw_labels
from nhl_fast.kernels.pair_functions import PAIR_FUNCTIONS
from test_add_a_loss import defined
from test_forms import LENGTHS, Named, Together, center, inputs, make, softmax

from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import CSQ, DCH, DHN, REGISTRY, SHCIR, GreedyHash, HyP2, Neighbors
from nhl_fast.losses.form import BY_LENGTH, GRADED, Form
from nhl_fast.steps.fused.bodies import BODIES
from nhl_fast.steps.fused.prepare import checked_by_kernels


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_published_loss_is_served(name):
    loss = make(name)
    assert {form.body for form in loss.forms()} <= set(BODIES)
    assert checked_by_kernels(loss, loss.forms())


def test_a_loss_is_the_sum_of_its_forms(device):
    u, labels, _ = inputs()
    check(Together().to(device), u.to(device), labels.to(device))


def test_a_step_of_such_a_sum(device):
    """The centres' part is taken in the projection's launch, the others are added to it."""
    torch.manual_seed(0)
    layer, x = NestedHashLayer(7, LENGTHS).to(device), torch.randn(9, 7, device=device)
    labels, loss = torch.arange(9, device=device) % 4, Together().to(device)
    found = []
    for backend in ("triton", "reference"):
        result = NestedObjective(layer, loss, backend=backend)(x, labels)
        found.append((result.losses, *torch.autograd.grad(result.total, list(layer.parameters()))))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_are_refused_by_name(transform, device):
    loss, u = make("csq").to(device), torch.randn(6, LENGTHS[-1], device=device)
    layer = NestedHashLayer(LENGTHS[-1], LENGTHS, device=device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    calls = (
        lambda u: loss(u, labels[: len(u)], backend="triton").sum(),
        lambda u: NestedObjective(layer, loss, backend="triton")(u, labels[: len(u)]).total,
        lambda u: layer.project(u, backend="triton").sum(),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"is within a transform of torch\.func"):
            transform(call)(u if transform is torch.func.grad else u[:, None])


class Subclass(CSQ):
    def forms(self):
        return CSQ.forms(self)


class OwnPrepare(Subclass):
    def prepare(self, u, labels, index):
        return super().prepare(u, labels + 1, index)

    def forms(self):
        return CSQ.forms(self)


class OwnLabels(SHCIR):
    def check_labels(self, labels, num_rows):
        return super().check_labels(labels, num_rows) + 1

    def forms(self):
        return SHCIR.forms(self)


class SingleLabel(DCH):
    single_label = True

    def forms(self):
        return DCH.forms(self)


@pytest.mark.parametrize("kind", [OwnPrepare, OwnLabels, SingleLabel])
def test_checks_that_the_kernels_do_not_know_are_made(kind, device):
    """A loss's own `prepare` and `check_labels` are called, whatever its forms."""
    u, labels, _ = inputs()
    u, labels = u.to(device), labels.to(device) % 3
    loss = kind(4, LENGTHS).to(device)
    assert not checked_by_kernels(loss, loss.forms())
    usual = Subclass(4, LENGTHS)
    assert checked_by_kernels(usual, usual.forms())
    torch.testing.assert_close(loss(u, labels, backend="triton"), loss(u, labels, backend="reference"))
    if kind is SingleLabel and device.type == "cpu":  # an assertion on a CUDA device
        with pytest.raises(ValueError, match="SingleLabel is defined for single-label data"):
            loss(u, torch.ones(9, 4, dtype=torch.long, device=device), backend="triton")


@pytest.mark.parametrize(
    ("form", "known"),
    [
        (center("hinge"), "dpn_ternary"),
        (Form("pairs", "hinge"), "cauchy"),
        (Form("triplets", "hinge"), "logistic"),
        (softmax("hinge"), "likelihood"),
        (Form("listwise", "hinge", (0.1,), scales=torch.ones(len(LENGTHS))), "divergence"),
    ],
    ids=lambda x: getattr(x, "body", x),
)
def test_a_function_that_there_is_not(form, known, device):
    u, labels, _ = inputs()
    layer = NestedHashLayer(7, LENGTHS).to(device)
    loss = Named(form).to(device)
    for call in (
        lambda: loss(u.to(device), labels.to(device), backend="triton"),
        lambda: NestedObjective(layer, loss, backend="triton")(torch.randn(9, 7, device=device), labels.to(device)),
    ):
        with pytest.raises(ValueError, match=f"function: expected one of .*{known}.*, got 'hinge'"):
            call()


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
def test_the_recipes_loss(multi, device):
    """docs/add-a-loss.md: a combination of function, weights and penalty that no published loss has."""
    loss = defined()(5, LENGTHS).to(device)
    check(loss, torch.randn(12, LENGTHS[-1], device=device), draw_labels(12, 5, multi, device))


def test_the_kernels_mark_the_functions_that_the_forms_do():
    marked = {mark: {n for n, f in PAIR_FUNCTIONS.items() if getattr(f, mark)} for mark in ("graded", "by_length")}
    assert marked == {"graded": set(GRADED), "by_length": set(BY_LENGTH)}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (CSQ, "centers"),
        (SHCIR, "centers"),
        (DHN, "bank"),
        (Neighbors, "scales"),
        (GreedyHash, "classifier"),
        (HyP2, "proxies"),
    ],
)
def test_a_loss_on_another_device_is_refused(kind, what, device):
    u, labels, _ = inputs()
    options = {"num_train": 20} if kind is DHN else {}
    loss = kind(*(() if kind is Neighbors else (4,)), LENGTHS, **options).eval().to("meta")
    labels = u if kind is Neighbors else labels
    with pytest.raises(RuntimeError, match=f"the loss has its {what} on meta, the outputs on {device}"):
        loss(u.to(device), labels.to(device), backend="triton")


def test_a_layer_on_another_device_is_refused(device):
    layer = NestedHashLayer(8, LENGTHS, device="meta")
    with pytest.raises(RuntimeError, match=f"the layer's weight is on meta, the features on {device}"):
        layer.project(torch.randn(3, 8, device=device), backend="triton")
