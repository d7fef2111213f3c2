"""Weightings that the experiments compare with the dominance-aware weights, as `NestedObjective` takes them.

Each is called with dots (m, m), where dots[k, i] = <g_i^k, g_k^k> for k <= i in the hash layer's weight, and the
(m,) values; since g_k has b_k rows only, dots[k, i] is the full product <g_i, g_k> as well.
"""

from __future__ import annotations

import torch
from torch import nn

import nhl_fast as nhl

from .released import Released


class Uncertainty(nn.Module):
    """Homoscedastic uncertainty: total = sum_k exp(-s_k) L_k + s_k, with learnt s_k that start at 0.

    Source: Kendall, Gal and Cipolla, CVPR 2018 (equation 10, written with the log variance).
    """

    def __init__(self, m: int, lr: float = 1e-3):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(m))
        self.optimizer = torch.optim.Adam([self.log_variance], lr=lr)

    def forward(self, dots, values):
        weights = torch.exp(-self.log_variance.detach())
        self.log_variance.grad = 1 - weights * values
        self.optimizer.step()
        return weights


class GradNorm(nn.Module):
    """GradNorm: weights that pull every length's gradient norm to the mean norm times (relative loss)^alpha.

    The norms are those of the hash layer's weight, the last layer that all lengths share.
    Source: Chen et al., ICML 2018 (algorithm 1).
    """

    def __init__(self, m: int, alpha: float = 1.5, lr: float = 0.025):
        super().__init__()
        self.weights, self.alpha = nn.Parameter(torch.ones(m)), alpha
        self.optimizer = torch.optim.Adam([self.weights], lr=lr)
        self.register_buffer("first", torch.full((m,), torch.nan))

    def forward(self, dots, values):
        if bool(self.first.isnan().any()):
            self.first.copy_(values)
        used = self.weights.detach().clone()
        norms = dots.diagonal().clamp(min=0).sqrt()
        progress = values / self.first.clamp(min=1e-12)
        target = (used * norms).mean() * (progress / progress.mean()) ** self.alpha
        self.weights.grad = norms * torch.sign(used * norms - target)
        self.optimizer.step()
        with torch.no_grad():
            self.weights.clamp_(min=1e-3).mul_(len(used) / self.weights.sum())
        return used


class PCGrad(nn.Module):
    """PCGrad: every length's gradient loses its components against the others', taken in random order; then the sum.

    A projected gradient is a sum of the original ones, so that the products alone give the weights.
    Source: Yu et al., NeurIPS 2020 (algorithm 1), by the products in the hash layer's weight.
    """

    def __init__(self, m: int, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, dots, values):
        products = torch.triu(dots) + torch.triu(dots, 1).T
        m = len(products)
        shares = torch.eye(m, dtype=products.dtype)
        for i in range(m):
            for j in torch.randperm(m, generator=self.generator).tolist():
                against = shares[i] @ products[:, j]
                if j != i and against < 0 and products[j, j] > 0:
                    shares[i, j] -= against / products[j, j]
        return shares.sum(0)


class Recorder(nn.Module):
    """Uniform or dominance-aware weights, counting how often lengths conflict and what the weights repair.

    Attributes:
        conflicts: (m, m) steps with <g_i^k, g_k^k> < 0.
        broken: (2, m) steps where <sum over i >= k of a_i g_i^k, g_k^k> < 0, with a = 1 and with the dominance
            weights, both on this run's gradients.
        steps: how many steps were counted.
    """

    def __init__(self, m: int, weighting: str):
        super().__init__()
        self.weighting, self.steps = weighting, 0
        self.conflicts, self.broken = torch.zeros(m, m), torch.zeros(2, m)

    def forward(self, dots, values):
        uniform, dominance = torch.ones_like(values), nhl.dominance_weights(dots)
        upper = torch.triu(dots)
        self.conflicts += upper < 0
        for row, weights in enumerate((uniform, dominance)):
            # Rounding of the sum itself is no violation.
            slack = 1e-6 * (upper.abs() @ weights)
            self.broken[row] += upper @ weights < -slack
        self.steps += 1
        return uniform if self.weighting == "uniform" else dominance


def build(name: str, m: int, seed: int) -> nn.Module:
    """The weighting `name`: "uncertainty", "gradnorm", "pcgrad", "record-uniform", "record-dominance", or "released"
    with accidents of `released.ACCIDENTS`, as "released:weights+head"."""
    made = {
        "uncertainty": lambda: Uncertainty(m),
        "gradnorm": lambda: GradNorm(m),
        "pcgrad": lambda: PCGrad(m, seed=seed),
        "record-uniform": lambda: Recorder(m, "uniform"),
        "record-dominance": lambda: Recorder(m, "dominance"),
    }
    if name.startswith("released:"):
        return Released(name.removeprefix("released:").split("+"))
    if name not in made:
        raise ValueError(f"rule: expected one of {', '.join(made)}, released:..., got {name!r}")
    return made[name]()
