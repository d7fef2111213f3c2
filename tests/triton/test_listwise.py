"""The fused listwise losses (neighbours of vectors, views of one thing) against the reference."""

import pytest
import torch
from against import check, compiles_in_one_graph, fused, gradients_are_taken_once, learns_from_values_alone
from launches import launches
from losses_cases import UNLABELLED, make_loss, reference
from nhl_fast.kernels import listwise as kernels
from nhl_fast.kernels import tiles
from numeric import expected
from step_cases import by_formulas, make, run

from nhl_fast.core.backend import backends
from nhl_fast.head.graphs import make_graphed
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import Contrastive, Neighbors
from nhl_fast.steps.fused.listwise import listwise

LENGTHS = (8, 16, 32, 64, 128)
KINDS = [Neighbors, Contrastive]


def problem(kind, lengths, n, device, scale=1.0, **options):
    """(loss, u, targets): vectors, or ids of which a few have no other view."""
    loss, u = kind(lengths, **options).to(device), scale * torch.randn(n, lengths[-1], device=device)
    targets = torch.randn(n, 37, device=device) if kind is Neighbors else torch.arange(n, device=device) ** 2 % 9
    return loss, u, targets


@pytest.mark.parametrize("n", [2, 3, 33, pytest.param(130, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", UNLABELLED, ids=str)
def test_equals_the_reference(case, n, device):
    loss = make_loss(case, (5, 12, 100), device=device)
    check(loss, torch.randn(n, 100, device=device), case.labels(n, 4, device=device))


@pytest.mark.parametrize("lengths", [(1,), LENGTHS, (7, 200)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, lengths, device):
    check(*problem(kind, lengths, 12, device))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_long_codes(kind, device):
    check(*problem(kind, (64, 1024), 5, device))


@pytest.mark.parametrize("sides", [(16, 32, 64, 64), (32, 16, 16, 32)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_give_the_same(kind, sides, device, monkeypatch):
    rows, columns, bits, width = sides
    monkeypatch.setattr(kernels, "COSINES", tiles.Tiles(rows, columns, depth=16))
    monkeypatch.setattr(kernels, "STATISTICS", tiles.Tiles(rows, columns, bits))
    monkeypatch.setattr(kernels, "GRADIENT", tiles.Tiles(rows, columns, bits, width))
    check(*problem(kind, (8, 70), 40, device))


@pytest.mark.parametrize("weighting", ["dominance", "uniform"])
@pytest.mark.parametrize("size", [(9, 5, (1, 7)), (40, 33, (8, 20, 64))], ids=str)
@pytest.mark.parametrize("name", ["neighbors", "contrastive"])
def test_a_whole_step_with_the_scales_that_it_learns(name, size, weighting, device):
    """Values, weights, gradients of layer, features and learned scales: the formulas', in float32."""
    layer, loss, features, labels, index, options = make(name, *size, weighting=weighting, distill_weight=0.3)
    given = layer.to(device), loss.to(device), features.to(device), labels.to(device), index.to(device), options
    truth = expected(run, given, "reference", torch.float64, 1.0, truth=by_formulas)
    found = truth.check(run(given, "triton"))
    assert ("dlog_scales" in found) == (name == "neighbors")


def test_the_scales_learn_from_the_values_alone(device):
    loss, u, x = problem(Neighbors, (8, 40), 20, device)
    slopes = torch.tensor([0.5, -2.0], device=device)
    found = {}
    for backend in ("triton", "reference"):
        (found[backend],) = torch.autograd.grad((slopes * loss(u, x, backend=backend)).sum(), loss.log_scales)
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-5, atol=1e-6)
    learns_from_values_alone(loss, u, x)


def test_gradients_are_taken_once(device):
    loss, u, x = problem(Neighbors, (4, 8), 6, device)
    gradients_are_taken_once(loss, loss.log_scales, u, x)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_outputs_stay_finite(kind, scale, device):
    loss, u, targets = problem(kind, (8, 64), 16, device, scale=scale)
    values, deltas = fused(loss, u, targets)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, reference(loss, u, targets)[0].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_temperatures(kind, temperature, device):
    """The smallest that there is gives logits of 10^6, in which float32's cosines err by 0.1."""
    loss, u, targets = problem(kind, (8, 64), 12, device, temperature=temperature)
    values, deltas = fused(loss, u, targets)
    truth = reference(loss, u, targets)
    torch.testing.assert_close(values, truth[0].float(), rtol=1e-4, atol=1e-6)
    assert (deltas - truth[1]).norm() <= (1e-4 + 1e-7 / temperature) * truth[1].norm()


def test_vectors_without_a_direction_and_of_other_lengths(device):
    loss, u, x = problem(Neighbors, (4, 20), 10, device)
    x[3] = 0
    x[5] *= 1e-6
    check(loss, u, x)
    torch.testing.assert_close(fused(loss, u, 1e5 * x), fused(loss, u, x), rtol=1e-4, atol=1e-6)


def test_no_row_with_another_view_is_no_loss(device):
    loss, u, _ = problem(Contrastive, (4, 20), 20, device)
    for found in fused(loss, u, torch.arange(20, device=device)):
        assert not found.any()


def test_rows_whose_views_come_late(device):
    """The first tiles of a row hold none of its views."""
    loss, u, _ = problem(Contrastive, (4, 20), 80, device, bottleneck=0.3)
    ids = torch.arange(80, device=device)
    ids[75:] = torch.tensor([0, 0, 0, 7, 7], device=device)
    check(loss, u, ids)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_vectors_in_other_formats(dtype, device):
    loss, u, x = problem(Neighbors, (4, 20), 10, device)
    x = x.half()
    torch.testing.assert_close(
        loss(u, x.to(dtype), backend="triton"), loss(u, x.float(), backend="triton"), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_launches_and_repetition(kind, device):
    loss, u, targets = problem(kind, (8, 24), 10, device)
    form = loss.forms()[0]
    given = (u, targets, form.scales.detach(), [8, 24], form.function, list(form.constants))
    torch.library.opcheck(listwise, given)
    first = ["cosine_kernel"] if kind is Neighbors else []
    last = [] if kind is Neighbors else ["gap_kernel"]
    assert launches(lambda: listwise(*given)) == [*first, "statistics_kernel", "gradient_kernel", *last]
    for one, other in zip(listwise(*given), listwise(u.T.contiguous().T, *given[1:])):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="u: expected at least two rows"):
        listwise(u[:1], targets[:1], *given[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind, device):
    loss, u, targets = problem(kind, (5, 12), 12, device)
    compiles_in_one_graph(loss, u, targets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_refuse_what_learns(device):
    layer, loss, x, vectors, *_ = make("neighbors", 12, 9, (4, 8))
    objective = NestedObjective(layer, loss).to(device)
    assert backends()["triton"].available
    with pytest.raises(ValueError, match="objective: its loss learns log_scales"):
        make_graphed(objective, x.to(device), vectors.to(device))
