"""How every picture of the package looks and is written: one style, one way to a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ..core.extras import require
from ..core.files import as_path, atomic_write

TITLE_SIZE = 11
STYLE = {
    "font.size": 10,
    "axes.titlesize": TITLE_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "text.parse_math": False,
    "svg.hashsalt": "nhl_fast",
}
SUPTITLE = {"fontsize": 12, "fontweight": "bold"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
# What a file records about its making is left out, so that equal data give equal bytes.
_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}


def picture(size: tuple[float, float], draw: Callable, path) -> Path:
    """Make a figure of `size` inches, let `draw` fill it, and write it to `path`."""
    path = as_path(path)
    kind = path.suffix[1:].lower()
    if kind not in _METADATA:
        raise ValueError(f"path: expected a file name ending in .png, .pdf or .svg, got {str(path)!r}")
    require("matplotlib", "plot", "drawing a picture")
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        _mend_texts(figure)
        with atomic_write(path) as handle:
            figure.savefig(handle, format=kind, metadata=_METADATA[kind])
    return path


def _mend_texts(figure) -> None:
    """Names of data and runs may hold anything and be long: what no font draws becomes "?", titles are cut to fit."""
    from matplotlib.text import Text

    captions = {text for axes in figure.axes for text in axes.texts}  # these may have two lines
    for text in figure.findobj(Text):
        given = text.get_text()
        kept = "\n" if text in captions else ""
        drawn = "".join(c if c.isprintable() or c in kept else "?" for c in given)
        if drawn != given:
            text.set_text(drawn)
    renderer = figure.canvas.get_renderer()
    titles = [(text, 0.98) for text in figure.texts]
    if len(figure.axes) == 1:  # its title begins where the axes do
        titles += [(text, 0.88) for text in figure.axes[0].findobj(Text) if text.get_fontsize() == TITLE_SIZE]
    for text, share in titles:
        room = share * figure.bbox.width
        while (width := text.get_window_extent(renderer).width) > room:
            said = text.get_text().rstrip("…")
            text.set_text(said[: min(len(said) - 1, int(len(said) * room / width))] + "…")


def share_limits(low: float, high: float) -> tuple[float, float]:
    """Limits, in tenths, of an axis of shares from `low` to `high`: from 0 where one is below 0.5, and 0.2 apart."""
    top = min(1.0, max(0.2, math.ceil(round(10 * high + 0.2, 6)) / 10))
    bottom = 0.0 if low < 0.5 else math.floor(round(10 * low - 0.2, 6)) / 10
    return round(min(bottom, top - 0.2), 1), round(top, 1)


def share_axis(axes, values) -> None:
    """Limits of the vertical axis for shares; NaN among them is left out."""
    shown = [value for value in values if not math.isnan(value)]
    bottom, top = share_limits(min(shown), max(shown)) if shown else (0.0, 1.0)
    room = 0.02 * (top - bottom)
    axes.set_ylim(bottom - room, top + room)


def least_span(axes, factor: float = 2.0, span: float = 0.0) -> None:
    """Widen the vertical axis until it covers a factor (logarithmic) or a span, so that noise looks like noise."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        missing = math.sqrt(max(1.0, factor * low / high))
        axes.set_ylim(low / missing, high * missing)
    else:
        missing = max(0.0, span - (high - low)) / 2
        axes.set_ylim(low - missing, high + missing)


def panels(figure, count: int, most: int = 3):
    """Axes of `count` panels, at most so many side by side, row by row; the places left over stay empty."""
    columns = min(most, count)
    grid = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return grid.flat[:count]


def length_style(i: int, count: int) -> dict:
    """Colour, line style and marker of the i-th of `count` code lengths, dark for short ones."""
    import matplotlib

    return {
        "color": matplotlib.colormaps["viridis"](0.05 + 0.75 * i / max(1, count - 1)),
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }
