"""Bits that half of a batch's rows have: the bi-half layer."""

from __future__ import annotations

import torch

from ..core.known_gradient import once


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(u, gamma):
        order = u.argsort(dim=0, descending=True, stable=True)
        upper = torch.arange(len(u), device=u.device) < len(u) // 2
        sides = torch.where(upper, 1.0, -1.0).to(u.dtype)[:, None].expand_as(u)
        return torch.empty_like(u).scatter_(0, order, sides) + 0 * u  # NaN and infinity leave a trace

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.gamma = inputs
        ctx.save_for_backward(u, output)

    @staticmethod
    def backward(ctx, gradient):
        u, bits = ctx.saved_tensors
        return once(gradient + ctx.gamma * (u - bits) / u.numel(), u, gradient), None


def halved(u: torch.Tensor, gamma: float) -> torch.Tensor:
    """+-1 (N, L) of outputs u: in every column the N // 2 largest are 1, the others -1.

    A gradient g of theirs comes back as g + gamma (u - bits) / (N L): passed straight through, and drawn to the bits,
    by so much whatever the loss is multiplied by (a GradScaler's factor makes the second part smaller).

    Source: Li and van Gemert, "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021.
    """
    return _Halved.apply(u, gamma)
