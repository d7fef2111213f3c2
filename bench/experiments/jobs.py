"""One training run of an experiment: what it is (a `Job`), and what is kept of it (a JSON record)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field

import torch

from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.training.checkpoint import load_weights
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.model import encode_split
from nhl_fast.training.run_folder import RunFolder
from nhl_fast.training.trainer import Trainer

from . import datasets, measures, nets, weightings
from .released import Released, ReleasedTrainer

FORMAT = 2
SPLIT_SEED = 10


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        labels: which cell of its experiment it fills, as {"loss": "csq", "arm": "nested", ...}.
        seed: of weights and batches; the split's is SPLIT_SEED more.
        data: see `datasets.build`; "net" names one of `nets` for its pictures.
        config: changes to `TrainConfig`.
        rule: name of a weighting of `weightings`, or None.
        measures: names of what to measure besides mAP (see `measures.after`, and "backbone", "curve", "memory").
    """

    labels: dict
    seed: int
    data: dict
    config: dict
    rule: str | None = None
    measures: tuple[str, ...] = field(default=())

    def key(self) -> str:
        """Equal runs of different experiments have equal keys; a new field of `TrainConfig` changes them all."""
        config = TrainConfig.from_dict(self.config).to_dict()
        same = [FORMAT, self.seed, self.data, config, self.rule, sorted(self.measures)]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:20]


def run(job: Job) -> dict:
    """Train, evaluate on the held-out queries (ties: expected), measure; the record."""
    data = datasets.build(job.data, job.data.get("split", SPLIT_SEED + job.seed))
    config = TrainConfig.from_dict({**job.config, "seed": job.seed})
    rule = hook = backbone = None
    if job.rule is not None:
        rule = weightings.build(job.rule, len(config.code_lengths), job.seed)
        config = dataclasses.replace(config, weighting="custom")
    if "backbone" in job.measures:
        hook = measures.BackboneConflicts()
    if "curve" in job.measures:
        hook = measures.Curve()
    if "net" in job.data:
        backbone = nets.build(job.data["net"], job.data["size"], job.seed)
        config = dataclasses.replace(config, backbone="custom")
    own = {}
    with tempfile.TemporaryDirectory() as folder:
        keep = "best_per_length" in job.measures
        config = dataclasses.replace(config, best_per_length=keep)
        extra = isinstance(rule, Released) and "head" in rule.accidents
        kind = ReleasedTrainer if extra else Trainer
        options = {"weighting": rule, "on_epoch": hook, "backbone": backbone}
        trainer = kind(data, config, folder if keep else None, progress=False, **options)
        if hook is not None:
            hook.trainer = trainer
        memory = measures.PeakMemory() if "memory" in job.measures else None
        started = time.perf_counter()
        result = trainer.fit()
        seconds = time.perf_counter() - started
        peak = None if memory is None else memory.mebibytes()
        topk = job.data.get("topk")
        codes, found = _evaluate(result.model, data, config.code_lengths, topk)
        scores = found.mean_average_precision
        if keep:
            shared = {k: v.clone() for k, v in result.model.state_dict().items()}
            for b in config.code_lengths:
                load_weights(RunFolder(folder).weights(b), result.model)
                own[b] = _evaluate(result.model, data, (b,), topk)[1].mean_average_precision[b]
            result.model.load_state_dict(shared)
    history = result.history
    record = {
        "map": {str(b): v for b, v in scores.items()},
        "ap": {str(b): of.numpy().round(6).tolist() for b, of in zip(config.code_lengths, found.average_precision)},
        "seconds": seconds,
        "seconds_per_step": statistics.median(r["seconds"] / r["steps"] for r in history),
        "epochs": len(history),
        "threads": torch.get_num_threads(),
        "weights": [r["weights"] for r in history][-1],
        "conflicts": _mean_conflicts(history),
        **measures.after(job.measures, result.model, data, *codes, config.code_lengths, topk),
    }
    if own:
        record["best_per_length"] = [
            {"bits": b, "shared": scores[b], "own": value, "epoch": result.best_per_length[b]}
            for b, value in own.items()
        ]
        record["best_epoch"] = result.best_epoch
    if isinstance(rule, weightings.Recorder):
        record["recorded"] = {
            "steps": rule.steps,
            "conflicts": (rule.conflicts / rule.steps).tolist(),
            "broken_uniform": (rule.broken[0] / rule.steps).tolist(),
            "broken_dominance": (rule.broken[1] / rule.steps).tolist(),
        }
    if hook is not None:
        record["curve" if "curve" in job.measures else "backbone"] = hook.rows()
    if peak is not None:
        record["memory"] = peak
    return record


def _evaluate(model, data, lengths, topk=None):
    codes = encode_split(model, data.query), encode_split(model, data.database)
    labels = data.query.labels, data.database.labels
    return codes, evaluate_retrieval(*codes, *labels, lengths=lengths, topk=topk, ties="expected")


def _mean_conflicts(history: list[dict]):
    found = [r["conflicts"] for r in history if r["conflicts"] is not None]
    return torch.tensor(found).mean(0).tolist() if found else None
