"""The expanded form of nested outputs: all prefixes side by side.

With code lengths b_1 < ... < b_m and outputs u (N, b_m), the expanded form v is (N, b_1 + ... + b_m), the
columns of u[:, :b_1], then those of u[:, :b_2], and so on. Taken as a leaf of autograd, one backward pass
gives every per-length gradient at once, and what is done bit by bit is done for all lengths in one operation.
"""

from __future__ import annotations

import torch


def expand(u: torch.Tensor, code_lengths: tuple[int, ...]) -> torch.Tensor:
    """All prefixes of `u` (N, L) side by side: (N, sum of the code lengths)."""
    return torch.cat([u[:, :b] for b in code_lengths], dim=1)


def split(v: torch.Tensor, code_lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """The m prefixes (N, b_k) of an expanded tensor, as views."""
    return v.split(code_lengths, dim=1)


def pad(v: torch.Tensor, code_lengths: tuple[int, ...]) -> torch.Tensor:
    """The prefixes of an expanded tensor, each padded with zeros to L columns: (m, N, L)."""
    padded = v.new_zeros(len(code_lengths), v.shape[0], code_lengths[-1])
    for k, part in enumerate(split(v, code_lengths)):
        padded[k, :, : part.shape[1]] = part
    return padded


def weighted_sum(padded: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_k weights[k] * padded[k]: (m, N, L) and (m,) to (N, L)."""
    return (weights @ padded.flatten(1)).view(padded.shape[1:])


def segment_matrix(code_lengths: tuple[int, ...]) -> torch.Tensor:
    """(sum of the lengths, m) of zeros and ones: which length a column of the expanded form belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(code_lengths)), torch.tensor(code_lengths))
    return torch.nn.functional.one_hot(owner, len(code_lengths)).float()
