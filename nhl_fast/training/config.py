"""What a training run is made of, as plain values that go to and from JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from .. import losses
from ..core import check, names
from . import presets

LARGEST, MAX_WORKERS, MAX_SEED = 2**31 - 1, 1024, 2**63 - 1


def _whole(value, name: str, minimum: int = 1, maximum: int = LARGEST) -> int:
    value = check.positive_int(value, name, minimum)
    if value > maximum:
        raise ValueError(f"{name}: expected an integer of at most {maximum}, got {value}")
    return value


@dataclass
class TrainConfig:
    """Settings of a training run.

    Attributes:
        loss: one of `nhl_fast.losses.NAMES`, or "custom" where a loss is given to the trainer.
        loss_options: further arguments of that loss.
        centers: hash centres of the losses that have them, see `make_centers`; or "aligned", nested centres by the
            similarity of the classes in the training rows (see `class_similarity`).
        code_lengths: the code lengths in bits.
        distill_weight: weight of the self-distillation.
        teacher: whose similarities a length learns: "next" (the next longer length), "longest" or "longer" (all).
        weighting: "dominance", "uniform", one number a length, or "custom" where the trainer is given a callable.
        backbone: one of `names.BACKBONES`, or "custom" where a module is given to the trainer.
        hidden, dropout, weights: see `backbones.build_backbone`.
        epochs: number of epochs.
        batch_size: rows a step.
        accumulate: steps whose gradients are added up before the optimizer moves.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        lr, weight_decay: of the optimizer.
        schedule: "constant" or "cosine" (to zero over all epochs).
        validate_every: epochs between two validations.
        patience: validations without a better mean mAP before training stops; None trains on.
        best_per_length: keep each length's best weights besides the shared ones. The codes of different
            checkpoints are no longer prefixes of one another, and every length needs its own pass to encode.
        amp: None, "bf16" or "fp16": autocast for the backbone (fp16 with loss scaling).
        compile: torch.compile the backbone.
        device: where to train, "cpu", "cuda", ...
        workers: processes that open pictures (data that is not in memory).
        momentum: decay of the momentum encoder, for losses with a momentum bank.
        seed: of initial weights, batches and centres.
    """

    loss: str = "csq"
    loss_options: dict = field(default_factory=dict)
    centers: str = "nested"
    code_lengths: tuple[int, ...] = check.DEFAULT_CODE_LENGTHS
    distill_weight: float = 1.0
    teacher: str = "next"
    weighting: str | tuple[float, ...] = "dominance"
    backbone: str = "mlp"
    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.0
    weights: str | None = None
    epochs: int = 30
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "constant"
    validate_every: int = 1
    patience: int | None = None
    best_per_length: bool = False
    amp: str | None = None
    compile: bool = False
    device: str = "cpu"
    workers: int = 0
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self):
        check.one_of(self.loss, "loss", (*losses.NAMES, "custom"))
        self.code_lengths = check.code_lengths(self.code_lengths)
        _whole(self.code_lengths[-1], "code_lengths")
        if isinstance(self.hidden, str) or not hasattr(self.hidden, "__iter__"):
            raise TypeError(f"hidden: expected a sequence of integers, got {check.describe(self.hidden)}")
        self.hidden = tuple(_whole(w, "hidden") for w in self.hidden)
        check.one_of(self.backbone, "backbone", (*names.BACKBONES, "custom"))
        check.one_of(self.optimizer, "optimizer", names.OPTIMIZERS)
        check.one_of(self.schedule, "schedule", names.SCHEDULES)
        check.one_of(self.amp, "amp", (None, *names.AMP))
        check.one_of(self.teacher, "teacher", names.TEACHERS)
        if isinstance(self.weighting, str):
            check.one_of(self.weighting, "weighting", ("dominance", "uniform", "custom"))
        else:
            if not hasattr(self.weighting, "__iter__"):
                raise TypeError(f"weighting: expected a name or numbers, got {check.describe(self.weighting)}")
            self.weighting = tuple(check.number(w, "weighting") for w in self.weighting)
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            setattr(self, name, _whole(getattr(self, name), name))
        self.workers = _whole(self.workers, "workers", 0, MAX_WORKERS)
        self.seed = _whole(self.seed, "seed", 0, MAX_SEED)
        if self.patience is not None:
            self.patience = _whole(self.patience, "patience")
        self._check_loss_options()
        for name, low in (("lr", 0.0), ("weight_decay", 0.0), ("distill_weight", 0.0), ("momentum", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: expected a number, got {check.describe(value)}")
            if not math.isfinite(value) or value < low:
                raise ValueError(f"{name}: expected a finite number of at least {low:g}, got {value}")
        if not self.momentum < 1:
            raise ValueError(f"momentum: expected a decay below 1, got {self.momentum}")

    def _check_loss_options(self) -> None:
        options = self.loss_options
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise TypeError(f"loss_options: expected a dict of names and values, got {check.describe(options)}")
        for name in ("name", "num_classes", "num_train", "code_lengths"):
            if name in options:
                where = "code_lengths of the settings" if name == "code_lengths" else "loss and the data"
                raise ValueError(f"loss_options: {name} follows from the {where}, got {options[name]!r}")
        if options and self.loss == "custom":
            raise ValueError(f"loss_options: expected none with loss='custom', got {', '.join(options)}")
        centers = options.get("centers")
        several = centers if isinstance(centers, (list, tuple)) else [centers]
        if centers is not None and not all(isinstance(c, str) or hasattr(c, "shape") for c in several):
            raise TypeError(f"loss_options: centers: expected a name or arrays, got {check.describe(centers)}")

    @classmethod
    def preset(cls, name: str = "default", **changes) -> TrainConfig:
        """The settings `name` ("default", "paper", "tuned", "wide"), with changes; see `training.presets`."""
        return cls(**presets.settings(name, changes, cls.loss, cls.code_lengths))

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """Settings from a dict (as read from JSON); an unknown name is an error."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"config: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict:
        """Plain values, JSON-ready."""
        return {
            k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, dict) else v
            for k, v in vars(self).items()
        }

    def build_loss(self, num_classes: int, num_train: int, train=None) -> losses.NestedLoss:
        """The loss of this run; `train` is the training split, which aligned centres need."""
        if self.loss == "custom":
            raise ValueError("loss: 'custom' has no definition here; give the loss to the trainer")
        options, taken = dict(self.loss_options), losses.options_of(self.loss)
        if "centers" in taken:
            options = {"centers": self.centers, "seed": self.seed, **options}
        if isinstance(options.get("centers"), str) and options["centers"] == "aligned":
            options["centers"] = self._aligned_centers(num_classes, train)
        if "external_bank" in taken:
            options = {"external_bank": True, **options}
        return losses.build(
            self.loss, num_classes=num_classes, code_lengths=self.code_lengths, num_train=num_train, **options
        )

    def _aligned_centers(self, num_classes: int, train) -> list:
        import torch

        from ..centers.aligned import MAX_ROWS, class_similarity
        from ..centers.make import make_centers

        if train is None or not train.in_memory:
            raise ValueError("centers: 'aligned' needs training rows in memory; take 'nested', or give the centres")
        picked = torch.linspace(0, len(train) - 1, min(len(train), MAX_ROWS)).long()
        alike = class_similarity(*train.batch(picked), num_classes)
        return make_centers(num_classes, self.code_lengths, "nested", seed=self.seed, similarity=alike)
