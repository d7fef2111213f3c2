"""Blocks of the experiments (docs/experiments.md): mAP, mostly the mean over the code lengths."""

from __future__ import annotations

import statistics

from bench.common.record import markdown
from bench.readme.speed import stored


def maps(name: str, *labels: str) -> dict[tuple, dict[int, float]]:
    """{values of `labels`: {bits: mAP}} of an experiment, in the order of its rows."""
    found: dict[tuple, dict[int, float]] = {}
    for row in stored(f"experiments/{name}")["rows"]:
        found.setdefault(tuple(row[label] for label in labels), {})[row["bits"]] = row["mAP"]
    return found


def best(columns: list[list[float]]) -> list[list[str]]:
    """Columns as text, the best number of each in bold."""
    return [
        [f"**{value:.4f}**" if value == max(column) else f"{value:.4f}" for value in column] for column in columns
    ]


def table(name: str, axis: str, columns: list[tuple], rows: dict[str, str], head: str, *labels: str) -> str:
    """Mean mAP: a row each of `rows` ({value of `axis`: text}), a column each of `columns` [(text, other labels)]."""
    found = {key: statistics.fmean(of.values()) for key, of in maps(name, axis, *labels).items()}
    values = best([[found[(value, *others)] for value in rows] for _, *others in columns])
    return markdown([head, *(text for text, *_ in columns)], [list(line) for line in zip(rows.values(), *values)])


def nested_vs_single() -> str:
    """One nested model beside five single-length ones."""
    found = maps("nested_vs_single", "loss", "recipe", "arm")
    arms = [(recipe, arm) for recipe in ("published", "tuned") for arm in ("nested", "single")]
    losses = list(dict.fromkeys(loss for loss, *_ in found))
    cells = {loss: [found[(loss, *arm)] for arm in arms] for loss in losses}
    many = {10: "ten"}.get(len(losses), len(losses))
    mean = [
        {b: statistics.fmean(cells[loss][i][b] for loss in losses) for b in cells[losses[0]][i]} for i in range(4)
    ]
    lines = []
    for told, of in [*cells.items(), (f"mean of {many}", mean)]:
        means = [statistics.fmean(values.values()) for values in of]
        nested, single = of[2:]
        lines.append(
            [told, *(f"{value:.4f}" for value in means), f"{100 * (means[2] / means[3] - 1):+.1f}%",
             *(f"{nested[bits]:.3f} / {single[bits]:.3f}" for bits in (8, 128))]
        )  # fmt: skip
    head = ["loss", *(f"{recipe}, {arm}" for recipe, arm in arms), "gain"]
    return markdown([*head, *(f"{bits} bits, nested / single" for bits in (8, 128))], lines)


def centers() -> str:
    rows = {
        "hadamard": "`hadamard` (independent)",
        "balanced": "`balanced` (independent)",
        "random": "`random` (independent)",
        "nested": "`nested` (prefix-consistent)",
        "aligned": "`aligned` (prefix-consistent, told which classes are alike)",
    }
    columns = [
        ("10 classes: nested", "10 classes", "nested"),
        ("single", "10 classes", "single"),
        ("100 pseudo-classes: nested", "100 pseudo-classes", "nested"),
        ("single", "100 pseudo-classes", "single"),
    ]
    return table("centers", "centers", columns, rows, "centres", "classes", "arm")


def weighting() -> str:
    rows = {
        "dominance": "dominance (closed form)",
        "uniform": "equal",
        "static 1:2:3:4:5": "fixed 1:2:3:4:5",
        "static 5:4:3:2:1": "fixed 5:4:3:2:1",
        "uncertainty": "uncertainty (Kendall et al.)",
        "GradNorm": "GradNorm (Chen et al.)",
        "PCGrad": "PCGrad (Yu et al.)",
    }
    losses = ("csq, independent centres", "csq, aligned centres", "dch", "dtsh")
    return table("weighting", "weighting", [(loss, loss) for loss in losses], rows, "weights", "loss")


def distillation() -> str:
    rows = {
        "none": "none",
        "next, 0.1": "next length, weight 0.1",
        "next, 1": "next length, weight 1 (the default)",
        "next, 10": "next length, weight 10",
        **{name: name for name in ("longest, 1", "longest, 10", "all longer, 1", "all longer, 10")},
    }
    return table("distillation", "distillation", [("csq", "csq"), ("dch", "dch")], rows, "distillation", "loss")


def length_choice() -> str:
    rules = {
        "best": "`advise`, within 0.005 of the best",
        "longest": "always 128 bits",
        "64 by habit": "always 64 bits",
        "95%": "`advise`, 95% of the best",
        "trained, 95%": "shortest trained length with 95%",
        "oracle": "oracle (sees the queries)",
    }
    found: dict[tuple, list] = {}
    for record in stored("experiments/length_choice")["advice"]:
        for choice in record["advice"]:
            found.setdefault((choice["rule"], record["loss"]), []).append((choice["bits"], choice["mAP"]))
    losses = list(dict.fromkeys(loss for _, loss in found))

    def cell(rule: str, loss: str) -> str:
        bits, values = zip(*found[rule, loss])
        return f"{statistics.fmean(bits):.0f} bits, {statistics.fmean(values):.4f}"

    lines = [[told, *(cell(rule, loss) for loss in losses)] for rule, told in rules.items()]
    return markdown(["rule", *losses], lines)


def robustness() -> str:
    rows = {name: name for name in ("clean", "20% wrong", "40% wrong", "20 a class")}
    rows["imbalance 20"] = "largest class 20 times the smallest"
    found = maps("robustness", "labels", "arm")

    def cell(name: str, arm: str) -> str:
        return " / ".join(f"{found[name, arm][bits]:.3f}" for bits in (8, 32, 128))

    lines = [[told, cell(name, "nested"), cell(name, "single")] for name, told in rows.items()]
    return markdown(["training labels", "nested", "single-length"], lines)


def time() -> str:
    backbones = {
        "conv on 32 x 32 pictures": "small conv net on 32 x 32 pictures",
        "mlp on features": "256-512-128 net on features",
    }
    measures = {
        "step_ratio": ("nested step over a single-length step", 2),
        "step_ratio_to_longest": ("nested step over a step at 128 bits", 2),
        "total_ratio": ("nested run over one single-length run", 2),
        "five_over_nested": ("five single-length runs over the nested run", 1),
    }
    rows = stored("experiments/time")["rows"]

    def cell(measure: str, places: int, backbone: str) -> str:
        values = [row[measure] for row in rows if row["backbone"] == backbone]
        mean, least, most = (f"{of(values):.{places}f}" for of in (statistics.fmean, min, max))
        return f"{mean} ({least} to {most})"

    lines = [[told, *(cell(name, places, b) for b in backbones)] for name, (told, places) in measures.items()]
    return markdown(["ratio", *backbones.values()], lines)
