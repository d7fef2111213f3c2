"""Fused long-short cascade self-distillation."""

from __future__ import annotations

import torch

from nhl_fast.kernels import distillation as kernels

from .operators import operator


@operator("nhl_fast::distill", mutates_args=("deltas",))
def distill(u: torch.Tensor, code_lengths: list[int], weight: float, deltas: torch.Tensor) -> torch.Tensor:
    """D_k (m,), without the weight; weight * dD_k/du_k is added to `deltas` (N, T) in place. u (N, L) float32."""
    values = torch.empty(len(code_lengths), device=u.device, dtype=torch.float32)
    with torch.cuda.device_of(u):
        kernels.launch(u.contiguous(), code_lengths, weight, values, deltas)
    return values


@distill.register_fake
def _(u, code_lengths, weight, deltas):
    return torch.empty(len(code_lengths), device=u.device, dtype=torch.float32)
