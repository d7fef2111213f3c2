"""Fused self-distillation against the reference."""

import pytest
import torch
from launches import launches
from losses_cases import by_length
from nhl_fast.kernels import distillation as kernels
from numeric import Expected

from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, segment_matrix, split
from nhl_fast.head.distillation import expanded_distillation_losses
from nhl_fast.steps.fused.distillation import distill

LENGTHS = (8, 16, 32, 64, 128)


def reference(u, lengths, dtype):
    columns = segment_matrix(lengths).to(u.device, dtype)
    values, deltas = per_length_gradients(
        lambda v: expanded_distillation_losses(v, lengths, columns), expand(u.to(dtype), lengths)
    )
    return values.detach(), deltas


def fused(u, lengths, weight=1.0):
    deltas = torch.zeros(u.shape[0], sum(lengths), device=u.device)
    return distill(u, list(lengths), weight, deltas), deltas


def check(u, lengths):
    values, deltas = fused(u, lengths)
    assert values[-1] == 0
    right = Expected(lambda: by_length(*reference(u, lengths, torch.float64), lengths))
    right.check(by_length(values, deltas, lengths))


@pytest.mark.parametrize("lengths", [(5, 12, 48, 100), LENGTHS, (1, 2), (8, 300)], ids=str)
@pytest.mark.parametrize("n", [3, 33])
def test_equals_the_reference(n, lengths, device):
    check(torch.randn(n, lengths[-1], device=device), lengths)


@pytest.mark.parametrize("lengths", [(5, 12, 48, 100), (8, 72)], ids=str)
def test_the_tiles_of_large_batches(lengths, device, monkeypatch):
    monkeypatch.setattr(kernels, "norms_tile", lambda *sizes: kernels.MANY_NORMS)
    monkeypatch.setattr(kernels, "gradient_tile", lambda *sizes: kernels.MANY_GRADIENT)
    check(torch.randn(70, lengths[-1], device=device), lengths)


def test_which_tiles():
    def rows_of(n, count, precision, generation=9):
        norms = kernels.norms_tile(n, count, precision, generation)
        return norms.rows, kernels.gradient_tile(n, count, precision).rows

    assert rows_of(64, 5, "tf32x3") == rows_of(1984, 5, "tf32x3") == rows_of(8128, 2, "tf32x3") == (16, 16)
    assert rows_of(2048, 5, "tf32") == rows_of(8192, 2, "tf32x3") == (64, 64)
    assert rows_of(2048, 5, "tf32", 8) == (16, 64)
    assert rows_of(4096, 5, "ieee") == (16, 16)


@pytest.mark.slow
def test_larger(device):
    check(torch.randn(130, 128, device=device), LENGTHS)
    check(torch.randn(20, 1024, device=device), (64, 512, 1024))


def test_golden(golden, device):
    u = torch.from_numpy(golden["u"]).to(device)
    values, deltas = fused(u, LENGTHS)
    expected = torch.from_numpy(golden["distill_loss"]).to(values)
    torch.testing.assert_close(values[:4], expected, rtol=1e-4, atol=0)
    for b, g in zip(LENGTHS[:4], split(deltas, LENGTHS)):
        want = torch.from_numpy(golden[f"distill_grad_{b}"]).to(g)
        assert (g - want).norm() <= 1e-4 * want.norm(), b
    assert (split(deltas, LENGTHS)[-1] == 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_scale(scale, device):
    check(scale * torch.randn(12, 40, device=device), (8, 40))


def test_rows_without_a_direction_give_no_gradient(device):
    u = torch.randn(20, 32, device=device)
    u[3] = 0
    u[4, :8] = 0
    check(u, (8, 32))
    values, deltas = fused(torch.zeros(5, 32, device=device), (8, 32))
    assert (values == 0).all()
    assert (deltas == 0).all()


@pytest.mark.parametrize("lengths", [(8,), (8, 32)])
def test_one_row_and_one_length(lengths, device):
    values, deltas = fused(torch.randn(1, lengths[-1], device=device), lengths)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(deltas, torch.zeros_like(deltas), rtol=0, atol=1e-6)


def test_the_weighted_gradient_is_added(device):
    u, before = torch.randn(10, 24, device=device), torch.randn(10, 32, device=device)
    deltas = before.clone()
    values = distill(u, [8, 24], 0.3, deltas)
    plain_values, plain = fused(u, (8, 24))
    torch.testing.assert_close(values, plain_values, rtol=0, atol=0)
    torch.testing.assert_close(deltas, before + 0.3 * plain)


def test_opcheck_and_launches(device):
    u, deltas = torch.randn(10, 24, device=device), torch.zeros(10, 32, device=device)
    torch.library.opcheck(distill, (u, [8, 24], 0.3, deltas))
    assert launches(lambda: distill(u, [8, 24], 0.3, deltas)) == ["statistics_kernel", "gradient_kernel"]


def test_runs_are_identical_and_a_strided_input_is_served(device):
    u = torch.randn(40, 24, device=device)
    first, second = fused(u, (8, 24)), fused(u.T.contiguous().T, (8, 24))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
