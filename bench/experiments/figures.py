"""Plots of the experiments, in the package's style."""

from __future__ import annotations

import math
import statistics

from nhl_fast.pictures.style import COLORS, MARKERS, picture


def draw(kind: str, document: dict, path) -> None:
    """The figure `kind` of an experiment's results: "panels", "means", "prefixes", "heat" or "time"."""
    {"panels": panels, "means": means, "prefixes": prefixes, "heat": heat, "time": times}[kind](document, path)


def _cells(rows: list[dict], skip=("bits", "mAP", "std", "seeds")) -> dict[tuple, list[dict]]:
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault(tuple((k, str(v)) for k, v in row.items() if k not in skip), []).append(row)
    return cells


def panels(document: dict, path) -> None:
    """mAP against bits: a panel for each value of the first axis, a line for each combination of the others."""
    grouped: dict[str, list] = {}
    for labels, rows in _cells(document["rows"]).items():
        *methods, arm = [v for _, v in labels[1:]] or [labels[0][1]]
        grouped.setdefault(labels[0][1], []).append((", ".join(methods), arm, rows))
    names = list(dict.fromkeys(name for lines in grouped.values() for name, *_ in lines))
    arms = list(dict.fromkeys(arm for lines in grouped.values() for _, arm, _ in lines))
    looks = {"nested": 0, "single": 1}  # the same in every picture, also where one of them is not there
    looks |= {arm: i for i, arm in enumerate((arm for arm in arms if arm not in looks), len(looks))}
    arms.sort(key=looks.get)
    columns = min(5, len(grouped)) if len(grouped) > 4 else min(3, len(grouped))

    def paint(figure):
        grid = figure.subplots(-(-len(grouped) // columns), columns, squeeze=False)
        for axes in grid.flat[len(grouped) :]:
            axes.set_axis_off()
        for axes, (title, lines) in zip(grid.flat, grouped.items()):
            for name, arm, rows in lines:
                j = looks[arm]
                i = names.index(name) if len(names) > 1 else j
                axes.errorbar(
                    [r["bits"] for r in rows],
                    [r["mAP"] for r in rows],
                    yerr=[r["std"] for r in rows],
                    color=COLORS[i % len(COLORS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markerfacecolor=None if j == 0 else "white",
                    linestyle=("-", "--", ":", "-.")[j % 4],
                    capsize=2,
                    label=", ".join(filter(None, (name, arm))),
                )
            axes.set_xscale("log", base=2)
            ticks = [r["bits"] for r in lines[0][2]]
            axes.set_xticks(ticks, [str(b) for b in ticks])
            axes.minorticks_off()
            axes.set_title(title)
        for axes in grid[:, 0]:
            axes.set_ylabel("mAP")
        for axes in grid.flat[max(0, len(grouped) - columns) : len(grouped)]:  # no panel below
            axes.set_xlabel("Code length (bits)")
        handles, shown = [], []
        for axes in grid.flat:
            for handle, name in zip(*axes.get_legend_handles_labels()):
                if name not in shown:
                    handles.append(handle)
                    shown.append(name)
        figure.legend(handles, shown, loc="outside lower center", ncols=beside)

    width = max(6.5, 3.1 * columns)
    told = {", ".join(filter(None, (name, arm))) for lines in grouped.values() for name, arm, _ in lines}
    inches = 0.6 + 0.09 * max(map(len, told))  # of an entry of the legend
    beside = max(1, min(4, int(width / inches)))
    legend = 0.25 * -(-len(told) // beside)
    picture((width, 2.9 * -(-len(grouped) // columns) + 0.3 + legend), paint, path)


def means(document: dict, path) -> None:
    """Mean mAP over the lengths of every cell, with its spread over the seeds: a group for each value of axis one."""
    groups: dict[str, dict[str, tuple]] = {}
    arms = {row["arm"] for row in document["rows"]}
    for labels, runs in _cells(document["runs"], ("bits", "mAP", "seed")).items():
        seeds: dict[int, list[float]] = {}
        for run in runs:
            seeds.setdefault(run["seed"], []).append(run["mAP"])
        means_of = [statistics.fmean(values) for values in seeds.values()]
        mean, spread = statistics.fmean(means_of), statistics.stdev(means_of) if len(means_of) > 1 else 0.0
        name = ", ".join(v for k, v in labels[1:] if k != "arm" or len(arms) > 1)
        groups.setdefault(labels[0][1], {})[name] = (mean, spread)
    names = list(dict.fromkeys(n for g in groups.values() for n in g))

    def paint(figure):
        axes = figure.subplots()
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            there = [(j, *groups[g][name]) for j, g in enumerate(groups) if name in groups[g]]
            axes.errorbar(
                [j - 0.4 + width * (i + 0.5) for j, *_ in there],
                [m for _, m, _ in there],
                yerr=[s for *_, s in there],
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                markerfacecolor="white" if i >= len(COLORS) else None,
                linestyle="none",
                capsize=2,
                label=name,
            )
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_xlim(-0.5, len(groups) - 0.5)
        for j in range(1, len(groups)):
            axes.axvline(j - 0.5, color="#bbbbbb", linewidth=0.9)
        axes.grid(False, axis="x")
        axes.set_ylabel("mAP, mean over the lengths")
        if any(names):
            figure.legend(loc="outside lower center", ncols=min(4, len(names)))

    picture((max(6, 1.2 + 0.32 * len(groups) * len(names)), 4.2), paint, path)


def prefixes(document: dict, path) -> None:
    """mAP of every prefix, mean over the seeds, with the trained lengths marked."""
    curves: dict[str, list] = {}
    for entry in document["prefix_map"]:
        name = ", ".join(str(v) for k, v in entry.items() if k not in ("seed", "lengths", "prefix_map"))
        curves.setdefault(name, []).append(entry)

    def paint(figure):
        axes = figure.subplots()
        for i, (name, entries) in enumerate(curves.items()):
            values = [sum(v) / len(entries) for v in zip(*(e["prefix_map"] for e in entries))]
            marked = [b - 1 for b in entries[0]["lengths"] if b <= len(values)]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=COLORS[i % len(COLORS)],
                linestyle="--" if "single" in name else "-",
                marker=MARKERS[i % len(MARKERS)],
                markevery=marked,
                label=name,
            )
        axes.set_xlabel("Prefix length (bits)")
        axes.set_ylabel("mAP")
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], ["1", "2", "4", "8", "16", "32", "64", "128"])
        axes.minorticks_off()
        axes.legend()

    picture((7.5, 4.6), paint, path)


def heat(document: dict, path) -> None:
    """Share of steps with a conflict for every pair of lengths, one panel a cell, mean over the seeds."""
    cells: dict[str, list] = {}
    for entry in document["recorded"]:
        name = "\n".join(str(v) for k, v in entry.items() if k not in ("seed", "lengths", "recorded", "arm"))
        cells.setdefault(name, []).append(entry)

    def paint(figure):
        columns = min(4, len(cells))
        grid = figure.subplots(-(-len(cells) // columns), columns, squeeze=False)
        for axes in grid.flat[len(cells) :]:
            axes.set_axis_off()
        for axes, (name, entries) in zip(grid.flat, cells.items()):
            lengths = entries[0]["lengths"]
            share = [
                [
                    sum(e["recorded"]["conflicts"][k][i] for e in entries) / len(entries) if i > k else math.nan
                    for i in range(len(lengths))
                ]
                for k in range(len(lengths))
            ]
            axes.imshow(share, vmin=0, vmax=1, cmap="Oranges")
            for k in range(len(lengths)):
                for i in range(k + 1, len(lengths)):
                    color = "white" if share[k][i] > 0.6 else "black"
                    axes.text(i, k, f"{100 * share[k][i]:.0f}", ha="center", va="center", color=color, fontsize=8)
            axes.set_xticks(range(len(lengths)), lengths)
            axes.set_yticks(range(len(lengths)), lengths)
            axes.grid(False)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("longer length")
        for axes in grid[:, 0]:
            axes.set_ylabel("prefix")
        figure.suptitle("Steps (%) whose longer length works against the prefix", x=0.01, ha="left", fontsize=12)

    picture((2.7 * min(4, len(cells)), 2.9 * -(-len(cells) // min(4, len(cells))) + 0.4), paint, path)


def times(document: dict, path) -> None:
    """Time of a nested step over that of a single-length one."""
    rows = document["rows"]
    kinds = list(dict.fromkeys(r["backbone"] for r in rows))
    losses = list(dict.fromkeys(r["loss"] for r in rows))

    def paint(figure):
        axes = figure.subplots()
        width = 0.8 / len(kinds)
        for i, kind in enumerate(kinds):
            found = [(losses.index(r["loss"]), r["step_ratio"]) for r in rows if r["backbone"] == kind]
            axes.bar(
                [j - 0.4 + width * (i + 0.5) for j, _ in found],
                [v for _, v in found],
                width * 0.92,
                color=COLORS[i],
                label=kind,
            )
        axes.axhline(1, color="#555555", linewidth=1)
        axes.set_xticks(range(len(losses)), losses)
        axes.set_ylabel("Nested step over a single-length step")
        axes.legend()

    picture((8, 4), paint, path)
