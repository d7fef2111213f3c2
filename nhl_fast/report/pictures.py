"""A report's pictures as data URIs: nothing outside the page is needed to show them."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..pictures.style import COLORS, LINES, MARKERS, SUPTITLE, panels, picture, share_axis
from ..text.markup import Markup, tag

# The address of the document type and matplotlib's metadata: nobody fetches them, but nothing should point out.
_OUTWARD = re.compile(rb"<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", re.DOTALL)
_PNG = b"\x89PNG\r\n\x1a\n"


def svg(draw: Callable[[Path], object], alt: str) -> Markup:
    """An <img> with what `draw` writes to the .svg path that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        draw(path)
        content = _OUTWARD.sub(b"", path.read_bytes())
    return tag("img", src=f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}", alt=alt)


def png(path: Path, alt: str) -> Markup | None:
    """An <img> with a .png file; None where there is none, ValueError where it is no PNG."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(_PNG) or content[12:16] != b"IHDR" or b"IEND" not in content[-16:]:
        raise ValueError(f"run: {path} is damaged: no PNG picture")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return tag("img", src=source, alt=alt, width=width, height=height)


def raster(draw: Callable[[Path], object], alt: str) -> Markup:
    """An <img> with what `draw` writes to the .png path that it is given: of pictures with many small parts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return png(path, alt)


def plot_method_grid(
    curves: Mapping[str, Mapping[int, tuple]],
    lengths: Sequence[int],
    path,
    *,
    title: str,
    x: str = "Recall",
    y: str = "Precision",
    ranks: bool = False,
) -> Path:
    """One share against another, or against ranks, a panel a code length, a curve a method.

    Args:
        curves: {method: {length: (values of y, values of x)}}; a method without a length is missing in its panel.
        lengths: the panels.
        path: the .png, .pdf or .svg to write.
        title: over the panels.
        x, y: labels.
        ranks: whether x are ranks, on a logarithmic axis, and no shares.

    Raises:
        ImportError: matplotlib is missing.
    """
    columns = min(3, len(lengths))
    shares = [v for found in curves.values() for pair in found.values() for v in np.asarray(pair[0]).tolist()]

    def draw(figure):
        grid = panels(figure, len(lengths))
        for panel, (axes, b) in enumerate(zip(grid, lengths)):
            for i, (name, found) in enumerate(curves.items()):
                if b in found:
                    _curve(axes, *found[b], name, i, ranks)
            axes.set_title(f"{b} bits")
            if ranks:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
                axes.minorticks_off()
            else:
                axes.set_xlim(-0.01, 1.01)
            share_axis(axes, shares)
            axes.set_xlabel(x if panel + columns >= len(lengths) else "")
            axes.set_ylabel("" if panel % columns else y)
        lines = {line.get_label(): line for axes in grid for line in axes.get_lines()}
        figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=wide)
        figure.suptitle(title, x=0.01, ha="left", **SUPTITLE)

    wide = max(1, min(len(curves), 120 // (max(map(len, curves)) + 8)))
    height = 0.3 + 3.1 * -(-len(lengths) // columns) + 0.25 * -(-len(curves) // wide)
    return picture((3.35 * columns, height), draw, path)


def _curve(axes, y, x, name: str, i: int, ranks: bool) -> None:
    place = np.log(x) if ranks else x
    levels = place[0] + np.linspace(0.1, 0.9, 5) * (place[-1] - place[0])
    marks = np.unique(np.searchsorted(place, levels).clip(0, len(x) - 1))
    axes.plot(
        x,
        y,
        label=name,
        color=COLORS[i % len(COLORS)],
        linestyle=LINES[i % len(LINES)],
        marker=MARKERS[i % len(MARKERS)],
        markevery=marks.tolist(),
        markeredgecolor="white",
        markeredgewidth=0.6,
    )
