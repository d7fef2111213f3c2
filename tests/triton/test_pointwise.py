"""Fused CSQ and DPN against their definitions in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from against import fused
from launches import launches
from losses_cases import by_length, naive_by_length, reference, reference_by_length
from numeric import Expected

from nhl_fast.core.prefixes import split
from nhl_fast.losses import CSQ, DPN
from nhl_fast.steps.fused import bodies
from nhl_fast.steps.fused.center import center, project_center

GOLDEN = Path(__file__).parents[1] / "golden"
LOSSES = {
    "csq": lambda lengths: CSQ(5, lengths),
    "csq, strong": lambda lengths: CSQ(5, lengths, quantization=0.7),
    "dpn": lambda lengths: DPN(5, lengths),
    "dpn, margin": lambda lengths: DPN(5, lengths, margin=0.4),
    "dpn, ternary": lambda lengths: DPN(5, lengths, margin=0.3, ternary=True),
}


def make(name, n, lengths, device, form):
    torch.manual_seed(1)
    loss = LOSSES[name](lengths).to(device)
    u = 1.5 * torch.randn(n, lengths[-1], device=device)
    if form == "ids":
        return loss, u, torch.randint(0, 5, (n,), device=device)
    labels = (torch.rand(n, 5, device=device) < 0.4).to(form)
    return loss, u, labels


def relative(a, b):
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("form", ["ids", torch.bool, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, (1,)), (3, (5, 12, 48, 100)), (33, (8, 16, 32)), (2, (3, 1024))], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_deltas(name, shape, form, device):
    loss, u, labels = make(name, *shape, device, form)
    values, deltas = fused(loss, u, labels)
    assert values.shape == (len(shape[1]),)
    problem = loss, u, labels
    right = Expected(lambda: reference_by_length(*problem), truth=lambda: naive_by_length(*problem))
    right.check(by_length(values, deltas, shape[1]))


def test_extreme_outputs_stay_finite_and_keep_their_gradient(device):
    loss = CSQ(5, (4, 8), quantization=1e-4).to(device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    u = torch.tensor([0.0, 1e-30, 1e-3, 20.0, 100.0, 1e30], device=device)[:, None] * loss.center_table[0, -8:].sign()
    for signs in (1, -1):
        values, deltas = fused(loss, signs * u, labels)
        truth = reference(loss, signs * u, labels, torch.float64)
        torch.testing.assert_close(values.double(), truth[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(deltas.double(), truth[1], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("data", ["single10", "single100", "multi12"])
@pytest.mark.parametrize("name", ["csq", "dpn"])
def test_golden_values(name, data, device):
    lengths = (8, 16, 32, 64, 128)
    with np.load(GOLDEN / f"{data}.npz") as archive:
        golden = {key: torch.from_numpy(archive[key]) for key in archive.files}
    centers = [golden[f"centers_{b}"] for b in lengths]
    loss = {"csq": CSQ, "dpn": DPN}[name](golden["labels"].shape[1], lengths, centers)
    loss.tie_centers = [golden[f"tie_center_{b}"] for b in lengths]
    labels = golden["labels"].to(device)
    forms = [labels] if data.startswith("multi") else [labels, labels.argmax(1)]
    for form in forms:
        values, deltas = fused(loss.to(device), golden["u"].to(device), form)
        torch.testing.assert_close(values.cpu(), golden[f"{name}_loss"].float(), rtol=1e-4, atol=0)
        for b, grad in zip(lengths, split(deltas.cpu(), lengths)):
            expected = golden[f"{name}_grad_{b}"]
            assert relative(grad, expected.double()) < 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_public_call_and_its_gradient(name, device):
    loss, u, labels = make(name, 9, (5, 12, 48), device, "ids")
    u.requires_grad_()
    ours, expected = (loss(u, labels, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(ours, expected)
    for weights in (torch.tensor([0.5, -2.0, 3.0], device=device), torch.ones((), device=device).expand(3)):
        a, b = (torch.autograd.grad(v, u, weights, retain_graph=True)[0] for v in (ours, expected))
        torch.testing.assert_close(a, b)
    half = u.detach().bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(loss(half, labels, backend="triton").sum(), half)
    assert grad.dtype == torch.bfloat16
    assert not loss(u.detach(), labels, backend="triton").requires_grad


def test_one_launch_for_all_lengths(device):
    loss, u, labels = make("csq", 40, (5, 12, 48), device, "ids")
    found = launches(lambda: bodies.values_and_deltas(loss.forms(), u, labels, [5, 12, 48]))
    assert found == ["center_kernel"]


def test_layouts(device):
    loss, u, labels = make("csq", 9, (5, 12), device, torch.int64)
    values, deltas = fused(loss, u, labels)
    spread = torch.empty(5, 9, dtype=torch.int64, device=device).T.copy_(labels)
    for other in (spread, labels.bool(), labels.to(torch.uint8), labels.half()):
        again = fused(loss, torch.empty(12, 9, device=device).T.copy_(u), other)
        assert torch.equal(again[0], values)
        assert torch.equal(again[1], deltas)


@pytest.mark.parametrize("n", [20, 1030])
def test_projection_and_loss_together(n, device):
    """The same numbers as one after the other, whether the projection is split over d or not."""
    for d in (9, 300):
        loss, _, labels = make("csq", n, (5, 12), device, "ids")
        x, w, b = (torch.randn(*s, device=device) for s in ((n, d), (12, d), (12,)))
        options = bodies.center_problem(*loss.forms(), [5, 12])
        u, gram, values, deltas = torch.ops.nhl_fast.project_center(x, w, b, labels, *options, n < 100)
        expected_u, expected_gram = torch.ops.nhl_fast.project(x, w, b, n < 100)
        assert torch.equal(u, expected_u)
        assert torch.equal(gram, expected_gram)
        expected = fused(loss, u, labels)
        torch.testing.assert_close(values.sum(0), expected[0])
        torch.testing.assert_close(deltas, expected[1])


def test_opcheck(device):
    for name in ("csq", "dpn, ternary"):
        for form in ("ids", torch.float32):
            loss, u, labels = make(name, 6, (5, 12), device, form)
            options = (labels, *bodies.center_problem(*loss.forms(), [5, 12]))
            torch.library.opcheck(center, (u, *options))
            x, w, b = (torch.randn(*s, device=device) for s in ((6, 20), (12, 20), (12,)))
            torch.library.opcheck(project_center, (x, w, b, *options, True))
