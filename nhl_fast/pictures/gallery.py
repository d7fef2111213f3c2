"""The retrieval gallery: query images beside the images that each code length retrieves for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import check
from .style import picture

RIGHT, WRONG = "#0072B2", "#D55E00"
DASHED = (0, (3, 1.6))


def plot_gallery(
    queries: Sequence[tuple],
    results: Mapping[int, Sequence[Sequence[tuple]]],
    path,
    lengths: Sequence[int],
    *,
    top: int = 10,
    title: str | None = None,
) -> Path:
    """The first retrieved images of some queries, one row a query and code length.

    A right answer has a blue frame, a wrong one an orange dashed frame and a cross.

    Args:
        queries: (image, label) of each query; an image is uint8, (H, W) or (H, W, 3), a label any text; a second line
            of it is a file name, cut from its left where it is long.
        results: {length: for each query, in rank order, (image, label, correct)}.
        path: the .png, .pdf or .svg to write.
        lengths: the lengths to show, each a key of `results`.
        top: how many answers of each ranking to show.
        title: replaces the default title.

    Raises:
        TypeError, ValueError: a length without results, unequal numbers of queries, or data that has no images
            (None in their place): there is no gallery of bare features.
        ImportError: matplotlib is missing.
    """
    lengths = check.code_lengths(lengths, "lengths")
    top = check.positive_int(top, "top")
    if not len(queries):
        raise ValueError("queries: expected at least one query, got none")
    queries = [(_image(image, f"queries[{q}]"), str(label)) for q, (image, label) in enumerate(queries)]
    rows = []
    for b in lengths:
        if b not in results:
            raise ValueError(f"results: expected rankings at {b} bits, got lengths {sorted(results)}")
        if len(results[b]) != len(queries):
            raise ValueError(f"results[{b}]: expected {len(queries)} rankings, got {len(results[b])}")
    for q in range(len(queries)):
        for b in lengths:
            ranked = [
                (_image(image, f"results[{b}][{q}]"), str(label), bool(correct))
                for image, label, correct in results[b][q][:top]
            ]
            rows.append((q, b, ranked))
    shown = max(len(ranked) for *_, ranked in rows)
    texts = [label for _, label in queries] + [label for *_, ranked in rows for _, label, _ in ranked]
    pitch = 1.3 if max(text.count("\n") for text in texts) == 0 else 1.56  # room for a second line
    group = len(lengths) * pitch + 0.35

    def draw(figure):
        from matplotlib.patches import Patch

        axes = figure.subplots()
        for i, (q, b, ranked) in enumerate(rows):
            y = q * group + i % len(lengths) * pitch
            if i % len(lengths) == 0:
                size = min(1.9, pitch * len(lengths) - (pitch - 1))
                _cell(axes, queries[q][0], queries[q][1], -3.3, y, size, "#333333", "-", 9)
                if q:
                    axes.plot([-3.3, shown * 1.1 + 0.9], [y - 0.22] * 2, color="#dddddd", linewidth=0.8)
            axes.text(-0.15, y + 0.5, f"{b} bits", ha="right", va="center", fontsize=10)
            for rank, (image, label, correct) in enumerate(ranked):
                color, line = (RIGHT, "-") if correct else (WRONG, DASHED)
                _cell(axes, image, label, rank * 1.1, y, 1, color, line, 7.5)
                if not correct:
                    axes.text(
                        rank * 1.1 + 0.97, y + 0.03, "×", color="white", fontsize=9, fontweight="bold",
                        ha="right", va="top", bbox={"boxstyle": "square,pad=0.08", "fc": WRONG, "ec": "none"},
                    )  # fmt: skip
            right = sum(correct for *_, correct in ranked)
            axes.text(shown * 1.1 + 0.05, y + 0.5, f"{right}/{len(ranked)}", va="center", color="#555555")
        for rank in range(shown):
            axes.text(rank * 1.1 + 0.5, -0.12, str(rank + 1), ha="center", color="#555555", fontsize=9)
        axes.text(-3.3, -0.12, "query", color="#555555", fontsize=9)
        axes.text(-0.15, -0.12, "rank", ha="right", color="#555555", fontsize=9)
        axes.text(shown * 1.1 + 0.05, -0.12, "right", color="#555555", fontsize=9)
        keys = [
            Patch(fill=False, edgecolor=RIGHT, linewidth=2, label="right"),
            Patch(fill=False, edgecolor=WRONG, linewidth=2, linestyle=DASHED, label="wrong (×)"),
        ]
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-3.4, shown * 1.1 + 0.9)
        axes.set_ylim(group * len(queries) - 0.3, -0.45)
        figure.suptitle(title or "Nearest database images by Hamming distance", fontsize=12, fontweight="bold")
        figure.legend(handles=keys, loc="outside lower center", ncols=2)

    width, height = shown * 1.1 + 4.3, group * len(queries) + 0.15
    return picture((max(5.5, width * 0.62), height * 0.62 + 0.75), draw, path)


def _cell(axes, image, caption: str, x: float, y: float, size: float, color: str, line, fontsize: float) -> None:
    """One framed image with its caption below; (x, y) is its upper left corner, y downwards."""
    from matplotlib.patches import Rectangle

    pixels = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    height, width = (size * n / max(image.shape[:2]) for n in image.shape[:2])
    left, above = x + (size - width) / 2, y + (size - height) / 2
    blocky = max(image.shape[:2]) <= 64
    axes.imshow(
        pixels,
        extent=(left, left + width, above + height, above),
        interpolation="nearest" if blocky else "antialiased",
        zorder=1,
    )
    frame = Rectangle((x, y), size, size, fill=False, edgecolor=color, linewidth=2, linestyle=line, zorder=2)
    axes.add_patch(frame)
    fits, file_fits = (16, 12) if size == 1 else (21, 24)
    first, *others = caption.split("\n")
    first = first if len(first) <= fits else first[: fits - 1] + "…"
    caption = "\n".join(
        [first, *(line if len(line) <= file_fits else "…" + line[1 - file_fits :] for line in others)]
    )
    axes.text(x + size / 2, y + size + 0.06, caption, ha="center", va="top", fontsize=fontsize, color="#333333")


def _image(value, name: str) -> np.ndarray:
    if value is None:
        raise ValueError(f"{name}: expected images, got None; a data set of bare features has no gallery")
    image = np.asarray(value)
    if image.dtype != np.uint8:
        raise TypeError(f"{name}: expected a uint8 image, got {check.describe(value)}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or not image.size:
        raise ValueError(f"{name}: expected an image (H, W) or (H, W, 3), got {check.describe(value)}")
    return image
