"""Losses without labels, against loops over rows."""

import copy
import math

import pytest
import torch
from native_cases import AVAILABLE, DETAIL, each_isa  # noqa: F401
from step_cases import check, make

import nhl_fast as nhl
from nhl_fast.losses import naive
from nhl_fast.losses.base import LOSS
from nhl_fast.losses.unlabelled import divergences, log_neighbors

LENGTHS = (3, 8)
native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


def outputs(rows=12, seed=0, dtype=torch.float64):
    return torch.randn(rows, LENGTHS[-1], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bits(u):
    return [[1.0 if x > 0 else -1.0 for x in row] for row in u.tolist()]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def log_softmax(values):
    return [v - math.log(sum(math.exp(w) for w in values)) for v in values]


def test_neighbors_is_the_divergence_of_two_softmaxes():
    u, x = outputs(), torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = nhl.losses.Neighbors(LENGTHS, temperature=0.2).double()
    unit = (x / x.norm(dim=1, keepdim=True)).tolist()
    for k, b in enumerate(LENGTHS):
        z, value = bits(u[:, :b]), 0.0
        for i in range(12):
            others = [j for j in range(12) if j != i]
            wanted = log_softmax([dot(unit[i], unit[j]) / 0.2 for j in others])
            found = log_softmax([math.sqrt(b) * dot(z[i], z[j]) / b for j in others])
            value += sum(math.exp(w) * (w - f) for w, f in zip(wanted, found)) / 12
        assert loss(u, x)[k].item() == pytest.approx(value)


def test_contrastive_is_the_mean_over_views():
    u, ids = outputs(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 9, 8, 7])  # one of three views, three of one
    loss = nhl.losses.Contrastive(LENGTHS, temperature=0.4, bottleneck=0.05)
    p = u.sigmoid().tolist()
    for k, b in enumerate(LENGTHS):
        z, rows = bits(u[:, :b]), []
        for i in range(12):
            others = [j for j in range(12) if j != i]
            found = dict(zip(others, log_softmax([dot(z[i], z[j]) / (0.4 * b) for j in others])))
            views = [j for j in others if ids[j] == ids[i]]
            divergence = {
                j: sum(
                    p[i][t] * math.log(p[i][t] / p[j][t]) + (1 - p[i][t]) * math.log((1 - p[i][t]) / (1 - p[j][t]))
                    for t in range(b)
                )
                for j in views
            }
            if views:
                rows.append(sum(0.05 * divergence[j] - found[j] for j in views) / len(views))
        assert len(rows) == 9
        assert loss(u, ids)[k].item() == pytest.approx(sum(rows) / 9)


def test_signs_pass_the_gradient_of_tanh():
    u = outputs().requires_grad_()
    ids = torch.arange(12) // 2
    nhl.losses.Contrastive(LENGTHS, bottleneck=0.0)(u, ids)[1].backward()
    z = torch.where(u > 0, 1.0, -1.0).detach().requires_grad_()
    logits = (z @ z.T / (8 * 0.3)).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf).log_softmax(1)
    (-logits[torch.arange(12), torch.arange(12) ^ 1].mean()).backward()
    assert torch.allclose(u.grad, z.grad * (1 - u.detach().tanh() ** 2))


def test_no_row_with_another_view_is_no_loss():
    u = outputs().requires_grad_()
    values = nhl.losses.Contrastive(LENGTHS)(u, torch.arange(12))
    values.sum().backward()
    assert values.tolist() == [0, 0]
    assert u.grad.eq(0).all()


@pytest.mark.parametrize("weighting", ["dominance", "uniform"])
def test_an_objective_trains_them_and_the_scales_along(weighting):
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    layer = nhl.NestedHashLayer(16, LENGTHS)
    loss = nhl.losses.Neighbors(LENGTHS, temperature=0.2)
    objective = nhl.NestedObjective(layer, loss, distill_weight=0.0, weighting=weighting)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    first = objective(x, x).losses
    scales = loss.log_scales.detach().clone()
    for _ in range(60):
        optimizer.zero_grad()
        result = objective(x, x)
        result.total.backward()
        optimizer.step()
    assert (result.losses < first).all()
    assert not torch.equal(scales, loss.log_scales)
    loss.reset_parameters()
    assert torch.equal(scales, loss.log_scales)


@native
@pytest.mark.numeric
@pytest.mark.parametrize("size", [(9, 5, (1, 7)), (64, 33, (8, 16, 64)), (150, 40, (8, 20, 64, 100))], ids=str)
@pytest.mark.parametrize("name", ["neighbors", "contrastive"])
def test_a_whole_compiled_step(isa, name, size):
    """Values, weights, gradients of layer, features and learned scales: the formulas', in float32."""
    found = check(make(name, *size))
    assert ("dlog_scales" in found) == (name == "neighbors")


@native
@pytest.mark.parametrize("name", ["Neighbors", "Contrastive"])
def test_the_compiled_step_is_what_auto_takes(name):
    loss, u = getattr(nhl.losses, name)(LENGTHS), outputs(dtype=torch.float32)
    targets = outputs(seed=5).float() if name == "Neighbors" else torch.arange(12) // 2
    assert torch.equal(loss(u, targets), loss(u, targets, backend="cpp"))
    assert LOSS.pick("auto", u.device, (loss, u, targets, None)).backend == "cpp"


@native
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_gradient_in_the_scales_is_that_of_differences(backend):
    loss, u, x = nhl.losses.Neighbors(LENGTHS, temperature=0.3), outputs(40).float(), outputs(40, 5).float()
    if backend == "reference":
        loss, u, x = loss.double(), u.double(), x.double()
    eps = 1e-5 if backend == "reference" else 1e-2
    for k in range(2):
        (found,) = torch.autograd.grad(loss(u, x, backend=backend)[k], loss.log_scales)
        both = []
        for sign in (1, -1):
            moved = copy.deepcopy(loss)
            with torch.no_grad():
                moved.log_scales[k] += sign * eps
            both.append(moved(u, x, backend=backend)[k].item())
        assert found[k].item() == pytest.approx((both[0] - both[1]) / (2 * eps), rel=1e-2)
        assert found[1 - k] == 0


def test_gradients_are_those_of_differences_in_the_signs():
    """The way back from the products, in float64: z in place of the signs, which have no slope of their own."""
    x, scale, z = outputs(9, 3), torch.tensor(2.0, dtype=torch.float64), outputs(9).sign()[:, :8].requires_grad_()

    def formula(z, scale):
        found = naive.off_diagonal(scale / 8 * (z @ z.T), -torch.inf).log_softmax(1)
        wanted = log_neighbors(x, 0.4)
        return (wanted.exp() * naive.off_diagonal(wanted - found, 0)).sum(1).mean()

    assert torch.autograd.gradcheck(formula, (z, scale.requires_grad_()))
    (dz, slope) = torch.autograd.grad(formula(z, scale), (z, scale))
    u = z.detach() * 0.7
    values, deltas, slopes = divergences(u, (8,), log_neighbors(x, 0.4), scale.detach()[None])
    torch.testing.assert_close(values[0], formula(z, scale).detach())
    torch.testing.assert_close(deltas, dz * (1 - u.tanh() ** 2))
    torch.testing.assert_close(slopes[0], slope)


@native
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    u, x = torch.randn(300, 96), torch.randn(300, 48)
    found = []
    before = torch.get_num_threads()
    for count in (1, threads):
        torch.set_num_threads(count)
        try:
            found.append(torch.ops.nhl_fast.step_listwise(u, x, torch.ones(2), [32, 96], "divergence", [0.05]))
        finally:
            torch.set_num_threads(before)
    for a, b in zip(*found):
        assert torch.equal(a, b)


@native
@pytest.mark.parametrize("name", ["Neighbors", "Contrastive"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_compiled_by_pytorch(name, backend):
    """torch.compile without a break in the graph gives what eager mode gives."""
    loss = getattr(nhl.losses, name)(LENGTHS)
    targets = outputs(seed=5).float() if name == "Neighbors" else torch.arange(12) // 2
    results = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        u = outputs(dtype=torch.float32).requires_grad_()
        values = call(u, targets, backend=backend)
        parameters = [u, *loss.parameters()]
        results.append((values.detach(), *torch.autograd.grad(values.square().sum(), parameters)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_what_does_not_serve_the_cpu_is_refused_by_name(backend):
    cases = (nhl.losses.Neighbors(LENGTHS), torch.ones(12, 2)), (nhl.losses.Contrastive(LENGTHS), torch.arange(12))
    for loss, targets in cases:
        with pytest.raises((RuntimeError, ValueError), match=f"^backend: .*{backend}"):
            loss(outputs().float(), targets, backend=backend)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("Neighbors", torch.arange(12), "labels: expected a floating-point"),
        ("Neighbors", torch.ones(11, 3), r"labels: expected vectors of shape \(12, d\)"),
        ("Neighbors", torch.full((12, 3), torch.nan), "labels: expected finite"),
        ("Contrastive", torch.ones(12), "labels: expected integer ids"),
        ("Contrastive", torch.ones(12, 2, dtype=torch.int64), "labels: expected ids of shape"),
    ],
)
def test_wrong_targets(loss, labels, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        getattr(nhl.losses, loss)(LENGTHS)(outputs(), labels)


def test_wrong_options_and_a_single_row():
    for kind in (nhl.losses.Neighbors, nhl.losses.Contrastive):
        with pytest.raises(ValueError, match=r"^temperature: "):
            kind(LENGTHS, temperature=0.0)
        with pytest.raises(ValueError, match=r"^temperature: expected a finite number of at least 1e-06"):
            kind(LENGTHS, temperature=1e-320)
    with pytest.raises(ValueError, match=r"^bottleneck: "):
        nhl.losses.Contrastive(LENGTHS, bottleneck=-1.0)
    with pytest.raises(ValueError, match=r"^u: expected at least two rows"):
        nhl.losses.Neighbors(LENGTHS)(outputs(1), torch.ones(1, 3))
