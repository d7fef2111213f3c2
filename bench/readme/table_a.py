"""Blocks over four sets at once: one nested model against five single-length ones, ten losses, two settings."""

from __future__ import annotations

import statistics

from bench.common.record import markdown
from bench.experiments.paired import over_seeds
from bench.readme.evidence import LENGTHS, against, averaged
from bench.readme.speed import stored

LARGER = {f"nested, {more}": f"tuned, {more}" for more in ("twice as wide", "twice the epochs")}
SETTINGS = ("published", "tuned", *LARGER.values())
SETS = {
    "CIFAR-10, k-means features": {"published": ["nested_vs_single"], "tuned": ["nested_vs_single"]},
    "CIFAR-10, EfficientNet-Lite0": {"published": ["pretrained_published"], "tuned": ["pretrained"]},
    "words100": {
        "published": ["words100_published"],
        "tuned": ["words100_lengths", "words100_preset", "words100_preset_more"],
    },
    "texts, sections": {"published": ["sections_published"], "tuned": ["sections", "sections_weights"]},
}
LOSSES = ("csq", "dpn", "dsh", "dhn", "dbdh", "dtsh", "lcdsh", "dch", "mdsh", "shcir")


def pairs() -> dict[tuple[str, str, str], tuple[dict, dict]]:
    """{(set, settings, loss): (nested, single)}, each {bits: {seed: mAP}}, of the losses of Table A."""
    found: dict = {}
    for name, by_settings in SETS.items():
        for settings, experiments in by_settings.items():
            for run in (r for e in experiments for r in stored(f"experiments/{e}")["runs"]):
                loss = run["loss"].split(",")[0]  # "dch, one range"
                if loss not in LOSSES or run.get("recipe", settings) != settings:
                    continue
                places = {"nested": [(settings, 0)]} | {arm: [(told, 0)] for arm, told in LARGER.items()}
                same = LARGER.values() if settings == "tuned" else ()
                places["single"] = [(told, 1) for told in (settings, *same)]
                for kind, place in places.get(run["arm"], ()):
                    cell = found.setdefault((name, kind, loss), ({}, {}))[place]
                    cell.setdefault(run["bits"], {})[run["seed"]] = run["mAP"]
    return {key: cells for key, cells in found.items() if all(cells)}


def table_a() -> str:
    """Means over the five lengths: a row a loss and settings, a column a set."""
    found, lines = pairs(), []
    for loss in LOSSES:
        for settings in SETTINGS:
            line = [loss, settings]
            for name in SETS:
                cells = found.get((name, settings, loss))
                nested, single = map(averaged, cells) if cells else ({}, {})
                line.append(f"{statistics.fmean(nested.values()):.3f}{against(nested, single)}" if nested else "")
            lines.append(line)
    return markdown(["loss", "settings", *SETS], [line for line in lines if any(line[2:])])


def verdict(nested: dict[int, float], single: dict[int, float]) -> int:
    """1 where one nested model is ahead over the seeds that both have (t test, p < 0.05), -1 behind, else 0."""
    change = [nested[s] - single[s] for s in sorted(nested.keys() & single.keys())]
    return 0 if over_seeds(change) >= 0.05 else 1 if sum(change) > 0 else -1


def table_a_lengths() -> str:
    """A row a set and settings: of how many pairs of a loss and a length the nested model is ahead, level, behind."""
    found, lines = pairs(), []
    for name in SETS:
        for settings in SETTINGS:
            counts, behind = {1: 0, 0: 0, -1: 0}, []
            for loss in LOSSES:
                nested, single = found.get((name, settings, loss), ({}, {}))
                several = [b for b in LENGTHS if len(nested.get(b, {}).keys() & single.get(b, {}).keys()) > 1]
                told = {b: verdict(nested[b], single[b]) for b in several}
                for value in told.values():
                    counts[value] += 1
                if worse := [str(b) for b, value in told.items() if value < 0]:
                    behind.append(f"{loss} {', '.join(worse)}")
            if total := sum(counts.values()):
                lines.append([name, settings, *map(str, (total, *counts.values())), "; ".join(behind) or "none"])
    head = ["set", "settings", "pairs", "ahead", "level", "behind", "behind: loss and bits"]
    return markdown(head, lines)


BLOCKS = {make.__name__: make for make in (table_a, table_a_lengths)}
