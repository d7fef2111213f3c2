import importlib.util

import pytest
import torch

from nhl_fast.training.backbones import build_backbone
from nhl_fast.training.model import HashModel


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("mlp", (64,), 512),
        ("mlp", (3, 8, 8), 512),
        ("identity", (64,), 64),
        ("identity", (1, 8, 8), 64),
        ("conv", (1, 8, 8), 512),
        ("conv", (3, 32, 32), 512),
    ],
)
def test_shapes(name, shape, width):
    backbone = build_backbone(name, shape)
    assert backbone.out_features == width
    assert backbone(torch.randn(2, *shape)).shape == (2, width)
    assert HashModel(backbone, (4, 9))(torch.randn(2, *shape)).shape == (2, 9)


def test_hidden_widths():
    backbone = build_backbone("mlp", (5,), hidden=(7, 3), dropout=0.5)
    assert backbone.out_features == 3
    assert sum(p.numel() for p in backbone.parameters()) == 5 * 7 + 7 + 7 * 3 + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg", (3, 32, 32)), "backbone"),
        (("conv", (64,)), "images"),
        (("mlp", (0,)), "input_shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="hidden"):
        build_backbone("mlp", (4,), hidden=())
    with pytest.raises(ValueError, match="dropout"):
        build_backbone("mlp", (4,), dropout=1.0)
    with pytest.raises(ValueError, match="in_features"):
        HashModel(torch.nn.Identity())


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_missing_torchvision_says_what_to_install():
    with pytest.raises(ImportError, match=r"nhl-fast\[vision\]"):
        build_backbone("resnet50", (3, 224, 224))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048), ("vit_b_16", 768)])
def test_torchvision(name, width):
    backbone = build_backbone(name, (3, 224, 224))
    assert backbone.out_features == width
    assert backbone(torch.randn(1, 3, 224, 224)).shape == (1, width)
    with pytest.raises(ValueError, match="3 channels"):
        build_backbone(name, (1, 224, 224))
