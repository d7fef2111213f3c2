"""Blocks of the experiments on pretrained features: every length, differences beyond chance, floats beside codes."""

from __future__ import annotations

import statistics

from bench.common.record import markdown
from bench.experiments.paired import over_seeds
from bench.readme.speed import stored

LENGTHS = (8, 16, 32, 64, 128)


def by_seed(name: str) -> dict[str, dict[str, dict[int, dict[int, float]]]]:
    """{loss: {arm: {bits: {seed: mAP}}}} of an experiment, in the order of its runs."""
    found: dict = {}
    for run in stored(f"experiments/{name}")["runs"]:
        cell = found.setdefault(run["loss"], {}).setdefault(run["arm"], {})
        cell.setdefault(run["bits"], {})[run["seed"]] = run["mAP"]
    return found


def lengths(name: str) -> str:
    """A line for every loss and arm: means over its seeds, and how the nested ones differ from single-length models.

    In brackets, over the seeds that both have: the difference, and p where there are several seeds.
    """
    lines = []
    for loss, arms in by_seed(name).items():
        for arm, cells in arms.items():
            columns = {str(b): of for b, of in cells.items()}
            if all(b in cells for b in LENGTHS):
                columns["mean"] = averaged(cells)
            line = [loss, arm]
            for column in (*map(str, LENGTHS), "mean"):
                of = columns.get(column, {})
                line.append(f"{statistics.fmean(of.values()):.4f}" if of else "")
                if of and arm.startswith("nested") and (single := arms.get("single")):
                    line[-1] += against(of, averaged(single) if column == "mean" else single[int(column)])
            lines.append([*line, str(max(len(of) for of in cells.values()))])
    return markdown(["loss", "model", *(f"{b} bits" for b in LENGTHS), "mean", "seeds"], lines)


def averaged(cells: dict[int, dict[int, float]]) -> dict[int, float]:
    """{seed: mean over the lengths}."""
    return {s: statistics.fmean(cells[b][s] for b in LENGTHS) for s in next(iter(cells.values()))}


def against(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """ " (+1.2%, p 0.03)" of the seeds that both have; "" where they have none."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return ""
    change = [ours[s] - theirs[s] for s in both]
    told = f" ({100 * sum(change) / sum(theirs[s] for s in both):+.1f}%"
    if len(both) < 2:
        return told + ")"
    p = over_seeds(change)
    return told + (", p < 0.01)" if p < 0.01 else f", p {p:.2f})")


def words100() -> str:
    return lengths("words100")


def pretrained() -> str:
    """A line a loss: the nested model's mAP and how far it is from the single-length models of the same seeds."""
    lines = []
    for loss, arms in by_seed("pretrained").items():
        nested, single = arms["nested"], arms["single"]
        pairs = [*((nested[b], single[b]) for b in LENGTHS), (averaged(nested), averaged(single))]
        lines.append([loss, *(f"{statistics.fmean(a.values()):.4f}{against(a, b)}" for a, b in pairs)])
    return markdown(["loss", *(f"{b} bits" for b in LENGTHS), "mean"], lines)


def words100_ideas() -> str:
    """A line for every loss and change, with its difference from the single-length models."""
    found: dict[tuple, dict[int, dict[int, float]]] = {}
    for run in stored("experiments/words100_ideas")["runs"]:
        key = (run["loss"], run["idea"] if run["arm"] == "nested" else "single")
        found.setdefault(key, {}).setdefault(run["bits"], {})[run["seed"]] = run["mAP"]
    lines = []
    for (loss, idea), cells in found.items():
        single = found[loss, "single"]
        columns = [*((cells[b], single[b]) for b in LENGTHS), (averaged(cells), averaged(single))]
        text = [f"{ours[0]:.4f}" + ("" if ours is theirs else against(ours, theirs)) for ours, theirs in columns[:-1]]
        mean = f"{columns[-1][0][0]:.4f}" + ("" if cells is single else against(*columns[-1]))
        lines.append([loss, "single-length models" if cells is single else f"nested, {idea}", *text, mean])
    return markdown(["loss", "model", *(f"{b} bits" for b in LENGTHS), "mean"], lines)


def floats() -> str:
    """A line a set and method: the mean over the seeds."""
    found: dict[tuple, dict[str, list[float]]] = {}
    for run in stored("experiments/floats")["floats"]:
        found.setdefault((run["set"], run["method"]), {}).setdefault(run["bits"], []).append(run["mAP"])
    columns = ["float", *map(str, LENGTHS)]
    lines = [
        [*key, *(f"{statistics.fmean(of[c]):.4f}" if c in of else "" for c in columns)] for key, of in found.items()
    ]
    return markdown(["set", "method", "float", *(f"{b} bits" for b in LENGTHS)], lines)


def released() -> str:
    """A line for every loss and accident: mAP of every length, and the mean's change, with p over the seeds."""
    found: dict[tuple, dict[int, dict[int, float]]] = {}
    for run in stored("experiments/released")["runs"]:
        found.setdefault((run["loss"], run["accidents"]), {}).setdefault(run["bits"], {})[run["seed"]] = run["mAP"]
    lines = []
    for (loss, accidents), cells in found.items():
        base = found[loss, "none, with distillation" if "with distillation" in accidents else "none"]
        mean = averaged(cells)
        told = f"{statistics.fmean(mean.values()):.4f}" + ("" if cells is base else against(mean, averaged(base)))
        lines.append([loss, accidents, *(f"{statistics.fmean(cells[b].values()):.4f}" for b in LENGTHS), told])
    return markdown(["loss", "accidents", *(f"{b} bits" for b in LENGTHS), "mean"], lines)


BLOCKS = (words100, pretrained, words100_ideas, floats, released)
