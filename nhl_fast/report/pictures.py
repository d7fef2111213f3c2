"""A report's pictures as data URIs: nothing outside the page is needed to show them."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..pictures.style import COLORS, LINES, MARKERS, picture
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


def plot_pr_grid(curves: Mapping[str, Mapping[int, tuple]], lengths: Sequence[int], path) -> Path:
    """Precision against recall, a panel a code length, a curve a method.

    Args:
        curves: {method: {length: (precision, recall)}}; a method without a length is missing in its panel.
        lengths: the panels.
        path: the .png, .pdf or .svg to write.

    Raises:
        ImportError: matplotlib is missing.
    """

    columns = min(3, len(lengths))

    def draw(figure):
        grid = figure.subplots(-(-len(lengths) // columns), columns, squeeze=False)
        for panel, (axes, b) in enumerate(zip(grid.flat, lengths)):
            for i, (name, found) in enumerate(curves.items()):
                if b in found:
                    _curve(axes, *found[b], name, i)
            axes.set_title(f"{b} bits")
            axes.set_xlim(-0.01, 1.01)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("Recall" if panel + columns >= len(lengths) else "")
            axes.set_ylabel("" if panel % columns else "Precision")
        for axes in grid.flat[len(lengths) :]:
            axes.set_axis_off()
        lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
        figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=wide)

    wide = max(1, min(len(curves), 120 // (max(map(len, curves)) + 8)))
    height = 3.1 * -(-len(lengths) // columns) + 0.25 * -(-len(curves) // wide)
    return picture((3.35 * columns, height), draw, path)


def _curve(axes, precision, recall, name: str, i: int) -> None:
    marks = np.unique(np.searchsorted(recall, np.linspace(0.1, 0.9, 5)).clip(0, len(recall) - 1))
    axes.plot(
        recall,
        precision,
        label=name,
        color=COLORS[i % len(COLORS)],
        linestyle=LINES[i % len(LINES)],
        marker=MARKERS[i % len(MARKERS)],
        markevery=marks.tolist(),
        markeredgecolor="white",
        markeredgewidth=0.6,
    )
