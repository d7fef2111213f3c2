"""The compiled training steps. They register here on the operations below; Triton's is imported at its first use."""

from __future__ import annotations

import torch

from ..head.layer import ENCODE, PROJECT
from ..head.step import STEP
from ..losses.base import LOSS
from . import native  # noqa: F401 (registers what C++ serves)


def _fused():
    """The module of the fused step, which imports Triton."""
    from .fused import step

    return step


def _refuses_projection(x, layer) -> str | None:
    return _fused().refuses_projection(layer, x)


def _leaves_projection(x, layer) -> str | None:
    # Recorded, PyTorch's own product can be differentiated twice.
    parameters = layer.hash_layer.parameters()
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return "a gradient is recorded"
    return _refuses_projection(x, layer)


@PROJECT.serves("triton", on="cuda", refuses=_refuses_projection, leaves=_leaves_projection)
def _project(x, layer) -> torch.Tensor:
    return torch.ops.nhl_fast.project(x, layer.hash_layer.weight, layer.hash_layer.bias, False)[0]


@ENCODE.serves("triton", on="cuda", refuses=_refuses_projection)
def _encode(x, layer) -> torch.Tensor:
    return torch.ops.nhl_fast.encode(x, layer.hash_layer.weight, layer.hash_layer.bias)


@LOSS.serves("triton", on="cuda", refuses=lambda loss, u, labels, index: _fused().refuses_loss(loss, u, labels))
def _loss_values(loss, u, labels, index) -> torch.Tensor:
    return _fused().loss_values(loss, u, labels, index)


@STEP.serves("triton", on="cuda", refuses=lambda request: _fused().refuses_step(request))
def _step(request):
    return _fused().step(request)
