"""Feature extractors for the trainer: any nn.Module with `out_features` serves; these come built in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from ..core import check
from ..core.extras import require
from ..core.names import BACKBONES as NAMES


class MLP(nn.Module):
    """Features (N, d) to (N, width): hidden layers with ReLU."""

    def __init__(self, in_features: int, widths: Sequence[int] = (512,), dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.out_features = in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class SmallConvNet(nn.Module):
    """Small images (N, C, H, W), from 8 x 8 on, to (N, width) features."""

    def __init__(self, in_channels: int = 3, width: int = 256):
        super().__init__()
        channels = (in_channels, 32, 64, 128)
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(4 * channels[-1], width), nn.ReLU())
        self.out_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


class _Headless(nn.Module):
    """A torchvision model without its classifier."""

    def __init__(self, model: nn.Module, head: str, out_features: int):
        super().__init__()
        setattr(model, head, nn.Identity())
        self.model, self.out_features = model, out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def build_backbone(
    name: str, input_shape: Sequence[int], *, hidden: Sequence[int] = (512,), dropout: float = 0.0, weights=None
) -> nn.Module:
    """A backbone for inputs of `input_shape` (without the batch dimension), with `out_features`.

    Args:
        name: "mlp" (flattens, hidden layers `hidden`), "conv" (a small convolutional net for small images),
            "identity" (the features as they are), or torchvision's "resnet18", "resnet50", "vit_b_16" (extra
            `vision`).
        input_shape: (d,) for features, (C, H, W) for images.
        hidden: widths of the hidden layers ("mlp"); the last one is the width for "conv" too.
        dropout: dropout probability after each hidden layer ("mlp").
        weights: torchvision's name of pretrained weights, None for random ones.
    """
    check.one_of(name, "backbone", NAMES)
    shape = tuple(check.positive_int(s, "input_shape") for s in input_shape)
    hidden = tuple(check.positive_int(w, "hidden") for w in hidden)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability below 1, got {dropout}")
    if name == "mlp":
        if not hidden:
            raise ValueError("hidden: expected at least one width, got none (use the backbone 'identity')")
        return MLP(math.prod(shape), hidden, dropout)
    if name == "identity":
        return MLP(math.prod(shape), ())
    if len(shape) != 3:
        raise ValueError(f"backbone: {name!r} takes images (C, H, W), but the inputs have shape {shape}; use 'mlp'")
    if name == "conv":
        return SmallConvNet(shape[0], hidden[-1] if hidden else 256)
    require("torchvision", "vision", f"the backbone {name!r}")
    import torchvision.models

    if shape[0] != 3:
        raise ValueError(f"backbone: {name!r} takes images of 3 channels, but the inputs have shape {shape}")
    model = getattr(torchvision.models, name)(weights=weights)
    if name == "vit_b_16":
        return _Headless(model, "heads", model.hidden_dim)
    return _Headless(model, "fc", model.fc.in_features)
