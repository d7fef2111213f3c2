"""A trained model for use: codes of new features, images and picture files, without the training data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import as_path
from ..core.names import FIT_DATA
from ..data.images import Normalize, center_view, find_pictures, open_picture, resize_for
from ..retrieval.codes import mask_tail, num_bytes
from .model import HashModel, resolve_device
from .progress import watch
from .run import Run, load_model
from .run_folder import RunFolder

_CIFAR_SIDE = 32


class TrainedModel:
    """A run's model.

    Attributes:
        model: the `HashModel`, in evaluation mode.
        code_lengths: its code lengths in bits.
        input_shape: the shape of one input.
        class_names: of the training data, or None.
    """

    def __init__(self, model: HashModel, inputs: dict, data_spec: dict):
        self.model, self._data = model, data_spec
        self.input_shape, self.class_names = tuple(inputs["shape"]), inputs["class_names"]
        scale = inputs["standardization"]
        self._scale = None if scale is None else tuple(torch.tensor(part) for part in scale)

    @property
    def code_lengths(self) -> tuple[int, ...]:
        return self.model.code_lengths

    @torch.no_grad()
    def encode(
        self, inputs, length: int | None = None, batch_size: int = 256, *, progress: bool = False
    ) -> torch.Tensor:
        """Packed codes (N, ceil(length/8)) uint8 on the CPU.

        Args:
            inputs: features or images (N, *input_shape), a tensor or array of numbers on the scale of the training
                file; or paths of pictures: one path, a folder (see `find_pictures`) or a sequence of paths.
            length: keep the first bits only; None keeps all.
            batch_size: inputs at once.
            progress: show a bar on a terminal where it takes longer than a moment.

        Raises:
            TypeError, ValueError: inputs of another shape, not finite, or paths for a model of features.
            FileNotFoundError: no such picture.
        """
        longest = self.code_lengths[-1]
        length = longest if length is None else check.positive_int(length, "length")
        if length > longest:
            raise ValueError(f"length: expected 1 to {longest} bits, got {length}")
        batch_size = check.positive_int(batch_size, "batch_size")
        device = next(self.model.parameters()).device
        codes = [torch.empty(0, num_bytes(longest), dtype=torch.uint8)]
        if isinstance(inputs, (torch.Tensor, np.ndarray)):
            parts, count = self._numbers(inputs).split(batch_size) if len(inputs) else (), len(inputs)
        else:
            paths = self._paths(inputs)
            count = len(paths)
            parts = (self._pictures(paths[i : i + batch_size]) for i in range(0, len(paths), batch_size))
        parts = watch(parts, -(-count // batch_size), check.flag(progress, "progress"))
        codes += [self.model.encode_batch(part.to(device)).cpu() for part in parts]
        return mask_tail(torch.cat(codes)[:, : num_bytes(length)], length)

    def _numbers(self, inputs) -> torch.Tensor:
        if isinstance(inputs, np.ndarray):
            if inputs.dtype.kind not in "biuf":
                raise TypeError(f"inputs: expected an array of numbers, got {check.describe(inputs)}")
            inputs = torch.from_numpy(inputs.astype(np.float32))
        if inputs.is_complex():
            raise TypeError(f"inputs: expected numbers, got {check.describe(inputs)}")
        if tuple(inputs.shape[1:]) != self.input_shape:
            raise ValueError(
                f"inputs: expected rows of shape {self.input_shape} in an array of {len(self.input_shape) + 1} "
                f"dimensions, got one of shape {tuple(inputs.shape)}"
            )
        inputs = inputs.detach().float().cpu()
        if self._scale is not None:
            inputs = (inputs - self._scale[0]) / self._scale[1]
        if not torch.isfinite(inputs).all():
            raise ValueError("inputs: expected finite numbers, got NaN or infinity")
        return inputs

    def _paths(self, inputs) -> list[Path]:
        if self._data.get("name") not in ("list", "folder", "cifar10"):
            raise TypeError(
                f"inputs: this model takes numbers of shape {self.input_shape}, not pictures, "
                f"got {check.describe(inputs)}"
            )
        if isinstance(inputs, (str, os.PathLike)):
            path = as_path(inputs, "inputs")
            return find_pictures(path) if path.is_dir() else [path]
        if not isinstance(inputs, Sequence):
            raise TypeError(f"inputs: expected a tensor, an array or paths, got {check.describe(inputs)}")
        return [as_path(path, "inputs") for path in inputs]

    def _pictures(self, paths: list[Path]) -> torch.Tensor:
        """Pictures as evaluation saw the data set's own: their middle, at its size."""
        side = self.input_shape[-1]
        upright = self._data.get("upright", True)
        if self._data["name"] == "cifar10":
            resize, cut, normalize = _CIFAR_SIDE, _CIFAR_SIDE, Normalize(self._data.get("image_size"))
        else:
            resize, cut, normalize = resize_for(side, self._data.get("resize")), side, Normalize()
        views = [center_view(open_picture(str(path), upright), resize, cut) for path in paths]
        return normalize(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2))


def load(run, *, length: int | None = None, device: str = "cpu", backbone=None, data_options: dict | None = None):
    """The trained model of a run folder, without its training data.

    Args:
        run: the folder.
        length: with best-per-length runs, the length whose best weights to load; None for the shared ones.
        device: where the model goes.
        backbone: the module, for runs with a custom backbone.
        data_options: of a run from before version 0.2, which needs its data: where they lie now.

    Returns:
        A `TrainedModel`.

    Raises:
        FileNotFoundError, ValueError: no run there, or a damaged one.
    """
    folder = RunFolder(run)
    stored = folder.read_config()
    if stored["data"].get("name") == FIT_DATA:
        raise ValueError(f"run: {run} is a fit of vectors; open it with nhl_fast.fit.run.FitRun.open")
    inputs = stored.get("inputs")
    if inputs is None:
        opened = Run.open(run, data_options, device)
        return TrainedModel(opened.model, opened.data.describe_inputs(), stored["data"])
    if not isinstance(inputs, dict) or not {"shape", "standardization", "class_names"} <= set(inputs):
        raise ValueError(f"run: {folder.config} is damaged: its inputs are not described")
    model = load_model(folder.path, tuple(inputs["shape"]), length=length, backbone=backbone)
    return TrainedModel(model.to(resolve_device(device)), inputs, stored["data"])
