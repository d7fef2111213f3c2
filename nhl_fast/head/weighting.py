"""Dominance-aware weights (arXiv 2412.08922) in closed form, on the device, from one Gram matrix."""

from __future__ import annotations

import torch

from ..core import check
from ..core.operation import Operation


def dominance_weights(dots: torch.Tensor) -> torch.Tensor:
    """The weights a_k that keep every prefix's own gradient dominant.

    a_1 = 1; a_i = min(1, min over k < i with dots[k, i] < 0 of a_k dots[k, k] / ((m - k) |dots[k, i]|)), with k
    counted from 1; then scaled so that they sum to m. For every k this guarantees
    <sum over i >= k of a_i g_i^k, g_k^k> >= 0: the sum of all lengths' gradients never works against prefix k.

    Args:
        dots: (m, m) with dots[k, i] = <g_i^k, g_k^k> for i >= k (the first b_k rows of two lengths' gradients of
            the layer's weight); entries below the diagonal are not read.

    Returns:
        (m,) weights, constants to autograd.
    """
    dots = check.tensor(dots, "dots", ndim=2, floating=True)
    m = dots.shape[0]
    if m == 0 or dots.shape[1] != m:
        raise ValueError(f"dots: expected a square matrix, got {check.describe(dots)}")
    return WEIGH(dots)


def _weights(dots: torch.Tensor) -> torch.Tensor:
    m, dots = dots.shape[0], dots.detach()
    if dots.dtype not in (torch.float32, torch.float64):
        dots = dots.float()
    slots = torch.arange(m - 1, -1, -1, device=dots.device, dtype=dots.dtype)  # m - k, k from 1
    share = dots.diagonal().clamp(min=0) / slots  # a norm that rounding took below zero is zero
    free, bounds = dots >= 0, share[:, None] / dots.abs()
    weights = dots.new_ones(m)
    for i in range(1, m):
        weights[i] = torch.where(free[:i, i], 1.0, weights[:i] * bounds[:i, i]).amin().clamp(max=1)
    return weights * (m / weights.sum())


WEIGH = Operation("dominance_weights", _weights)


def dominance_dots(padded: torch.Tensor, features: torch.Tensor, code_lengths: tuple[int, ...]) -> torch.Tensor:
    """dots[k, i] = <g_i^k, g_k^k> for i >= k, without forming a gradient of the weight (zeros below).

    With delta_i the gradient of length i's loss with respect to its outputs, g_i = delta_i^T F, so that
    <g_i^k, g_k^k> = sum((F F^T) * (delta_k delta_i[:, :b_k]^T)): one N x N Gram matrix serves all pairs. Where
    the batch is larger than the features are wide, the products delta_i^T F are smaller and are formed instead.

    Args:
        padded: the deltas (m, N, L), each zero beyond its own columns.
        features: (N, d), what the layer saw.
        code_lengths: the m code lengths.
    """
    (m, n, longest), d = padded.shape, features.shape[1]
    # Row k of `left` is zero beyond the columns of prefix k, so that the sum runs over those alone.
    if n * (d + m * longest) <= d * sum(code_lengths):
        left, right = padded, torch.matmul(features @ features.T, padded)
    else:
        left = right = features.new_zeros(m, longest, d)
        for k, b in enumerate(code_lengths):
            left[k, :b] = padded[k, :, :b].T @ features
    return torch.triu(left.flatten(1) @ right.flatten(1).T)
