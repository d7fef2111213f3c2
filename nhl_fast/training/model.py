"""A backbone with a nested hash layer: what is trained, saved and used to encode."""

from __future__ import annotations

import signal

import torch
from torch import nn

from ..core import check
from ..head.layer import NestedHashLayer
from .progress import watch


class HashModel(nn.Module):
    """Inputs to raw outputs (N, L) and packed codes.

    Args:
        backbone: any module from a batch of inputs to features (N, d); `out_features` gives d unless
            `in_features` does.
        code_lengths: the code lengths of the nested hash layer.
        in_features: d, where the backbone does not say it.
    """

    def __init__(
        self, backbone: nn.Module, code_lengths=check.DEFAULT_CODE_LENGTHS, *, in_features: int | None = None
    ):
        super().__init__()
        width = getattr(backbone, "out_features", None) if in_features is None else in_features
        if width is None:
            raise ValueError("in_features: the backbone has no attribute out_features; say the features' width")
        self.backbone = backbone
        self.layer = NestedHashLayer(width, code_lengths)

    @property
    def code_lengths(self) -> tuple[int, ...]:
        return self.layer.code_lengths

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw outputs (N, L)."""
        return self.layer.project(self.backbone(x))

    @torch.no_grad()
    def encode_batch(self, x: torch.Tensor) -> torch.Tensor:
        """Packed codes (N, ceil(L/8)) uint8 of one batch, as the module stands (see `encode_split`)."""
        features = self.backbone(x)
        try:
            return self.layer.encode(features)
        except ValueError as error:
            raise ValueError(
                f"model: its outputs have no codes (bad inputs, or training diverged: {error})"
            ) from error


def batches(split, batch_size: int, order: torch.Tensor | None = None, workers: int = 0, rank=0, ranks=1):
    """(inputs, labels, positions) over a split, in `order` (default: as they stand); of each batch a rank's share.

    Rows in memory are indexed batch by batch; pictures opened one by one go through a DataLoader.
    """
    order = torch.arange(len(split)) if order is None else order
    parts = order.split(batch_size) if len(order) else ()
    parts = [part.tensor_split(ranks)[rank] for part in parts]
    if split.in_memory:
        for index in parts:
            yield (*split.batch(index), index)
        return
    sampler = [part.tolist() for part in parts]
    loader = torch.utils.data.DataLoader(split, batch_sampler=sampler, num_workers=workers)
    for inputs, labels, index in _start(loader):
        yield inputs, labels, index.long()


def _start(loader):
    """The loader's iterator; its workers leave Ctrl-C to this process, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@torch.no_grad()
def encode_split(
    model: HashModel, split, batch_size: int = 256, workers: int = 0, progress: bool = False
) -> torch.Tensor:
    """Packed codes (N, ceil(L/8)) uint8 on the CPU of every row of a split, in evaluation mode.

    `progress` shows a bar on a terminal where it takes longer than a moment.
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        parts = watch(batches(split, batch_size, workers=workers), -(-len(split) // batch_size), progress)
        codes = [model.encode_batch(x.to(device)).cpu() for x, _, _ in parts]
    finally:
        model.train(was_training)
    if not codes:
        return torch.empty(0, -(-model.code_lengths[-1] // 8), dtype=torch.uint8)
    return torch.cat(codes)


def resolve_device(name: str) -> torch.device:
    """The device `name`; a clear error where it is none, or is not on this machine."""
    if not isinstance(name, (str, torch.device)):
        raise TypeError(f"device: expected a device such as 'cpu' or 'cuda', got {check.describe(name)}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a device such as 'cpu' or 'cuda', got {name!r}") from None
    if device.type == "meta":
        raise ValueError("device: 'meta' holds no numbers to train on")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device: {name!r} was asked for, but PyTorch sees no CUDA device")
    return device
