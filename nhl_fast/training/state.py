"""The state of a training run, kept epoch by epoch in its folder or in memory, and taken up again after a kill."""

from __future__ import annotations

import json

import torch

from ..core.environment import continued, environment
from ..core.files import write_json
from ..data import RetrievalData
from .checkpoint import load_state, load_weights, save_state, save_weights, write_lines
from .config import TrainConfig
from .model import HashModel
from .run_folder import RunFolder, free_settings


class TrainState:
    """What training has come to.

    Args:
        folder: where it is kept; None keeps the best weights in memory.
        config: the settings.
        data: the data set.
        model: the model in training.
        others: what else a checkpoint holds, by name: objects with `state_dict` and `load_state_dict`, or None.

    Attributes:
        history: one record an epoch.
        best: {"score": best mean of validation or None, "epoch": its epoch, "bad": validations since, "lengths":
            {length as text: [best validation, its epoch]}}.
    """

    def __init__(
        self, folder: RunFolder | None, config: TrainConfig, data: RetrievalData, model: HashModel, **others
    ):
        self.folder, self.config, self.data, self.model = folder, config, data, model
        self.history: list[dict] = []
        self.best = {"score": None, "epoch": 0, "bad": 0, "lengths": {}}
        self._parts = {"model": model, **others}
        self._weights: dict[int | None, dict] = {}

    def open(self, resume: bool, data_spec: dict | None, device: torch.device) -> int:
        """Prepare the run folder, which the caller owns; the number of the next epoch.

        Args:
            resume: go on from the folder's checkpoint.
            data_spec: how to load the data again, for the folder's settings.
            device: of the training, for the record of machines.
        """
        folder = self.folder
        if folder is None:
            return 1
        described = {
            "config": self.config.to_dict(),
            "data": data_spec or {"name": self.data.name},
            "data_fingerprint": self.data.run_fingerprint,
        }
        now = environment(device)
        if resume and self.config.weighting == "custom":
            raise ValueError("weighting: a run whose weights come from a callable cannot be resumed")
        stored = folder.read_config() if resume else {}
        if resume:
            self._check_same_run(stored, described)
        if not folder.checkpoint.exists():  # new, or killed in its first epoch
            # The settings come first: they make the folder a run that can be resumed.
            described["inputs"] = self.data.describe_inputs()
            write_json(folder.config, {**described, "environments": continued([], now, 1)})
            self.data.save_split(folder.split)
            write_lines(folder.log, [])
            return 1
        self.load(load_state(folder.checkpoint))
        epoch = len(self.history) + 1
        machines = continued(stored.get("environments", []), now, epoch)
        described["inputs"] = self.data.describe_inputs()
        write_json(folder.config, {**described, "environments": machines})
        write_lines(folder.log, self.history)
        for length in self._best_now():  # a kill may have come between the checkpoint and the weights
            self._keep_weights(length)
        return epoch

    def close_epoch(self, record: dict) -> None:
        """Keep an epoch: the checkpoint first, then the weights where they are the best so far, then the log."""
        self.history.append(record)
        self._judge(record)
        if self.folder is not None:
            save_state(self.folder.checkpoint, self.contents())
        for length in self._best_now():
            self._keep_weights(length)
        if self.folder is not None:
            with open(self.folder.log, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    def out_of_patience(self) -> bool:
        return self.config.patience is not None and self.best["bad"] >= self.config.patience

    def load_best(self) -> None:
        """The best weights, into the model."""
        if self.folder is not None and self.folder.weights().exists():
            load_weights(self.folder.weights(), self.model)
        elif None in self._weights:
            self.model.load_state_dict(self._weights[None])

    def _judge(self, record: dict) -> None:
        scores, best = record["validation"], self.best
        if len(self.data.validation) == 0:
            best["epoch"] = record["epoch"]
        elif scores:
            mean = sum(scores.values()) / len(scores)
            if best["score"] is None or mean > best["score"]:
                best.update(score=mean, epoch=record["epoch"], bad=0)
            else:
                best["bad"] += 1
            if self.config.best_per_length:
                for b, value in scores.items():
                    if b not in best["lengths"] or value > best["lengths"][b][0]:
                        best["lengths"][b] = [value, record["epoch"]]

    def _best_now(self) -> list[int | None]:
        """For which the weights of the last epoch are the best: None (all lengths together), and single lengths."""
        epoch = len(self.history)
        shared = [None] if self.best["epoch"] == epoch else []
        return shared + [int(b) for b, (_, best) in self.best["lengths"].items() if best == epoch]

    def _keep_weights(self, length: int | None) -> None:
        if self.folder is None:
            self._weights[length] = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        else:
            save_weights(self.folder.weights(length), self.model)

    def contents(self) -> dict:
        """All that a checkpoint holds."""
        parts = {name: None if part is None else part.state_dict() for name, part in self._parts.items()}
        return {"epoch": len(self.history), **parts, "history": self.history, "best": self.best}

    def load(self, state: dict) -> None:
        """Take up what `contents` gave."""
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        self.history, self.best = state["history"], state["best"]

    def _check_same_run(self, stored: dict, described: dict) -> None:
        path = self.folder.path
        if stored.get("data_fingerprint") != described["data_fingerprint"]:
            raise ValueError(f"run_dir: {path} was trained on other data, or on another split of it")
        # A setting that came later than the run has its default there.
        old, new = TrainConfig.from_dict(stored["config"]).to_dict(), described["config"]
        changed = [k for k in new if k not in free_settings(new["schedule"]) and old[k] != new[k]]
        if changed:
            differences = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in changed)
            raise ValueError(f"run_dir: {path} was trained with other settings ({differences})")
