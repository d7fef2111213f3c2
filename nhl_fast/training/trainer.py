"""The trainer: one nested model, validated on a validation split, resumable after a kill at any moment."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ..core.environment import continued, environment
from ..core.files import as_path, write_json
from ..data import RetrievalData
from ..head.graphs import make_graphed, replayable
from ..head.objective import NestedObjective
from ..retrieval.metrics import evaluate_retrieval
from .backbones import build_backbone
from .checkpoint import load_state, load_weights, save_state, save_weights, write_lines
from .config import TrainConfig
from .model import HashModel, batches, encode_split
from .run_folder import CHECKPOINT, CONFIG, LOG, SPLIT, WEIGHTS, claim, free_settings, read_config, weights_file


@dataclass
class TrainResult:
    """What training gives.

    Attributes:
        model: the trained model, with the weights of the best validation (the last ones without validation).
        history: one record an epoch: epoch (from 1), total, losses, distill, weights (means over the steps, one
            number a length), conflicts (m x m share of steps with <g_i^k, g_k^k> < 0), validation ({length: mAP}
            or None), seconds, steps.
        best_epoch: the epoch of the weights.
        best_per_length: {length: epoch} where asked for.
    """

    model: HashModel
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    best_per_length: dict[int, int] = field(default_factory=dict)


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order and dropout: every epoch stands alone, so that a resumed run repeats it."""
    return (seed * 1_000_003 + epoch * 7_919 + 1) % 2**63


def resolve_device(name: str) -> torch.device:
    """The device `name`; a clear error where it is none, or is not on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a device such as 'cpu' or 'cuda', got {name!r}") from None
    if device.type == "meta":
        raise ValueError("device: 'meta' holds no numbers to train on")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device: {name!r} was asked for, but PyTorch sees no CUDA device")
    return device


class Trainer:
    """Trains a nested hash model; the same seed, device and number of threads give the same weights.

    Args:
        data: the data set with its splits.
        config: the settings.
        run_dir: folder for config, log, checkpoint and weights; None keeps everything in memory.
        backbone: a module to use in place of the one that `config.backbone` names (set that to "custom").
        weighting: a callable as `NestedObjective` takes it, with `config.weighting` set to "custom". Its state is
            not in the checkpoints: such a run cannot be resumed.
        progress: show a progress bar (only on a terminal).
        data_spec: how to load `data` again (name and options), written to the run's config.
        on_epoch: called with each epoch's record.
    """

    def __init__(
        self,
        data: RetrievalData,
        config: TrainConfig,
        run_dir=None,
        *,
        backbone: nn.Module | None = None,
        weighting: Callable | None = None,
        progress: bool = True,
        data_spec: dict | None = None,
        on_epoch: Callable[[dict], None] | None = None,
    ):
        if not isinstance(config, TrainConfig):
            raise TypeError(f"config: expected a TrainConfig, got {type(config).__name__}")
        if len(data.train) == 0:
            raise ValueError("data: the training split is empty")
        if (backbone is not None) != (config.backbone == "custom"):
            raise ValueError("backbone: give a module together with config.backbone='custom', and only then")
        if (weighting is not None) != (config.weighting == "custom"):
            raise ValueError("weighting: give a callable together with config.weighting='custom', and only then")
        if len(data.validation) == 0 and (config.patience or config.best_per_length):
            setting = "patience" if config.patience else "best_per_length"
            raise ValueError(f"{setting}: needs validation rows, but the data set has none")
        if len(data.validation) and config.validate_every > config.epochs:
            raise ValueError(
                f"validate_every: expected at most epochs ({config.epochs}), got {config.validate_every}"
            )
        if config.best_per_length and run_dir is None:
            raise ValueError("best_per_length: needs a run_dir to keep each length's weights")
        self.data, self.config, self.progress, self.on_epoch = data, config, progress, on_epoch
        self.run_dir = None if run_dir is None else as_path(run_dir, "run_dir")
        self.data_spec = data_spec
        self.device = resolve_device(config.device)
        with torch.random.fork_rng(self._rng_devices()):
            torch.manual_seed(config.seed)
            if backbone is None:
                backbone = build_backbone(
                    config.backbone,
                    data.input_shape,
                    hidden=config.hidden,
                    dropout=config.dropout,
                    weights=config.weights,
                )
            self.model = HashModel(backbone, config.code_lengths).to(self.device)
        loss = config.build_loss(data.num_classes, len(data.train), data.train).to(self.device)
        # With fp16 an overflow is the scaler's to handle: it skips the step and lowers the scale.
        self.objective = NestedObjective(
            self.model.layer,
            loss,
            config.distill_weight,
            config.weighting if weighting is None else weighting,
            teacher=config.teacher,
            check_finite=config.amp != "fp16",
        ).to(self.device)
        self.backbone = torch.compile(self.model.backbone) if config.compile else self.model.backbone
        self.optimizer = self._optimizer()
        self.scheduler = None
        if config.schedule == "cosine":
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.momentum_model = None
        if loss.momentum_bank and loss.bank is not None:
            average = get_ema_multi_avg_fn(config.momentum)
            self.momentum_model = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True).eval()
        self.history: list[dict] = []
        self.best = {"score": None, "epoch": 0, "bad": 0, "lengths": {}}
        self._best_weights: dict[str, dict] = {}
        self._fitted = False
        self._step_of_head = None

    def _rng_devices(self) -> list[int]:
        return [torch.cuda.current_device()] if self.device.type == "cuda" else []

    def _optimizer(self) -> torch.optim.Optimizer:
        config, seen, parameters = self.config, set(), []
        for p in (*self.model.parameters(), *self.objective.loss.parameters()):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                parameters.append(p)
        if not parameters:
            raise ValueError("backbone: nothing to train, every parameter is frozen")
        if config.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay, momentum=0.9)
        cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return cls(parameters, lr=config.lr, weight_decay=config.weight_decay)

    def fit(self, resume: bool = False) -> TrainResult:
        """Train to the end of `config.epochs` or of patience.

        Args:
            resume: go on with the run in the run folder, from its last checkpoint. The result is that of an
                unbroken run.

        Raises:
            FileExistsError: the folder holds a run, or something else, and `resume` is False.
            FileNotFoundError: there is no run to resume.
            RunInUseError: another process trains or evaluates there.
            ValueError: the folder's run has other settings, or its files are damaged; or training diverged.
        """
        if self._fitted:
            raise RuntimeError("fit: this trainer was used; make another (with resume=True to go on)")
        if resume and self.run_dir is None:
            raise ValueError("resume: expected a trainer with a run_dir, but this one has none to go on with")
        self._fitted = True
        with contextlib.nullcontext() if self.run_dir is None else claim(self.run_dir, resume):
            return self._fit(resume)

    def _fit(self, resume: bool) -> TrainResult:
        start = self._open(resume)
        epochs = range(start, self.config.epochs + 1)
        bar = tqdm(epochs, desc="training", unit="epoch", disable=None if self.progress else True, leave=False)
        with torch.random.fork_rng(self._rng_devices()), _deterministic(self.device):
            for epoch in bar:
                if self._out_of_patience():
                    break
                record = self._epoch(epoch)
                record["validation"] = self._validate(epoch)
                self._close_epoch(record)
                if record["validation"]:
                    scores = record["validation"].values()
                    bar.set_postfix(loss=f"{record['total']:.3f}", mAP=f"{sum(scores) / len(scores):.3f}")
        return self._finish()

    def _epoch(self, epoch: int) -> dict:
        """One pass over the training rows; its record. Reads nothing back from the device before its end."""
        config, objective = self.config, self.objective
        torch.manual_seed(epoch_seed(config.seed, epoch))
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
        order = torch.randperm(len(self.data.train), generator=generator)
        self.data.train.set_epoch(epoch)
        if hasattr(objective.loss, "set_epoch"):
            objective.loss.set_epoch(epoch - 1)
        self.model.train()
        objective.train()
        sums, conflicts, steps = None, None, 0
        started = time.perf_counter()
        number = -(-len(order) // config.batch_size)
        for inputs, labels, index in batches(self.data.train, config.batch_size, order, config.workers):
            result = self._step(inputs, labels, index, last=steps + 1 == number)
            row = torch.stack([result.losses, result.distill, result.weights])
            total = result.total.detach()
            sums = (row, total) if sums is None else (sums[0] + row, sums[1] + total)
            if result.dots is not None:
                negative = (result.dots < 0).float()
                conflicts = negative if conflicts is None else conflicts + negative
            steps += 1
        if self.scheduler is not None:
            self.scheduler.step()
        losses, distill, weights = (sums[0] / steps).tolist()
        return {
            "epoch": epoch,
            "total": sums[1].item() / steps,
            "losses": losses,
            "distill": distill,
            "weights": weights,
            "conflicts": None if conflicts is None else (conflicts / steps).tolist(),
            "seconds": time.perf_counter() - started,
            "steps": steps,
        }

    def _step(self, inputs, labels, index, last: bool):
        config = self.config
        inputs, labels, index = (self._to_device(t) for t in (inputs, labels, index))
        with self._autocast():
            features = self.backbone(inputs)
            if self.momentum_model is not None:
                with torch.no_grad():
                    momentum = self.momentum_model(inputs)
                self.objective.loss.bank.update(index, momentum.float(), labels)
        result = self._evaluate(features, labels, index)
        self.scaler.scale(result.total / config.accumulate).backward()
        self._pending = getattr(self, "_pending", 0) + 1
        if last or self._pending == config.accumulate:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self._pending = 0
            if self.momentum_model is not None:
                self.momentum_model.update_parameters(self.model)
        return result

    def _evaluate(self, features, labels, index):
        """The objective's result; on a CUDA device replayed as graphs, captured at the first batch."""
        if self._step_of_head is None:
            graphed = replayable(self.objective, features, labels)
            self._step_of_head = make_graphed(self.objective, features, labels, index) if graphed else self.objective
        return self._step_of_head(features, labels, index)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _autocast(self):
        if self.config.amp is None:
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.config.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def _validate(self, epoch: int) -> dict[str, float] | None:
        """mAP of every length on the validation queries, ranked against the training rows (ties: expected)."""
        data, config = self.data, self.config
        if len(data.validation) == 0 or epoch % config.validate_every:
            return None
        queries = encode_split(self.model, data.validation, workers=config.workers)
        database = encode_split(self.model, data.validation_database, workers=config.workers)
        result = evaluate_retrieval(
            queries,
            database,
            data.validation.labels,
            data.validation_database.labels,
            lengths=config.code_lengths,
            ties="expected",
        )
        return {str(b): value for b, value in result.mean_average_precision.items()}

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.best["bad"] >= self.config.patience

    def _close_epoch(self, record: dict) -> None:
        """Write the checkpoint, then the weights where they are the best so far, then the log."""
        self.history.append(record)
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
        if self.run_dir is not None:
            save_state(self.run_dir / CHECKPOINT, self._state())
        for length in self._best_now():
            self._keep_weights(length)
        if self.run_dir is not None:
            with open(self.run_dir / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _best_now(self) -> list[int | None]:
        """For which the weights of the last epoch are the best: None (all lengths together), and single lengths."""
        epoch = len(self.history)
        shared = [None] if self.best["epoch"] == epoch else []
        return shared + [int(b) for b, (_, best) in self.best["lengths"].items() if best == epoch]

    def _keep_weights(self, length: int | None) -> None:
        if self.run_dir is None:
            state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self._best_weights[weights_file(length)] = state
        else:
            save_weights(self.run_dir / weights_file(length), self.model)

    def _state(self) -> dict:
        return {
            "epoch": len(self.history),
            "model": self.model.state_dict(),
            "loss": self.objective.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "momentum_model": None if self.momentum_model is None else self.momentum_model.state_dict(),
            "history": self.history,
            "best": self.best,
        }

    def _open(self, resume: bool) -> int:
        """Prepare the run folder; the number of the next epoch."""
        if self.run_dir is None:
            return 1
        described = {
            "config": self.config.to_dict(),
            "data": self.data_spec or {"name": self.data.name},
            "data_fingerprint": self.data.run_fingerprint,
        }
        checkpoint, now = self.run_dir / CHECKPOINT, environment(self.device)
        if resume and self.config.weighting == "custom":
            raise ValueError("weighting: a run whose weights come from a callable cannot be resumed")
        stored = read_config(self.run_dir) if resume else {}
        if resume:
            self._check_same_run(stored, described)
        if not checkpoint.exists():  # new, or killed in its first epoch
            # The settings come first: they make the folder a run that can be resumed.
            write_json(self.run_dir / CONFIG, {**described, "environments": continued([], now, 1)})
            self.data.save_split(self.run_dir / SPLIT)
            write_lines(self.run_dir / LOG, [])
            return 1
        state = load_state(checkpoint)
        self.model.load_state_dict(state["model"])
        self.objective.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.momentum_model is not None:
            self.momentum_model.load_state_dict(state["momentum_model"])
        self.history, self.best = state["history"], state["best"]
        machines = continued(stored.get("environments", []), now, state["epoch"] + 1)
        write_json(self.run_dir / CONFIG, {**described, "environments": machines})
        write_lines(self.run_dir / LOG, self.history)
        for length in self._best_now():  # a kill may have come between the checkpoint and the weights
            self._keep_weights(length)
        return state["epoch"] + 1

    def _check_same_run(self, stored: dict, described: dict) -> None:
        if stored.get("data_fingerprint") != described["data_fingerprint"]:
            raise ValueError(f"run_dir: {self.run_dir} was trained on other data, or on another split of it")
        # A setting that came later than the run has its default there.
        old, new = TrainConfig.from_dict(stored["config"]).to_dict(), described["config"]
        changed = [k for k in new if k not in free_settings(new["schedule"]) and old[k] != new[k]]
        if changed:
            differences = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in changed)
            raise ValueError(f"run_dir: {self.run_dir} was trained with other settings ({differences})")

    def _finish(self) -> TrainResult:
        if self.run_dir is not None and (self.run_dir / WEIGHTS).exists():
            load_weights(self.run_dir / WEIGHTS, self.model)
        elif WEIGHTS in self._best_weights:
            self.model.load_state_dict(self._best_weights[WEIGHTS])
        self.model.eval()
        lengths = {int(b): epoch for b, (_, epoch) in self.best["lengths"].items()}
        return TrainResult(self.model, self.history, self.best["epoch"], lengths)


@contextlib.contextmanager
def _deterministic(device: torch.device):
    """cuDNN's deterministic kernels for the time of a run; CPU kernels are deterministic as they are."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def train(
    data: RetrievalData, config: TrainConfig | None = None, run_dir=None, *, resume=False, **options
) -> TrainResult:
    """Train a nested hash model: `Trainer(data, config, run_dir, **options).fit(resume)`."""
    return Trainer(data, TrainConfig() if config is None else config, run_dir, **options).fit(resume)


def load_model(
    run_dir, data: RetrievalData, *, length: int | None = None, backbone: nn.Module | None = None
) -> HashModel:
    """The trained model of a run folder, in evaluation mode.

    Args:
        run_dir: the folder.
        data: the run's data (for the shape of the inputs).
        length: with best-per-length runs, the length whose best weights to load; None for the shared ones.
        backbone: the module, for runs with a custom backbone.
    """
    run_dir = Path(as_path(run_dir, "run_dir"))
    config = TrainConfig.from_dict(read_config(run_dir)["config"])
    if backbone is None:
        if config.backbone == "custom":
            raise ValueError("backbone: this run has a custom backbone; give the module")
        backbone = build_backbone(config.backbone, data.input_shape, hidden=config.hidden, dropout=config.dropout)
    model = HashModel(backbone, config.code_lengths)
    load_weights(run_dir / weights_file(length), model)
    return model.eval()
