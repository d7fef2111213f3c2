"""Long-short cascade self-distillation (arXiv 2412.08922): each length learns the next one's similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..core import check
from ..core.known_gradient import known_gradient
from ..core.names import TEACHERS
from ..core.operation import Operation
from ..core.precision import no_autocast
from ..core.prefixes import expand, segment_matrix, split

EPSILON = 1e-12


def distillation_losses(u: torch.Tensor, code_lengths, teacher: str = "next") -> torch.Tensor:
    """D_k = ||G_k - stopgrad(G_{k+1})||_F^2 / N^2, where G_k is u_k u_k^T with its rows L2-normalised.

    Args:
        u: raw outputs (N, L), floating point; half precision is computed in float32.
        code_lengths: the m code lengths, increasing; the longest is at most L.
        teacher: whose similarities a length learns: "next" (the next longer length, as in the paper), "longest",
            or "longer" (the mean of ||G_k - G_j||_F^2 / N^2 over all j > k).

    Returns:
        (m,) losses; the last is 0, since the longest length has nothing to learn from.
    """
    code_lengths = check.code_lengths(code_lengths)
    check.one_of(teacher, "teacher", TEACHERS)
    u = check.tensor(u, "u", ndim=2, floating=True)
    if u.shape[1] < code_lengths[-1]:
        raise ValueError(f"u: expected at least {code_lengths[-1]} columns, got {check.describe(u)}")
    return DISTILL(u, code_lengths, teacher)


def _losses(u: torch.Tensor, code_lengths: tuple[int, ...], teacher: str) -> torch.Tensor:
    u = u if u.dtype == torch.float64 else u.float()
    columns = segment_matrix(code_lengths).to(u.device)
    with no_autocast(u):
        return expanded_distillation_losses(expand(u, code_lengths), code_lengths, columns, teacher)


DISTILL = Operation("distillation_losses", _losses)


def expanded_distillation_losses(
    v: torch.Tensor, code_lengths: tuple[int, ...], columns: torch.Tensor, teacher: str = "next"
) -> torch.Tensor:
    """`distillation_losses` of an expanded tensor; `columns` is `segment_matrix(code_lengths)` (see `prefixes`)."""
    return known_gradient(v, *_cascade(v.detach(), code_lengths, teacher), columns)


@torch.no_grad()
def _cascade(v: torch.Tensor, code_lengths: tuple[int, ...], teacher: str) -> tuple[torch.Tensor, torch.Tensor]:
    """D_k (m,), and the gradient of their sum in v (N, sum of the lengths).

    A row of G_k with a norm under 1e-12 has no direction: it gives no gradient.
    """
    n, parts = max(v.shape[0], 1), split(v, code_lengths)
    grams = torch.stack([p @ p.T for p in parts])
    norms = torch.linalg.vector_norm(grams, dim=-1, keepdim=True)
    unit = grams / norms.clamp(min=EPSILON)
    target, spread = _targets(unit, teacher)
    difference = unit[:-1] - target
    values = (difference.square().sum((1, 2)) + spread) / n**2
    unit, norms = unit[:-1], norms[:-1]
    slope = difference - unit * (unit * difference).sum(-1, keepdim=True)
    slope = slope * torch.where(norms > EPSILON, 2 / (n**2 * norms), 0.0)
    grads = [a @ p for a, p in zip(slope + slope.mT, parts)]
    return F.pad(values, (0, 1)), torch.cat([*grads, torch.zeros_like(parts[-1])], dim=1)


def _targets(unit: torch.Tensor, teacher: str) -> tuple[torch.Tensor | float, ...]:
    """What each length but the longest learns (m - 1, N, N), and what its mean squared distance has on top."""
    if teacher == "next":
        return unit[1:], 0.0
    if teacher == "longest":
        return unit[-1:], 0.0
    count = torch.arange(len(unit) - 1, 0, -1, device=unit.device, dtype=unit.dtype)[:, None, None]
    mean = unit[1:].flip(0).cumsum(0).flip(0) / count
    squares = unit[1:].square().flip(0).cumsum(0).flip(0) / count
    return mean, (squares - mean.square()).sum((1, 2))
