"""Pictures of codes: distances of pairs, balance and correlation of bits, confusion by class, codes in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import check
from .style import COLORS, LINES, MARKERS, SUPTITLE, panels, picture
from .values import named, unit_interval

_KINDS = (("different classes", COLORS[1], LINES[1]), ("a common class", COLORS[0], LINES[0]))
_MOST_NUMBERS, _MOST_NAMES, _MOST_GROUPS = 10, 30, 20
_OTHERS = "#bbbbbb"


def plot_distances(
    histograms: Mapping[int, tuple[Sequence[int], Sequence[int]]], path, *, title: str | None = None
) -> Path:
    """Hamming distances of pairs with and without a common class, a panel a code length.

    Args:
        histograms: {length: (different, same)}, the numbers of pairs at the distances 0 to length, as
            `RetrievalResult.distance_histogram(length)` returns them. Each kind is drawn as shares of its own pairs.
        path: the .png, .pdf or .svg to write.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: no length, or numbers that are no counts of length + 1 distances, or are all 0.
        ImportError: matplotlib is missing.
    """
    histograms = named(histograms, "histograms")
    lengths = check.code_lengths(sorted(histograms), "histograms")
    drawn = [_counts(histograms[b], b) for b in lengths]

    def draw(figure):
        lines = {}
        for axes, b, both in zip(panels(figure, len(lengths)), lengths, drawn):
            furthest = int(np.flatnonzero(both.sum(0))[-1])
            said = []
            for counts, (kind, color, line) in zip(both, _KINDS):
                if not counts.any():
                    said.append("–")
                    continue
                share = counts / counts.sum()
                said.append(f"{share @ np.arange(b + 1):.1f}")
                edges = np.arange(b + 2) - 0.5
                axes.stairs(share, edges, color=color, fill=True, alpha=0.2, linewidth=0)
                lines[kind] = axes.stairs(share, edges, color=color, linewidth=1.6, linestyle=line, label=kind)
            axes.set_title(f"{b} bits (means {said[1]} and {said[0]})")
            axes.set_xlim(-0.5, max(furthest, min(b, 4)) + 0.5)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("Hamming distance")
            axes.set_ylabel("Share of the pairs")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        handles = [lines[kind] for kind, *_ in reversed(_KINDS) if kind in lines]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        figure.suptitle(title or "Distances of pairs", x=0.01, ha="left", **SUPTITLE)

    rows = -(-len(lengths) // 3)
    return picture((3.6 * max(2, min(3, len(lengths))), 2.9 * rows + 0.8), draw, path)


def plot_bits(ones, correlation, path, *, marked_lengths: Sequence[int] = (), title: str | None = None) -> Path:
    """Balance of every bit, and correlation of every two.

    Args:
        ones: (L,) share of the codes in which a bit is one, and
        correlation: (L, L) |Pearson's r| of two bits, NaN for constant bits; both as `bit_statistics` returns them.
        path: the .png, .pdf or .svg to write.
        marked_lengths: lengths (the trained ones) whose ends are marked.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: another shape, or a value outside [0, 1].
        ImportError: matplotlib is missing.
    """
    ones = unit_interval(ones, "ones")
    length = len(ones)
    correlation = _square(correlation, "correlation", length)
    marked = sorted({check.positive_int(b, "marked_lengths") for b in marked_lengths})

    def draw(figure):
        left, right = panels(figure, 2)
        for b in marked:
            if b < length:
                left.axvline(b + 0.5, color="#999999", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
                for line in (right.axvline, right.axhline):
                    line(b + 0.5, color="#999999", linewidth=0.9, linestyle=(0, (2, 2)))
        left.axhline(0.5, color="#333333", linewidth=1, linestyle=LINES[1], label="balanced")
        bits = np.arange(1, length + 1)
        left.vlines(bits, 0.5, ones, color=COLORS[0], linewidth=1, alpha=0.6)
        size = max(2.0, min(5.5, 300 / length))
        left.plot(bits, ones, "o", color=COLORS[0], markersize=size, label="a bit")
        left.set_ylim(-0.03, 1.03)
        left.set_xlim(0.5 - 0.01 * length, length + 0.5 + 0.01 * length)
        left.set_xlabel("Bit" + (" (dashed: ends of the trained lengths)" if marked else ""))
        left.set_ylabel("Share of codes in which it is one")
        left.set_title(f"Balance (mean |2p – 1| = {np.abs(2 * ones - 1).mean():.3f})")
        left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        left.legend(loc="best", ncols=2)
        off = correlation.copy()
        np.fill_diagonal(off, np.nan)
        _heat(figure, right, off, (0.5, length + 0.5), "|r| (beige: the bit itself, or constant)")
        pairs = off[np.triu_indices(length, 1)]
        known = pairs[np.isfinite(pairs)]
        right.set_title(f"Correlation (mean |r| = {known.mean():.3f})" if len(known) else "Correlation (none)")
        right.set_xlabel("Bit")
        right.set_ylabel("Bit")
        figure.suptitle(title or "Balance and correlation of the bits", x=0.01, ha="left", **SUPTITLE)

    return picture((10.5, 4.6), draw, path)


def plot_confusion(
    confusion: Mapping[int, Sequence], path, *, class_names: Sequence[str] | None = None, title: str | None = None
) -> Path:
    """Classes of the nearest items (columns) by the class of the query (rows), a panel a code length.

    Args:
        confusion: {length: (C, C) shares}, as `class_confusion` returns them; a row of NaN (no query) stays beige.
        path: the .png, .pdf or .svg to write.
        class_names: C names; None for numbers.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: no length, no square table, tables of several sizes, a value outside [0, 1], or another
            number of names.
        ImportError: matplotlib is missing.
    """
    confusion = named(confusion, "confusion")
    lengths = check.code_lengths(sorted(confusion), "confusion")
    classes = len(np.atleast_1d(confusion[lengths[0]]))
    tables = [_square(confusion[b], f"confusion[{b}]", classes) for b in lengths]
    names = [str(c) for c in range(classes)] if class_names is None else [str(name) for name in class_names]
    if len(names) != classes:
        raise ValueError(f"class_names: expected {classes} names, got {len(names)}")
    names = [name if len(name) <= 16 else f"{name[:8]}…{name[-7:]}" for name in names]
    turned = max(map(len, names)) > 2

    def draw(figure):
        for i, (axes, b, table) in enumerate(zip(panels(figure, len(lengths), 2), lengths, tables)):
            heat = _heat(figure, axes, table, (-0.5, classes - 0.5), None if i + 1 < len(lengths) else "Share")
            if classes <= _MOST_NAMES:
                axes.set_xticks(range(classes), names, rotation=90 if turned else 0)
                axes.set_yticks(range(classes), names)
                small = {"labelsize": 10 if classes <= 12 else 7}
                axes.tick_params(length=0, **small)
            if classes <= _MOST_NUMBERS:
                for (row, column), share in np.ndenumerate(table):
                    if f"{100 * share:.0f}" not in ("0", "nan"):
                        dark = sum(heat.cmap(heat.norm(share))[:3]) < 1.5
                        axes.text(
                            column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                            color="white" if dark else "black",
                        )  # fmt: skip
            own = np.diagonal(table)
            known = own[np.isfinite(own)]
            axes.set_title(f"{b} bits" + (f" (own class: {known.mean():.1%} on average)" if len(known) else ""))
            axes.set_xlabel("Class of the nearest items" + (" (numbers: %)" if classes <= _MOST_NUMBERS else ""))
            axes.set_ylabel("Class of the query")
        figure.suptitle(title or "Classes of the nearest items", x=0.01, ha="left", **SUPTITLE)

    columns = min(2, len(lengths))
    side = 4.3 if classes <= 12 else 5.2
    return picture((side * columns + 1.1, side * -(-len(lengths) // 2) + 0.6), draw, path)


def plot_projection(points: Mapping[int, Sequence], labels: Sequence[str], path, *, title: str | None = None) -> Path:
    """Codes in the plane, a panel a code length; colours and markers are classes, large marks many equal codes.

    Args:
        points: {length: (n, 2) coordinates}, as `project_codes` returns them. The axes have no unit.
        labels: n names of classes. Beyond the 20 most frequent ones, the rest is drawn in grey as "others".
        path: the .png, .pdf or .svg to write.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: no length, points that are no finite (n, 2), or another number of labels.
        ImportError: matplotlib is missing.
    """
    points = named(points, "points")
    lengths = check.code_lengths(sorted(points), "points")
    labels = np.asarray([str(label) for label in labels])
    places = []
    for b in lengths:
        place = np.asarray(points[b], dtype=np.float64)
        if place.shape != (len(labels), 2) or not len(labels) or not np.isfinite(place).all():
            raise ValueError(
                f"points[{b}]: expected finite coordinates ({len(labels)}, 2), one a label, got "
                f"{check.describe(place)}"
            )
        places.append(place)
    names, counts = np.unique(labels, return_counts=True)
    frequent = {str(name) for name in names[np.argsort(-counts, kind="stable")][:_MOST_GROUPS]}
    groups = [str(name) for name in names if name in frequent]

    styles = [(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i in range(len(groups))]
    rest = ~np.isin(labels, groups)

    def draw(figure):
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        for axes, b, place in zip(panels(figure, len(lengths)), lengths, places):
            axes.scatter(*place[rest].T, s=7, color=_OTHERS, marker=".")
            for name, (color, marker) in zip(groups, styles):
                at, items = np.unique(place[labels == name], axis=0, return_counts=True)
                axes.scatter(*at.T, s=12 * np.sqrt(items), color=color, marker=marker, linewidth=0, alpha=0.75)
            for name in groups if len(groups) <= _MOST_NUMBERS else ():
                middle = np.median(place[labels == name], axis=0)
                halo = [withStroke(linewidth=2.5, foreground="white")]
                axes.text(*middle, name, ha="center", va="center", fontweight="bold", path_effects=halo, zorder=5)
            axes.set_title(f"{b} bits")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_aspect("equal", adjustable="datalim")
            axes.spines[["left", "bottom"]].set_color("#dddddd")
        keys = [
            Line2D([], [], linestyle="", marker=marker, color=color, label=name, markersize=7)
            for name, (color, marker) in zip(groups, styles)
        ]
        if rest.any():
            keys.append(Line2D([], [], linestyle="", marker=".", color=_OTHERS, label="others"))
        figure.legend(handles=keys, loc="outside right upper")
        figure.suptitle(title or "Codes in the plane", x=0.01, ha="left", **SUPTITLE)

    rows, columns = -(-len(lengths) // 3), min(3, len(lengths))
    legend = 0.6 + 0.085 * max(map(len, groups))
    height = max(3.3 * rows + 0.5, 0.22 * len(groups) + 0.8)
    return picture((3.3 * columns + legend, height), draw, path)


def _heat(figure, axes, table: np.ndarray, extent: tuple[float, float], bar: str | None):
    """A square table of shares, 0 to 1, first row on top; beige where there is none."""
    import matplotlib

    colors = matplotlib.colormaps["Blues"].with_extremes(bad="#d9d2c5")
    low, high = extent
    image = axes.imshow(table, cmap=colors, vmin=0, vmax=1, extent=(low, high, high, low), interpolation="nearest")
    axes.grid(visible=False)
    for locator in (axes.xaxis.get_major_locator(), axes.yaxis.get_major_locator()):
        locator.set_params(integer=True, min_n_ticks=1)
    if bar is not None:
        figure.colorbar(image, ax=axes, label=bar, shrink=0.85)
    return image


def _counts(given, length: int) -> np.ndarray:
    """(2, length + 1) int64 from (different, same)."""
    if not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"histograms[{length}]: expected (different, same), got {check.describe(given)}")
    both = [np.asarray(counts) for counts in given]
    for counts in both:
        if counts.shape != (length + 1,) or counts.dtype.kind not in "iuf" or not (counts >= 0).all():
            raise ValueError(
                f"histograms[{length}]: expected counts of the distances 0 to {length}, got {check.describe(counts)}"
            )
    if not any(counts.any() for counts in both):
        raise ValueError(f"histograms[{length}]: expected at least one pair, got none")
    return np.stack(both)


def _square(value, name: str, size: int) -> np.ndarray:
    """(size, size) float64 of shares; NaN is none."""
    table = np.asarray(value, dtype=np.float64)
    if table.shape != (size, size):
        raise ValueError(f"{name}: expected shape ({size}, {size}), got {check.describe(table)}")
    if not ((table >= 0) & (table <= 1 + 1e-6) | np.isnan(table)).all():
        raise ValueError(f"{name}: expected numbers from 0 to 1, got another value")
    return table
