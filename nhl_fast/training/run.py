"""A run folder, opened: its settings, data and model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..core import check
from ..data import RetrievalData, load_dataset
from .backbones import build_backbone
from .checkpoint import load_weights
from .config import TrainConfig
from .model import HashModel, resolve_device
from .run_folder import RunFolder


@dataclass
class Run:
    """A run folder, opened: its settings, data and model."""

    folder: RunFolder
    config: dict
    data: RetrievalData
    model: HashModel

    @classmethod
    def open(cls, path, data_options: dict | None = None, device: str | None = None) -> Run:
        """Open a run folder.

        Args:
            path: the folder.
            data_options: replace those it was trained with (a moved `root`, say).
            device: where its model goes; None is the CPU.

        Raises:
            FileNotFoundError: no run there, or its data set's files are gone.
            ValueError: damaged files, or data that differs from what was trained on.
        """
        folder = RunFolder(path)
        stored = folder.read_config()
        spec = {**stored["data"], **(data_options or {})}
        data = load_dataset(spec.pop("name"), split_file=folder.split, **spec)
        if data.run_fingerprint != stored["data_fingerprint"]:
            raise ValueError(f"run: {folder.path} was trained on other data than what its data set now holds")
        model = load_model(folder.path, data).to(resolve_device(device or "cpu"))
        return cls(folder, stored["config"], data, model)

    @property
    def code_lengths(self) -> tuple[int, ...]:
        return self.model.code_lengths


def load_model(
    run_dir, data: RetrievalData | tuple[int, ...], *, length: int | None = None, backbone: nn.Module | None = None
) -> HashModel:
    """The trained model of a run folder, in evaluation mode.

    Args:
        run_dir: the folder.
        data: the run's data, or the shape of one input.
        length: with best-per-length runs, the length whose best weights to load; None for the shared ones.
        backbone: the module, for runs with a custom backbone.
    """
    folder = RunFolder(run_dir, "run_dir")
    shape = data if isinstance(data, tuple) else data.input_shape
    config = TrainConfig.from_dict(folder.read_config()["config"])
    if backbone is None:
        if config.backbone == "custom":
            raise ValueError("backbone: this run has a custom backbone; give the module")
        backbone = build_backbone(config.backbone, shape, hidden=config.hidden, dropout=config.dropout)
    if length is not None and not folder.weights(check.positive_int(length, "length")).is_file():
        raise ValueError(f"length: {folder.path} keeps no weights of their own for {length} bits")
    model = HashModel(backbone, config.code_lengths)
    load_weights(folder.weights(length), model)
    return model.eval()
