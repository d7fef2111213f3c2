"""Pictures of a run: mAP against bits, precision and recall, the training log, what the codes are like, a gallery.

Every function takes plain data and a path ending in .png, .pdf or .svg, writes the file whole or not at all, and
returns its path. Colours are those of Okabe and Ito for methods and of viridis for code lengths; line styles
and markers repeat what the colours say. Matplotlib is imported on use and pyplot never is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import check
from .codes import plot_bits, plot_confusion, plot_distances, plot_projection
from .gallery import plot_gallery
from .style import COLORS, LINES, MARKERS, SUPTITLE, least_span, length_style, panels, picture, share_axis
from .values import named, unit_interval

__all__ = [
    "plot_at_n",
    "plot_bits",
    "plot_confusion",
    "plot_distances",
    "plot_gallery",
    "plot_history",
    "plot_map_vs_bits",
    "plot_pr_curves",
    "plot_projection",
]


def plot_map_vs_bits(
    curves: Mapping[str, Mapping[int, float] | Sequence[Mapping[int, float]]],
    path,
    *,
    marked_lengths: Sequence[int] = (),
    title: str | None = None,
    quantity: str = "Mean average precision",
) -> Path:
    """Mean average precision against the number of bits, one curve a method.

    Args:
        curves: {name: {bits: mAP}}; a curve of at most 12 points shows each of them. A sequence of curves over
            the same bits (one a seed) is drawn as thin lines below their mean.
        path: the .png, .pdf or .svg to write.
        marked_lengths: lengths (the trained ones) marked on the axis and on the curves that reach them.
        title: replaces the default title.
        quantity: what the numbers are, where it is another share from 0 to 1.

    Raises:
        TypeError, ValueError: no curve, an empty one, or a value that is not a number from 0 to 1.
        ImportError: matplotlib is missing.
    """
    seeds = {n: _seed_curves(c, f"curves[{n!r}]") for n, c in named(curves, "curves").items()}
    curves = {n: {b: float(np.mean([c[b] for c in several])) for b in several[0]} for n, several in seeds.items()}
    marked = sorted({check.positive_int(b, "marked_lengths") for b in marked_lengths})
    low = min(min(c) for c in curves.values())
    high = max(max(c) for c in curves.values())

    def draw(figure):
        axes = figure.subplots()
        for b in marked:
            axes.axvline(b, color="#bbbbbb", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for i, (name, curve) in enumerate(curves.items()):
            shown = [j for j, b in enumerate(curve) if len(curve) <= 12 or b in marked]
            axes.plot(
                list(curve),
                list(curve.values()),
                label=name,
                color=COLORS[i % len(COLORS)],
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=shown or [len(curve) - 1],
                markeredgecolor="white",
                markeredgewidth=0.8,
                markersize=7,
            )
            for thin in seeds[name] if len(seeds[name]) > 1 else ():
                axes.plot(*zip(*thin.items()), color=COLORS[i % len(COLORS)], linewidth=0.7, alpha=0.5, zorder=1.5)
        ticks = _bit_ticks(low, high, marked)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(b) for b in ticks])
        axes.minorticks_off()
        axes.grid(axis="x", visible=False)
        axes.set_xlim(low / (high / low) ** 0.03 / 1.01, high * (high / low) ** 0.03 * 1.01)
        axes.set_xlabel("Code length (bits, logarithmic scale)")
        axes.set_ylabel(f"{quantity} (0 to 1)")
        share_axis(axes, [v for several in seeds.values() for curve in several for v in curve.values()])
        axes.set_title(title or "Retrieval quality of every prefix")
        if marked:
            axes.plot([], [], color="#bbbbbb", linewidth=0.9, linestyle=(0, (2, 2)), label="trained length")
        axes.legend(loc="best")

    return picture((7, 4.4), draw, path)


def plot_pr_curves(
    curves: Mapping[int, tuple[Sequence[float], Sequence[float]]], path, *, title: str | None = None
) -> Path:
    """Precision against recall, one line a code length.

    Args:
        curves: {length: (precision, recall)}, as `RetrievalResult.pr_curve(length)` returns them.
        path: the .png, .pdf or .svg to write.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: no curve, arrays of unequal length, or a value outside [0, 1].
        ImportError: matplotlib is missing.
    """
    curves = named(curves, "curves")
    lengths = check.code_lengths(sorted(curves), "curves")
    pairs = []
    for b in lengths:
        if not isinstance(curves[b], Sequence) or len(curves[b]) != 2:
            raise TypeError(f"curves[{b}]: expected (precision, recall), got {check.describe(curves[b])}")
        precision, recall = (unit_interval(v, f"curves[{b}]") for v in curves[b])
        if precision.shape != recall.shape:
            raise ValueError(f"curves[{b}]: got {precision.size} precisions and {recall.size} recalls")
        pairs.append((precision, recall))

    def draw(figure):
        axes = figure.subplots()
        for i, (precision, recall) in enumerate(pairs):
            style = length_style(i, len(lengths))
            # A ranking has as many points as the database has items; past some hundred they only blur the line.
            kept = _at_levels(recall, np.linspace(0, 1, 300)) if len(recall) > 300 else slice(None)
            recall, precision = recall[kept], precision[kept]
            axes.plot(
                recall,
                precision,
                label=f"{lengths[i]} bits",
                markevery=_at_levels(recall, np.linspace(0.08, 0.92, 6)).tolist(),
                **style,
            )
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("Recall (share of the relevant that is retrieved)")
        axes.set_ylabel("Precision (share of the retrieved that is relevant)")
        axes.set_title(title or "Precision and recall along the ranking")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return picture((7, 4.4), draw, path)


def plot_at_n(
    curves: Mapping[int, tuple[Sequence[int], Sequence[float], Sequence[float]]], path, *, title: str | None = None
) -> Path:
    """Precision at N and recall at N side by side, one line a code length.

    Args:
        curves: {length: (N, precision, recall)}, N ascending: `result.curve_ranks(points)` and
            `result.pr_curve(length, points=points)`.
        path: the .png, .pdf or .svg to write.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: no curve, arrays of unequal length, ranks that do not rise from 1 or more, or a value
            outside [0, 1].
        ImportError: matplotlib is missing.
    """
    curves = named(curves, "curves")
    lengths = check.code_lengths(sorted(curves), "curves")
    drawn = []
    for b in lengths:
        if not isinstance(curves[b], Sequence) or len(curves[b]) != 3:
            raise TypeError(f"curves[{b}]: expected (N, precision, recall), got {check.describe(curves[b])}")
        ranks = np.asarray(curves[b][0])
        if ranks.ndim != 1 or ranks.dtype.kind not in "iu" or (np.diff(ranks, prepend=0) < 1).any():
            raise ValueError(f"curves[{b}]: expected rising ranks of 1 or more, got {check.describe(curves[b][0])}")
        precision, recall = (unit_interval(v, f"curves[{b}]") for v in curves[b][1:])
        if not ranks.size == precision.size == recall.size:
            raise ValueError(
                f"curves[{b}]: got {ranks.size} ranks, {precision.size} precisions and {recall.size} recalls"
            )
        drawn.append((ranks, precision, recall))
    last = max(int(ranks[-1]) for ranks, *_ in drawn)

    def draw(figure):
        both = panels(figure, 2)
        for column, (axes, name) in enumerate(zip(both, ("Precision", "Recall")), 1):
            for i, curve in enumerate(drawn):
                style = length_style(i, len(lengths))
                marked = _at_levels(np.log(curve[0]), np.linspace(0.05, 0.95, 6) * math.log(max(2, last))).tolist()
                axes.plot(curve[0], curve[column], label=f"{lengths[i]} bits", markevery=marked, **style)
            axes.set_xscale("log")
            axes.set_xlim(0.9, last * 1.1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.minorticks_off()
            share_axis(axes, np.concatenate([curve[column] for curve in drawn]).tolist())
            axes.set_xlabel("N, first items of the ranking (logarithmic)")
            axes.set_ylabel(f"{name} (0 to 1)")
            axes.set_title(f"{name} at N")
        figure.legend(handles=both[0].get_lines(), loc="outside lower center", ncols=min(8, len(lengths)))
        figure.suptitle(title or "Precision and recall of the first N", x=0.01, ha="left", **SUPTITLE)

    return picture((10, 4.4), draw, path)


def plot_history(history: Sequence[Mapping], path, *, code_lengths: Sequence[int], title: str | None = None) -> Path:
    """The training log: losses, dominance weights, distillation and validation mAP, one line a length.

    Args:
        history: one record an epoch, {"epoch": int, "losses": [m], "weights": [m], "distill": [m], "total": float,
            "validation": {length: mAP} or None}. A panel whose numbers no record has is left out; distillation
            is, too, where it is zero throughout.
        path: the .png, .pdf or .svg to write.
        code_lengths: the m code lengths.
        title: a title over the panels.

    Raises:
        TypeError, ValueError: no record, a record without "epoch", or a list that has not m entries.
        ImportError: matplotlib is missing.
    """
    lengths = check.code_lengths(code_lengths)
    if isinstance(history, (str, Mapping)) or not isinstance(history, Sequence):
        raise TypeError(f"history: expected a sequence of records, got {check.describe(history)}")
    if not history:
        raise ValueError("history: expected at least one record, got none")
    epochs = [check.positive_int(_get(r, "epoch", i), f"history[{i}]['epoch']", 0) for i, r in enumerate(history)]
    losses, weights, distill = (_columns(history, key, len(lengths)) for key in ("losses", "weights", "distill"))
    validation = np.full((len(history), len(lengths)), np.nan)
    for i, record in enumerate(history):
        for b, value in (record.get("validation") or {}).items():
            if int(b) in lengths:
                validation[i, lengths.index(int(b))] = value
    shown = [
        ("Loss of each length", "Loss (mean over the epoch)", losses, True),
        ("Weight of each length", "Weight (mean over the lengths is 1)", weights, False),
        (
            "Self-distillation",
            "Distillation loss (mean over the epoch)",
            np.where(distill == 0, np.nan, distill),
            True,
        ),
        ("Validation", "Mean average precision (0 to 1)", validation, False),
    ]
    shown = [p for p in shown if np.isfinite(p[2]).any()]
    if not shown:
        raise ValueError("history: expected losses, weights, distill or validation, got none in any record")

    def draw(figure):
        grid = panels(figure, len(shown), 2)
        for axes, (name, label, values, logarithmic) in zip(grid, shown):
            _history_panel(axes, epochs, values, lengths, logarithmic and values[np.isfinite(values)].min() > 0)
            axes.set_title(name)
            axes.set_ylabel(label)
            axes.set_xlabel("Epoch")
            if name == "Validation":
                share_axis(axes, values.flatten().tolist())
                _mark_best(axes, epochs, values)
            else:
                least_span(axes, span=0.2)
        handles = grid[0].get_lines()[: len(lengths)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(lengths)))
        if title:
            figure.suptitle(title, x=0.01, ha="left", **SUPTITLE)

    return picture((10, 3.7) if len(shown) <= 2 else (10, 7), draw, path)


def _at_levels(rising: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Distinct indices where a rising array first reaches each level."""
    return np.unique(np.searchsorted(rising, levels).clip(0, len(rising) - 1))


def _bit_ticks(low: int, high: int, marked: Sequence[int]) -> list[int]:
    """The marked lengths and the powers of two that do not crowd them."""
    ticks = [b for b in marked if low <= b <= high]
    for power in range(high.bit_length()):
        b = 1 << power
        if low <= b <= high and all(abs(math.log2(b / t)) > 0.45 for t in ticks):
            ticks.append(b)
    return sorted(ticks) or [low]


def _history_panel(axes, epochs, values, lengths, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    for i, b in enumerate(lengths):
        # Epochs without a value (no validation there) do not break the line.
        there = np.isfinite(values[:, i])
        x, y = np.asarray(epochs)[there], values[there, i]
        style = length_style(i, len(lengths))
        axes.plot(x, y, label=f"{b} bits", markevery=max(1, len(x) // 8), **style)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_best(axes, epochs, values) -> None:
    """The mean over the lengths, and the epoch where it is highest."""
    complete = np.isfinite(values).all(1)
    if not complete.any():
        return
    x, mean = np.asarray(epochs)[complete], values[complete].mean(1)
    best = mean.argmax()
    label = f"mean; best {mean[best]:.3f}, epoch {x[best]}"
    line = axes.plot(x, mean, color="#000000", linewidth=1, marker="*", markevery=[best], markersize=12, label=label)
    axes.legend(handles=line, loc="lower right")


def _seed_curves(value, name: str) -> list[dict[int, float]]:
    """One curve, or several over the same bits, sorted by bits."""
    several = [value] if isinstance(value, Mapping) or not isinstance(value, Sequence) else list(value)
    if not several:
        raise ValueError(f"{name}: expected at least one curve, got none")
    curves = [{check.positive_int(b, "bits"): v for b, v in sorted(named(c, name).items())} for c in several]
    for curve in curves:
        unit_interval(list(curve.values()), name)
        if curve.keys() != curves[0].keys():
            raise ValueError(f"{name}: expected curves over the same bits, got {list(curves[0])} and {list(curve)}")
    return curves


def _get(record, key: str, i: int):
    if not isinstance(record, Mapping) or key not in record:
        raise ValueError(f"history[{i}]: expected a record with {key!r}, got {check.describe(record)}")
    return record[key]


def _columns(history, key: str, width: int) -> np.ndarray:
    """Numbers `key` of every record, NaN where a record has none: (epochs, width)."""
    table = np.full((len(history), width), np.nan)
    for i, record in enumerate(history):
        if record.get(key) is not None:
            values = np.asarray(record[key], dtype=np.float64)
            if values.shape != (width,):
                raise ValueError(f"history[{i}][{key!r}]: expected {width} numbers, got shape {values.shape}")
            table[i] = values
    return table
