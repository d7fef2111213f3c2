"""The head computes in float32 (or float64), also inside autocast."""

from __future__ import annotations

import contextlib

import torch


def no_autocast(like: torch.Tensor):
    """Context without autocast on the tensor's device; free where autocast is off."""
    if like.device.type != "meta" and torch.is_autocast_enabled(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return contextlib.nullcontext()
