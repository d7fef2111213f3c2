"""How a layer is learned from vectors, and where its checkpoint lies. Nothing here loads what training needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..core import check
from ..core.files import as_path
from ..losses.unlabelled import LEAST_TEMPERATURE

CHECKPOINT = "checkpoint.safetensors"
SAMPLE_ROWS = 65_536
ROTATION_STEPS = 50


@dataclass(frozen=True)
class Settings:
    """How `method="learned"` trains.

    Attributes:
        steps: optimizer steps.
        anchors: rows of a batch that bring neighbours along.
        neighbors: how many nearest rows of an anchor are drawn from.
        drawn: how many of these join the batch.
        temperature: of softmax(cosine / temperature), what a row's neighbours are.
        lr: Adam's rate at the start; it falls to 0 as a cosine.
    """

    steps: int = 6000
    anchors: int = 64
    neighbors: int = 16
    drawn: int = 7
    temperature: float = 0.025
    lr: float = 3e-3

    def __post_init__(self):
        for name in ("steps", "anchors", "neighbors", "drawn"):
            object.__setattr__(self, name, check.positive_int(getattr(self, name), name))
        object.__setattr__(self, "lr", check.number(self.lr, "lr", positive=True))
        temperature = check.number(self.temperature, "temperature", minimum=LEAST_TEMPERATURE)
        object.__setattr__(self, "temperature", temperature)
        if self.lr > 1:
            raise ValueError(f"lr: expected a rate of at most 1, got {self.lr:g}")
        if self.drawn > self.neighbors:
            raise ValueError(f"drawn: expected at most neighbors ({self.neighbors}), got {self.drawn}")


def resolve_device(value, features: torch.Tensor) -> torch.device:
    """The device to compute on: that of the features for None."""
    device = check.device(value)
    if device is None:
        return features.device
    if device.type == "meta":
        raise ValueError("device: 'meta' holds no numbers to fit to")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device: {str(device)!r} was asked for, but PyTorch sees no CUDA device")
    return device


def check_checkpoint(value, resume: bool) -> Path | None:
    """The folder for checkpoints, or None; an error where it does not suit `resume`.

    Raises:
        FileExistsError: it holds a fit, and `resume` is False.
        FileNotFoundError: it holds none, and `resume` is True.
    """
    check.flag(resume, "resume")
    if value is None:
        if resume:
            raise ValueError("resume: expected a checkpoint folder to go on from, got checkpoint=None")
        return None
    folder = as_path(value, "checkpoint")
    try:
        there = (folder / CHECKPOINT).exists()
    except OSError as error:
        raise ValueError(f"checkpoint: {str(folder)[:200]!r} can be no folder ({error.strerror})") from None
    if resume and not there:
        raise FileNotFoundError(f"checkpoint: {folder} holds no fit to go on with")
    if there and not resume:
        raise FileExistsError(
            f"checkpoint: {folder} already holds a fit; go on with it (resume=True) or take another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint: expected a folder, got {str(folder)!r}")
    return folder
