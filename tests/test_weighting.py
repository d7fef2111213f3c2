import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nhl_fast.core.prefixes import expand, pad, split, weighted_sum
from nhl_fast.head.weighting import dominance_dots, dominance_weights

pytestmark = pytest.mark.numeric


def dots_from_gradients(grads, lengths):
    """<g_i^k, g_k^k> gradient by gradient: the definition."""
    m = len(grads)
    dots = torch.zeros(m, m, dtype=grads[0].dtype)
    for k, b in enumerate(lengths):
        for i in range(k, m):
            dots[k, i] = (grads[i][:b] * grads[k]).sum()
    return dots


def literal_weights(dots):
    m = len(dots)
    weights = [1.0]
    for i in range(1, m):
        bound = 1.0
        for k in range(i):
            if dots[k][i] < 0:
                bound = min(bound, weights[k] * dots[k][k] / ((m - (k + 1)) * -dots[k][i]))
        weights.append(bound)
    return [w * m / sum(weights) for w in weights]


@pytest.mark.parametrize("sets", [4000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_guarantee_on_random_gradient_sets(sets):
    """sum_{i >= k} a_i <g_i^k, g_k^k> >= 0 for every prefix, beyond rounding."""
    generator = torch.Generator().manual_seed(0)
    lengths, width = (1, 2, 4, 8, 16), 3
    worst, conflicts = 0.0, 0
    for _ in range(sets):
        scales = 10 ** (4 * torch.rand(5, generator=generator) - 2)
        shared = torch.randn(16, width, generator=generator, dtype=torch.float64)
        grads = [
            s * (torch.randn(b, width, generator=generator) + (-1) ** k * 2 * shared[:b])
            for k, (b, s) in enumerate(zip(lengths, scales))
        ]
        dots = dots_from_gradients(grads, lengths)
        weights = dominance_weights(dots)
        margins = (dots * weights).triu().sum(1) / (dots.abs() * weights).triu().sum(1)
        worst = min(worst, margins.min().item())
        conflicts += bool((dots.triu(1) < 0).any())
        assert weights.sum().item() == pytest.approx(5)
        assert (weights >= 0).all()
    assert conflicts > 0.75 * sets  # the sets do conflict
    assert worst >= -1e-12


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**31))
def test_closed_form(m, seed):
    dots = torch.randn(m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dots.diagonal().abs_()
    dots.diagonal()[torch.rand(m, generator=torch.Generator().manual_seed(seed + 1)) < 0.2] = 0
    expected = torch.tensor(literal_weights(dots.tolist()), dtype=torch.float64)
    torch.testing.assert_close(dominance_weights(dots), expected)


@pytest.mark.parametrize(
    "dots",
    [
        [[0.0, -1e-23, 1.0], [0, 1, 1], [0, 0, 1]],
        [[-1e-11, -2e-11, -7e-11], [0, 3e-10, 4e-10], [0, 0, 3e-9]],
        [[1e-44, -1e-44, -1.0], [0, 1e-44, -1], [0, 0, 1]],
        [[0.0, -1.0, -1.0], [0, 0, 0], [0, 0, 0]],
    ],
)
def test_dominant_norms_that_vanish_or_round_below_zero(dots):
    """A length that has converged leaves finite, non-negative weights behind."""
    weights = dominance_weights(torch.tensor(dots))
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(3)


def test_nan_stays_visible():
    assert dominance_weights(torch.tensor([[1.0, float("nan")], [0, 1]])).isnan().any()


def test_no_conflict_means_uniform_weights():
    assert dominance_weights(torch.ones(5, 5)).tolist() == [1.0] * 5
    assert dominance_weights(torch.zeros(3, 3)).tolist() == [1.0] * 3
    assert dominance_weights(torch.ones(1, 1)).tolist() == [1.0]


def test_entries_below_the_diagonal_are_not_read():
    dots = torch.tensor([[1.0, -4.0, 2.0], [0, 1, -3], [0, 0, 1]])
    below = dots + torch.tril(torch.full((3, 3), -50.0), -1)
    torch.testing.assert_close(dominance_weights(dots), dominance_weights(below))


def test_half_precision_dots_are_weighed_in_float32():
    assert dominance_weights(torch.eye(3, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(64, 2048), (1, 7), (100, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("lengths", [(8, 16, 32), (5, 12, 48, 100), (6,)], ids=str)
def test_gram_shortcut_equals_full_gradients(shape, lengths):
    """Both sides of the cost rule: the Gram matrix for small batches, the products delta^T F for large ones."""
    features = torch.randn(shape, dtype=torch.float64)
    deltas = torch.randn(shape[0], sum(lengths), dtype=torch.float64)
    grads = [part.T @ features for part in split(deltas, lengths)]
    torch.testing.assert_close(
        dominance_dots(pad(deltas, lengths), features, lengths), dots_from_gradients(grads, lengths)
    )


def test_pad_and_weighted_sum_are_the_adjoint_of_expand():
    lengths = (2, 5, 9)
    u = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    v = torch.randn(4, 16, dtype=torch.float64)
    (adjoint,) = torch.autograd.grad((expand(u, lengths) * v).sum(), u)
    torch.testing.assert_close(weighted_sum(pad(v, lengths), torch.ones(3, dtype=torch.float64)), adjoint)


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 3), torch.ones(0, 0), torch.ones(2, 2).long(), [[1.0]]])
def test_bad_dots(bad):
    with pytest.raises((ValueError, TypeError), match="dots"):
        dominance_weights(bad)
