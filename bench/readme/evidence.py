"""Blocks of the experiments on pretrained features: every length, differences beyond chance, floats beside codes."""

from __future__ import annotations

import statistics
from functools import partial

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
    """A line for every loss and arm: means over its seeds, and how the nested ones differ from the reference arm.

    In brackets, over the seeds that both have: the difference, and p over the seeds and over the queries (see
    `against`).
    """
    document, lines = stored(f"experiments/{name}"), []
    reference = document.get("reference", "single")
    tests = {(t["loss"], t["arm"], str(t["bits"])): t["p_queries"] for t in document.get("paired", ())}
    for loss, arms in by_seed(name).items():
        for arm, cells in arms.items():
            columns = {str(b): of for b, of in cells.items()}
            if all(b in cells for b in LENGTHS):
                columns["mean"] = averaged(cells)
            line = [loss, arm]
            for column in (*map(str, LENGTHS), "mean"):
                of = columns.get(column, {})
                line.append(f"{statistics.fmean(of.values()):.4f}" if of else "")
                if of and arm.startswith("nested"):
                    theirs = of_reference(arms.get(reference, {}), column)
                    line[-1] += against(of, theirs, tests.get((loss, arm, column)))
            lines.append([*line, str(max(len(of) for of in cells.values()))])
    return markdown(["loss", "model", *(f"{b} bits" for b in LENGTHS), "mean", "seeds"], lines)


def words100_seconds() -> str:
    """What training took: one nested model, also twice as wide or long, as a share of five single-length ones."""
    document = stored("experiments/words100_lengths")
    taken = {(row["loss"], row["arm"]): row["seconds"] for row in document["seconds"]}
    arms, lines = ("nested", "nested, twice as wide", "nested, twice the epochs"), []
    for loss in dict.fromkeys(loss for loss, _ in taken):
        five = taken[loss, "single"]
        nested = (taken[loss, arm] for arm in arms)
        lines.append([loss, f"{five:,.0f}", *(f"{seconds:,.0f} ({seconds / five:.2f})" for seconds in nested)])
    return markdown(["loss", "five single, s", *(f"{arm}, s" for arm in arms)], lines)


def of_reference(cells: dict[int, dict[int, float]], column: str) -> dict[int, float]:
    """{seed: mAP} of a length, or of the mean; empty where it was not run."""
    if column != "mean":
        return cells.get(int(column), {})
    return averaged(cells) if all(b in cells for b in LENGTHS) else {}


def averaged(cells: dict[int, dict[int, float]]) -> dict[int, float]:
    """{seed: mean over the lengths}, of the seeds that have all lengths."""
    seeds = [s for s in next(iter(cells.values())) if all(s in cells[b] for b in LENGTHS)]
    return {s: statistics.fmean(cells[b][s] for b in LENGTHS) for s in seeds}


def against(ours: dict[int, float], theirs: dict[int, float], p_queries: float | None = None) -> str:
    """ " (+1.2%, p 0.03)" of the seeds that both have; "" where they have none.

    With tests over the queries " (+1.2%, p 0.03 / 0.01)", over the seeds and over the queries, in bold where both are
    below 0.05; with one seed " (+1.2%, p - / 0.01)".
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return ""
    change = [ours[s] - theirs[s] for s in both]
    told = f"{100 * sum(change) / sum(theirs[s] for s in both):+.1f}%"
    p_seeds = over_seeds(change) if len(both) > 1 else None
    if p_queries is not None:
        both_small = p_seeds is not None and max(p_seeds, p_queries) < 0.05
        return f" ({f'**{told}**' if both_small else told}, p {_p(p_seeds)} / {_p(p_queries)})"
    return f" ({told})" if p_seeds is None else f" ({told}, p {_p(p_seeds)})"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.01" if value < 0.01 else f"{value:.2f}"


def tags_graded() -> str:
    """NDCG and weighted mAP: a line for every loss and arm, means over the seeds."""
    found: dict[tuple, dict[str, list[float]]] = {}
    for run in (run for name in ("tags", "tags_losses") for run in stored(f"experiments/{name}")["graded"]):
        cell = found.setdefault((run["loss"], run["arm"]), {})
        for row in run["graded"]:
            for measure in ("ndcg", "weighted"):
                cell.setdefault(f"{measure} {row['bits']}", []).append(row[measure])
    lines = []
    for key, cell in found.items():
        for measure, told in (("ndcg", "NDCG@1000"), ("weighted", "weighted mAP@1000")):
            values = [statistics.fmean(cell[f"{measure} {b}"]) for b in LENGTHS]
            lines.append([*key, told, *(f"{v:.4f}" for v in (*values, statistics.fmean(values)))])
    return markdown(["loss", "model", "measure", *(f"{b} bits" for b in LENGTHS), "mean"], lines)


def price() -> str:
    """Nested and single-length runs where a net trains along: CPU time of a step after the first epoch, memory."""
    document = stored("experiments/price")
    curves = {(run["arm"], tuple(run["lengths"])): run["curve"] for run in document["curve"]}
    memory = {(run["arm"], tuple(run["lengths"])): run["memory"] for run in document["memory"]}
    singles = [("single", (b,)) for b in LENGTHS]
    step = {
        key: 1000 * (curve[-1]["cpu_seconds"] - curve[0]["cpu_seconds"]) / (curve[-1]["steps"] - curve[0]["steps"])
        for key, curve in curves.items()
    }
    mean_step, mean_memory = (statistics.fmean(of[key] for key in singles) for of in (step, memory))
    lines = [[f"{b} bits", f"{step['single', (b,)]:.0f} ms", f"{memory['single', (b,)]:.0f} MiB"] for b in LENGTHS]
    lines.append(["mean of the five", f"{mean_step:.0f} ms", f"{mean_memory:.0f} MiB"])
    own = step["nested", LENGTHS], memory["nested", LENGTHS]
    lines.append(["nested", f"{own[0]:.0f} ms", f"{own[1]:.0f} MiB"])
    lines.append(["nested over the mean", f"{own[0] / mean_step:.3f}", f"{own[1] / mean_memory:.3f}"])
    return markdown(["run", "CPU time of a step", "memory of training"], lines)


def trains_along() -> str:
    """When a nested run has the mAP that every single-length run ends with, in CPU time, beside what those take."""
    curves = {
        (run["arm"], tuple(run["lengths"])): run["curve"] for run in stored("experiments/trains_along")["curve"]
    }
    arms = [arm for arm, lengths in curves if lengths == LENGTHS]
    lines, spent, whole = [], 0.0, {arm: curves[arm, LENGTHS][-1]["cpu_seconds"] for arm in arms}
    for b in LENGTHS:
        end = curves["single", (b,)][-1]
        spent += end["cpu_seconds"]
        line = [f"{b} bits", f"{end['map'][str(b)]:.4f}", f"{end['cpu_seconds']:.0f} s"]
        for arm in arms:
            ours = [(row["cpu_seconds"], row["map"][str(b)]) for row in curves[arm, LENGTHS]]
            when = next((f"{seconds:.0f} s" for seconds, value in ours if value >= end["map"][str(b)]), "never")
            line += [f"{ours[-1][1]:.4f}", when]
        lines.append(line)
    shares = [cell for arm in arms for cell in ("", f"{whole[arm]:.0f} s ({whole[arm] / spent:.2f})")]
    lines.append(["whole runs", "", f"{spent:.0f} s", *shares])
    heads = [cell for arm in arms for cell in (f"{arm}, mAP", f"{arm}, CPU to the single mAP")]
    return markdown(["length", "single, mAP", "single, CPU", *heads], lines)


def pretrained() -> str:
    """A line a loss: the nested model's mAP and how far it is from the single-length models of the same seeds."""
    lines = []
    for loss, arms in by_seed("pretrained").items():
        nested, single = arms["nested"], arms["single"]
        pairs = [*((nested[b], single[b]) for b in LENGTHS), (averaged(nested), averaged(single))]
        lines.append([loss, *(f"{statistics.fmean(a.values()):.4f}{against(a, b)}" for a, b in pairs)])
    return markdown(["loss", *(f"{b} bits" for b in LENGTHS), "mean"], lines)


def ideas(name: str) -> str:
    """A line for every loss and change, with its difference from the single-length models without a change."""
    found: dict[tuple, dict[int, dict[int, float]]] = {}
    plain: dict[str, str] = {}
    for run in stored(f"experiments/{name}")["runs"]:
        first = plain.setdefault(run["loss"], run["idea"])
        single = "single-length models" + ("" if run["idea"] == first else f", {run['idea']}")
        key = (run["loss"], f"nested, {run['idea']}" if run["arm"] == "nested" else single)
        found.setdefault(key, {}).setdefault(run["bits"], {})[run["seed"]] = run["mAP"]
    lines = []
    for (loss, told), cells in found.items():
        single = found[loss, "single-length models"]
        columns = [*((cells[b], single[b]) for b in LENGTHS), (averaged(cells), averaged(single))]
        differences = ["" if cells is single else against(*column) for column in columns]
        lines.append([loss, told, *(f"{ours[0]:.4f}{more}" for (ours, _), more in zip(columns, differences))])
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


# Experiments whose block is their table of lengths.
PLAIN = (
    *("words100", "words100_wide_ideas", "words100_wide", "words100_lengths", "words100_losses"),
    *("words100_tuned", "words100_preset", "words100_preset_more", "words100_weights", "words100_published"),
    *(
        "dpsh_range",
        "dsh_weights",
        "sections",
        "sections_weights",
        "sections_published",
        "pretrained_published",
        "tags",
        "tags_losses",
    ),
)
BLOCKS = {
    **{name: partial(lengths, name) for name in PLAIN},
    **{name: partial(ideas, name) for name in ("words100_ideas", "sections_ideas")},
    **{f.__name__: f for f in (words100_seconds, pretrained, tags_graded, price, trains_along, floats, released)},
}
