"""The head computes in float32 (or float64), also inside autocast."""

from __future__ import annotations

import contextlib

import torch


def scaled_training(like: torch.Tensor) -> bool:
    """Whether float16 is in use on a CUDA device: a GradScaler then takes overflows in its stride."""
    if like.device.type != "cuda":
        return False
    mixed = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
    return mixed or like.dtype == torch.float16


def no_autocast(like: torch.Tensor):
    """Context without autocast on the tensor's device; free where autocast is off."""
    if like.device.type != "meta" and torch.is_autocast_enabled(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return contextlib.nullcontext()
