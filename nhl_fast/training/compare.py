"""One nested run against one single-length run for every code length: quality and time, fairly."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

from ..data import RetrievalData
from ..retrieval.metrics import evaluate_retrieval
from .config import TrainConfig
from .model import encode_split
from .trainer import TrainResult, train


@dataclass
class Measured:
    """One training run, measured: mAP a length, and where the time went (medians over epochs)."""

    map: dict[int, float]
    seconds_per_step: float
    seconds_per_epoch: float
    seconds: float
    epochs: int
    best_epoch: int


def measure(data: RetrievalData, config: TrainConfig, progress: bool = True) -> tuple[Measured, TrainResult]:
    """Train one run and evaluate it on the held-out queries (ties: expected)."""
    started = time.perf_counter()
    result = train(data, config, progress=progress)
    seconds = time.perf_counter() - started
    codes = encode_split(result.model, data.query), encode_split(result.model, data.database)
    scores = evaluate_retrieval(
        *codes, data.query.labels, data.database.labels, lengths=config.code_lengths, ties="expected"
    )
    history = result.history
    measured = Measured(
        map=scores.mean_average_precision,
        seconds_per_step=statistics.median(r["seconds"] / r["steps"] for r in history),
        seconds_per_epoch=statistics.median(r["seconds"] for r in history),
        seconds=seconds,
        epochs=len(history),
        best_epoch=result.best_epoch,
    )
    return measured, result


def warm_up(data: RetrievalData, config: TrainConfig) -> None:
    """One discarded epoch, so that no run pays for the process's start."""
    train(data, dataclasses.replace(config, epochs=1, validate_every=1, patience=None), progress=False)


def compare(data: RetrievalData, config: TrainConfig, seeds=(0,), progress: bool = True) -> dict:
    """Nested against single-length models at equal settings, patience included.

    A single-length run has no distillation and no weighting to compute (see `NestedObjective`), so that nesting
    is charged with both.

    Args:
        data: the data set.
        config: settings of the nested run; a single-length run differs in `code_lengths` alone.
        seeds: initial weights and batches; every seed trains 1 + m models.

    Returns:
        {"config", "data", "seeds": [{"seed", "nested": {...}, "single": {bits: {...}}}], "summary": [a row a
        length], "time": {"step_ratio", "epoch_ratio", "total_ratio", ...}}, JSON-ready. `total_ratio` is the time
        of all single-length runs over that of the nested one.
    """
    runs, single_weighting = [], config.weighting if isinstance(config.weighting, str) else "uniform"
    warm_up(data, config)
    for seed in seeds:
        nested, _ = measure(data, dataclasses.replace(config, seed=seed), progress)
        single = {}
        for b in config.code_lengths:
            alone = dataclasses.replace(config, seed=seed, code_lengths=(b,), weighting=single_weighting)
            single[b], _ = measure(data, alone, progress)
        runs.append((seed, nested, single))
    summary = []
    for b in config.code_lengths:
        ours, theirs = [n.map[b] for _, n, _ in runs], [s[b].map[b] for _, _, s in runs]
        summary.append({"bits": b, "nested": _mean(ours), "nested_std": _std(ours)})
        summary[-1].update(single=_mean(theirs), single_std=_std(theirs), difference=_mean(ours) - _mean(theirs))

    def ratio(measure_nested, measure_single):
        return statistics.median(measure_single(s) / measure_nested(n) for _, n, s in runs)

    def total(single):
        return sum(s.seconds for s in single.values())

    def typical(attribute):
        return lambda single: statistics.median(getattr(s, attribute) for s in single.values())

    return {
        "config": config.to_dict(),
        "data": data.name,
        "protocol": data.protocol,
        "seeds": [
            {
                "seed": seed,
                "nested": dataclasses.asdict(nested),
                "single": {b: dataclasses.asdict(s) for b, s in single.items()},
            }
            for seed, nested, single in runs
        ],
        "summary": summary,
        "mean": {"nested": _mean([r["nested"] for r in summary]), "single": _mean([r["single"] for r in summary])},
        "time": {
            "nested_seconds": _mean([n.seconds for _, n, _ in runs]),
            "all_single_seconds": _mean([total(s) for _, _, s in runs]),
            "total_ratio": ratio(lambda n: n.seconds, total),
            "step_cost_of_nesting": 1 / ratio(lambda n: n.seconds_per_step, typical("seconds_per_step")),
            "epoch_cost_of_nesting": 1 / ratio(lambda n: n.seconds_per_epoch, typical("seconds_per_epoch")),
        },
    }


def _mean(values) -> float:
    return float(statistics.fmean(values))


def _std(values) -> float:
    return float(statistics.stdev(values)) if len(values) > 1 else 0.0
