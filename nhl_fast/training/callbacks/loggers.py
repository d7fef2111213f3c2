"""Loggers as callbacks; their packages are loaded when one is made."""

from __future__ import annotations

from ...core.extras import require
from ...core.files import as_path
from .base import Callback


class Logger(Callback):
    """What loggers share: an epoch's numbers by name."""

    _lr = 0.0

    def on_step_end(self, trainer, step, result):
        self._lr = trainer.optimizer.param_groups[0]["lr"]  # at the epoch's end it is the next one's

    def scalars(self, trainer, record: dict) -> dict[str, float]:
        """Total loss, then per length loss, distillation, weight and validation mAP; learning rate, seconds."""
        found = {"loss/total": record["total"], "lr": self._lr, "seconds": record["seconds"]}
        for k, b in enumerate(trainer.config.code_lengths):
            for name, key in (("loss", "losses"), ("distill", "distill"), ("weight", "weights")):
                found[f"{name}/{b}"] = record[key][k]
        validation = record["validation"] or {}
        found |= {f"validation_mAP/{b}": value for b, value in validation.items()}
        if validation:
            found["validation_mAP/mean"] = sum(validation.values()) / len(validation)
        return found


class TensorBoard(Logger):
    """Every epoch's numbers as scalars for `tensorboard --logdir FOLDER`; a resumed run goes on in its curves.

    Args:
        folder: where the event files go.

    Raises:
        ImportError: tensorboard is missing; the message says what to install.
    """

    def __init__(self, folder):
        require("tensorboard", "tensorboard", "TensorBoard()")
        self.folder, self._writer = as_path(folder, "folder"), None

    def on_fit_begin(self, trainer):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=len(trainer.state.history) + 1)

    def on_epoch_end(self, trainer, record):
        for name, value in self.scalars(trainer, record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def on_fit_end(self, trainer, result):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB(Logger):
    """Every epoch's numbers, and the settings, as a run of Weights & Biases.

    Args:
        options: of `wandb.init`, `project="..."` say; `config` gets the run's settings.

    Raises:
        ImportError: wandb is missing; the message says what to install.
    """

    def __init__(self, **options):
        require("wandb", "wandb", "WandB()")
        self.options, self._run = options, None

    def on_fit_begin(self, trainer):
        import wandb

        given = self.options.get("config") or {}
        self._run = wandb.init(**{**self.options, "config": {**trainer.config.to_dict(), **given}})

    def on_epoch_end(self, trainer, record):
        self._run.log(self.scalars(trainer, record), step=record["epoch"])

    def on_fit_end(self, trainer, result):
        if self._run is not None:
            if result is not None:
                self._run.summary["best_epoch"] = result.best_epoch
            self._run.finish(exit_code=0 if result is not None else 1)
            self._run = None
