"""The trainer: one nested model, validated on a validation split, resumable after a kill at any moment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..core import check, ranks
from ..data import RetrievalData
from ..head.graphs import make_graphed, replayable
from ..head.objective import NestedObjective
from ..losses.bank import banks, joined_rows
from ..losses.base import NestedLoss
from ..retrieval.metrics import evaluate_retrieval
from .backbones import build_backbone
from .callbacks import Callback, check_callbacks
from .config import TrainConfig
from .lock import claim
from .model import HashModel, batches, encode_split, resolve_device
from .progress import Progress
from .run_folder import RunFolder
from .state import TrainState


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


def _check_loss(loss, config: TrainConfig, data: RetrievalData) -> None:
    """Raise unless a loss is given where the settings say so, one that fits them and the data."""
    if (loss is not None) != (config.loss == "custom"):
        raise ValueError("loss: give a nested loss together with config.loss='custom', and only then")
    if loss is None:
        return
    if not isinstance(loss, NestedLoss):
        raise TypeError(
            f"loss: expected a nested loss (wrap yours in nhl_fast.losses.PerLength), got {check.describe(loss)}"
        )
    if loss.code_lengths != config.code_lengths:
        raise ValueError(
            f"loss: its code lengths {loss.code_lengths} differ from the settings' {config.code_lengths}"
        )
    if loss.num_classes not in (None, data.num_classes):
        raise ValueError(f"loss: made for {loss.num_classes} classes, but the data set has {data.num_classes}")
    for bank in banks(loss):
        if bank.num_train < len(data.train):
            raise ValueError(f"loss: made for {bank.num_train} training rows, but the data set has {len(data.train)}")


def _check_single(data: RetrievalData, name: str) -> None:
    """Raise where a loss of one class a row would meet other rows in its first batch."""
    if not data.multi_label:
        return
    others = int((data.train.labels.long().sum(1) != 1).sum())
    if others:
        raise ValueError(
            f"loss: {name!r} is defined for single-label data, {others} of the {len(data.train)} training rows have "
            "no class or several"
        )


class _Step(nn.Module):
    """What DistributedDataParallel wraps: the backbone and the objective, called as one."""

    def __init__(self, backbone: nn.Module, objective: NestedObjective):
        super().__init__()
        self.backbone, self.objective = backbone, objective

    def forward(self, inputs, labels, index, autocast):
        with autocast:
            features = self.backbone(inputs)
        return self.objective(features, labels, index)


class Trainer:
    """Trains a nested hash model; the same seed, device and number of threads give the same weights.

    Where a process group of several ranks is up (`torchrun`), every rank makes the same trainer: each takes its share
    of every batch, the first one alone validates and writes, and the result is that of one rank, up to rounding
    (what looks at a rank's share alone, as batch norm and dropout in a backbone, differs).

    Args:
        data: the data set with its splits.
        config: the settings.
        run_dir: folder for config, log, checkpoint and weights; None keeps everything in memory.
        backbone: a module to use in place of the one that `config.backbone` names (set that to "custom").
        loss: a nested loss to use in place of the one that `config.loss` names (set that to "custom").
        weighting: a callable as `NestedObjective` takes it, with `config.weighting` set to "custom". Its state is
            not in the checkpoints: such a run cannot be resumed.
        progress: show bars on a terminal, elsewhere one line an epoch (on stderr).
        data_spec: how to load `data` again (name and options), written to the run's config.
        on_epoch: called with each epoch's record.
        callbacks: see `nhl_fast.training.callbacks`; loggers for TensorBoard and Weights & Biases are there.
    """

    def __init__(
        self,
        data: RetrievalData,
        config: TrainConfig,
        run_dir=None,
        *,
        backbone: nn.Module | None = None,
        loss: NestedLoss | None = None,
        weighting: Callable | None = None,
        progress: bool = True,
        data_spec: dict | None = None,
        on_epoch: Callable[[dict], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        if not isinstance(config, TrainConfig):
            raise TypeError(f"config: expected a TrainConfig, got {type(config).__name__}")
        if len(data.train) == 0:
            raise ValueError("data: the training split is empty")
        if (backbone is not None) != (config.backbone == "custom"):
            raise ValueError("backbone: give a module together with config.backbone='custom', and only then")
        _check_loss(loss, config, data)
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
        self.callbacks = check_callbacks(callbacks)
        self.group = ranks.resolve_group("auto")
        self.rank, self.ranks = (0, 1) if self.group is None else (self.group.rank(), self.group.size())
        self.has_folder = run_dir is not None
        self.folder = RunFolder(run_dir, "run_dir") if self.has_folder and self.rank == 0 else None
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
        if loss is None:
            loss = config.build_loss(data.num_classes, len(data.train), data.train)
        if loss.single_label and not loss.counts_labels:
            _check_single(data, config.loss)
        loss = loss.to(self.device)
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
        self.together = self._together()
        self.optimizer = self._optimizer()
        self.scheduler = None
        if config.schedule == "cosine":
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.momentum_model = None
        if loss.momentum_bank and loss.bank is not None and loss.external_bank:
            average = get_ema_multi_avg_fn(config.momentum)
            self.momentum_model = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True).eval()
        self.state = TrainState(
            self.folder,
            config,
            data,
            self.model,
            loss=loss,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            momentum_model=self.momentum_model,
        )
        self._progress = Progress(progress and self.rank == 0)
        self._fitted = False
        self._step_of_head = None

    def _rng_devices(self) -> list[int]:
        return [torch.cuda.current_device()] if self.device.type == "cuda" else []

    def _together(self) -> nn.Module | None:
        """Backbone and objective as all ranks train them, or None with one rank."""
        if self.group is None:
            return None
        cuda = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            _Step(self.backbone, self.objective), device_ids=cuda, process_group=self.group
        )

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
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        return cls(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None)

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
        if resume and not self.has_folder:
            raise ValueError("resume: expected a trainer with a run_dir, but this one has none to go on with")
        self._fitted = True
        with contextlib.nullcontext() if self.folder is None else claim(self.folder.path, resume):
            return self._fit(resume)

    def _tell(self, moment: str, *arguments) -> None:
        """Call the callbacks of the first rank."""
        if self.rank == 0:
            for callback in self.callbacks:
                getattr(callback, moment)(self, *arguments)

    def _fit(self, resume: bool) -> TrainResult:
        start, result = self._open(resume), None
        try:
            self._on_first(lambda: self._tell("on_fit_begin"))
            self._epochs(range(start, self.config.epochs + 1))
            result = self._finish()
        finally:
            self._tell("on_fit_end", result)
        return result

    def _epochs(self, epochs: range) -> None:
        with torch.random.fork_rng(self._rng_devices()), _deterministic(self.device):
            for epoch in self._progress.epochs(epochs):
                if self.state.out_of_patience():
                    break
                record = self._epoch(epoch)
                record = self._on_first(lambda: {**record, "validation": self._validate(epoch)})  # noqa: B023
                self.state.close_epoch(record)
                if self.rank == 0 and self.on_epoch is not None:
                    self.on_epoch(record)
                self._on_first(lambda: self._tell("on_epoch_end", record))  # noqa: B023
                self._progress.close_epoch(record)

    def _on_first(self, function: Callable):
        """What the function gives on the first rank, on every rank."""
        return function() if self.group is None else ranks.from_first(function, self.group)

    def _open(self, resume: bool) -> int:
        """Open the run on the first rank, and take up its state on all; the number of the next epoch."""

        def first():
            start = self.state.open(resume, self.data_spec, self.device)
            return start, self.state.contents() if self.group is not None and start > 1 else None

        start, contents = self._on_first(first)
        if self.rank and contents is not None:
            self.state.load(contents)
        return start

    def _epoch(self, epoch: int) -> dict:
        """One pass over the training rows; its record. Reads nothing back from the device before its end."""
        config, objective = self.config, self.objective
        torch.manual_seed(epoch_seed(config.seed, epoch) + self.rank)  # of dropout
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
        parts = batches(self.data.train, config.batch_size, order, config.workers, self.rank, self.ranks)
        for inputs, labels, index in self._progress.steps(parts, number):
            result = self._step(inputs, labels, index, last=steps + 1 == number)
            row = torch.stack([result.losses, result.distill, result.weights])
            total = result.total.detach()
            sums = (row, total) if sums is None else (sums[0] + row, sums[1] + total)
            if result.dots is not None:
                negative = (result.dots < 0).float()
                conflicts = negative if conflicts is None else conflicts + negative
            steps += 1
            self._tell("on_step_end", (epoch - 1) * number + steps, result._replace(total=total))
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
        if self.momentum_model is not None:
            self._store_momentum(inputs, labels, index)
        if self.together is not None:
            result = self.together(inputs, labels, index, self._autocast())
        else:
            with self._autocast():
                features = self.backbone(inputs)
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

    def _store_momentum(self, inputs, labels, index) -> None:
        """The momentum encoder's outputs, of all ranks' rows, into the bank."""
        loss = self.objective.loss
        with torch.no_grad(), self._autocast():
            outputs = self.momentum_model(inputs)
        rows = [outputs.float(), labels, index]
        if self.group is not None:
            rows = ranks.join_rows(rows, self.group)
        outputs, labels, index = rows
        with joined_rows(loss):
            loss.bank.update(index, outputs, labels)

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
        queries = encode_split(self.model, data.validation, workers=config.workers, progress=self.progress)
        database = encode_split(self.model, data.validation_database, workers=config.workers, progress=self.progress)
        result = evaluate_retrieval(
            queries,
            database,
            data.validation.labels,
            data.validation_database.labels,
            lengths=config.code_lengths,
            ties="expected",
        )
        return {str(b): value for b, value in result.mean_average_precision.items()}

    def _finish(self) -> TrainResult:
        state = self.state
        self._on_first(state.load_best)
        if self.group is not None:
            ranks.broadcast([*self.model.parameters(), *self.model.buffers()], self.group)
        self.model.eval()
        lengths = {int(b): epoch for b, (_, epoch) in state.best["lengths"].items()}
        return TrainResult(self.model, state.history, state.best["epoch"], lengths)


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
