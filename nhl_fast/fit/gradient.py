"""The step of `losses.Neighbors` on binary codes, all lengths from one forward, its gradient written out.

With z the signs and G_k = Z Z^T over the first b_k bits, length k's value is the mean over the rows of
KL(softmax(S / t) || softmax(c_k G_k)), c_k = scale_k / b_k. Its slope in c_k G_k is D_k = (softmax(c_k G_k) - T) / N,
so that dZ = sum_k c_k (D_k + D_k^T) Z over the bits of length k: the products over the bits of one block serve every
length that holds them, forward (G grows by blocks) and backward (the D are added up from the longest). The sign is
passed straight through to tanh u, whose slope is 1 - tanh^2 u.
"""

from __future__ import annotations

import torch


def values_and_gradient(
    u: torch.Tensor, targets: list[torch.Tensor], log_scales: torch.Tensor, code_lengths
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropies (m,), and the gradient of their sum in u (N, L) and in log_scales (m,).

    Args:
        u: raw outputs.
        targets: m of what `losses.unlabelled.neighbor_targets` gives, one a length; one may stand several times.
        log_scales: (m,) logarithms of scale_k.
    """
    rows, soft = len(u), u.tanh()
    z = torch.where(u > 0, 1.0, -1.0).to(u.dtype)
    factors = log_scales.exp() / torch.tensor(code_lengths, dtype=u.dtype, device=u.device)
    gram, values, slopes, scale_slopes = u.new_zeros(rows, rows), [], [], []
    starts = (0, *code_lengths[:-1])
    for k, (start, stop) in enumerate(zip(starts, code_lengths)):
        block = z[:, start:stop]
        gram.addmm_(block, block.T)
        logits = gram * factors[k]
        logits.fill_diagonal_(-torch.inf)
        logits = logits.log_softmax(1).fill_diagonal_(0)
        values.append(-(targets[k] * logits).sum() / rows)
        slope = logits.exp_().fill_diagonal_(0).sub_(targets[k]).mul_(factors[k] / rows)
        scale_slopes.append((slope * gram).sum())
        slopes.append(slope)
    dz = torch.empty_like(u)
    total = torch.zeros_like(gram)
    for slope, start, stop in zip(reversed(slopes), reversed(starts), reversed(code_lengths)):
        total += slope
        torch.mm(total + total.T, z[:, start:stop], out=dz[:, start:stop])
    return torch.stack(values), dz.mul_(1 - soft * soft), torch.stack(scale_slopes)
