"""What nesting costs in time: every run alone, with all threads, nested and single-length turn and turn about."""

from __future__ import annotations

import dataclasses
import os
import statistics

import torch

from nhl_fast.training.compare import measure, warm_up
from nhl_fast.training.config import TrainConfig

from . import datasets


def run(config: dict, data_name: str | None = None) -> dict:
    """One row an entry of the axis "loss" and an arm of the axis "backbone"; see `_row`."""
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for backbone in config["axes"]["backbone"]:
        data = _data(config, backbone, data_name)
        if data is None:
            print(f"{backbone['label']}: left out, its pictures are not there (NHL_FAST_CIFAR10 names their folder)")
            continue
        for loss in config["axes"]["loss"]:
            settings = {**config["settings"], **backbone.get("settings", {}), **loss["settings"]}
            rows.append(
                {"backbone": backbone["label"], "loss": loss["label"], **_row(data, settings, config["seeds"])}
            )
            print(" ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()))
    return {
        "title": config["title"],
        "question": config["question"],
        "settings": config["settings"],
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def _data(config: dict, backbone: dict, data_name: str | None):
    spec = {**config["data"], **backbone.get("data", {})}
    if spec["name"] == "images":
        root = os.environ.get("NHL_FAST_CIFAR10")
        return None if root is None else datasets.images(root, spec["rows"])
    if data_name is not None:
        spec["name"] = data_name
        spec |= {"queries_per_class": 20, "train_per_class": min(100, spec["train_per_class"])}
    return datasets.build(spec, 0)


def _row(data, settings: dict, seeds) -> dict:
    """Seconds of a step and of a run, nested over single-length (the mean of the single lengths), and of all five."""
    config = TrainConfig.from_dict(settings)
    warm_up(data, config)
    steps, totals, five, longest, maps = [], [], [], [], []
    for seed in seeds:
        nested, _ = measure(data, dataclasses.replace(config, seed=seed), progress=False)
        weighting = config.weighting if isinstance(config.weighting, str) else "uniform"
        single = {
            b: measure(
                data,
                dataclasses.replace(config, seed=seed, code_lengths=(b,), weighting=weighting),
                progress=False,
            )[0]
            for b in config.code_lengths
        }
        steps.append((nested.seconds_per_step, [s.seconds_per_step for s in single.values()]))
        totals.append((nested.seconds, [s.seconds for s in single.values()]))
        longest.append(nested.seconds_per_step / single[config.code_lengths[-1]].seconds_per_step)
        five.append(sum(s.seconds for s in single.values()) / nested.seconds)
        maps.append((nested.epochs, [s.epochs for s in single.values()]))
    return {
        "nested_ms_per_step": 1000 * statistics.median(n for n, _ in steps),
        "single_ms_per_step": 1000 * statistics.median(statistics.fmean(s) for _, s in steps),
        "step_ratio": statistics.median(n / statistics.fmean(s) for n, s in steps),
        "step_ratio_to_longest": statistics.median(longest),
        "nested_seconds": statistics.median(n for n, _ in totals),
        "single_seconds": statistics.median(statistics.fmean(s) for _, s in totals),
        "total_ratio": statistics.median(n / statistics.fmean(s) for n, s in totals),
        "five_over_nested": statistics.median(five),
        "nested_epochs": statistics.median(n for n, _ in maps),
        "single_epochs": statistics.median(statistics.fmean(s) for _, s in maps),
    }
