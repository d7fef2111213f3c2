"""The parts of a report's section that tell what the codes are like; an empty list where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..pictures import plots
from ..pictures.projection import FEWEST, METHODS, project_codes
from ..text.markup import Markup, html_table, scroll
from ..training.run_folder import RunFolder
from ..training.run_pictures import NEAREST
from .codes import Measured, mean_confusion, mean_distances, mean_quality, stored_array
from .groups import Method, Section, value_text
from .parts import figure, of_seeds
from .pictures import raster, svg

PROJECTED = 1000  # items in the plane; more hide one another
_QUALITY = {
    "imbalance": ("imbalance of bits", "{:.3f}"),
    "constant_bits": ("constant bits", "{:,.1f}"),
    "correlation": ("mean |r| of bits", "{:.3f}"),
    "max_correlation": ("highest |r|", "{:.3f}"),
    "bit_entropy": ("entropy of a bit", "{:.3f}"),
    "code_entropy": ("entropy of a code", "{:.2f}"),
    "distinct_codes": ("distinct codes", "{:,.1f}"),
    "collision_rate": ("colliding pairs", "{:.2%}"),
    "colliding_items": ("colliding items", "{:.1%}"),
}


def quality(section: Section, measured: Mapping[int, Measured], pictures: bool) -> list[Markup]:
    found = []
    for method, several in _runs(section, measured):
        rows = [
            [f"{row['bits']:.0f} bits", *(_formatted(row[key], form) for key, (_, form) in _QUALITY.items())]
            for row in mean_quality(several)
        ]
        caption = f"{method.name}: codes of the database{of_seeds(method)}."
        table = html_table(caption, ["Length", *(name for name, _ in _QUALITY.values())], rows, class_="numbers")
        found.append(scroll(table, f"Quality of the codes of {method.name}"))
        if pictures:
            # Bits of one seed have no counterparts in another.
            name = f"{method.name}, seed {method.records[0].seed}"
            marked = [b for b in method.records[0].config["code_lengths"] if b <= len(several[0].bits[0])]
            image = raster(
                lambda path, m=several[0], b=marked, t=f"{section.data}: {name}": plots.plot_bits(
                    *m.bits, path, marked_lengths=b, title=t
                ),
                f"Share of ones of every bit, and correlation of every two bits, {name}.",
            )
            found.append(figure(image, f"{name}: balance and correlation of the database's bits.", wide=True))
    return found


def distances(section: Section, measured: Mapping[int, Measured]) -> list[Markup]:
    found = []
    for method, several in _runs(section, measured):
        histograms = mean_distances(several)
        if histograms:
            image = svg(
                lambda path, h=histograms, t=f"{section.data}: {method.name}": plots.plot_distances(h, path, title=t),
                f"Histograms of the Hamming distances of {method.name}, pairs with and without a common class, a "
                f"panel for each of {value_text(sorted(histograms))} bits.",
            )
            said = f"{method.name}: distances of queries and database items{_all_seeds(method)}."
            found.append(figure(image, said, wide=True))
    return found


def confusion(section: Section, measured: Mapping[int, Measured]) -> list[Markup]:
    found = []
    for method, several in _runs(section, measured):
        tables = mean_confusion(several)
        if tables:
            names = class_names(method, len(next(iter(tables.values()))))
            image = raster(
                lambda path, c=tables, n=names, t=f"{section.data}: {method.name}": plots.plot_confusion(
                    c, path, class_names=n, title=t
                ),
                f"Classes of the nearest items by the class of the query, {method.name}, a panel for each of "
                f"{value_text(sorted(tables))} bits.",
            )
            nearest = min(NEAREST, method.records[0].facts["database"])
            said = f"{method.name}: classes of the {nearest} nearest items, in each row those of one class's queries"
            found.append(figure(image, f"{said}{of_seeds(method)}.", wide=True))
    return found


def projection(section: Section, measured: Mapping[int, Measured], method: str) -> list[Markup]:
    """Codes of the database in the plane, of each method's first seed, by the `method` of `project_codes`."""
    found = []
    for runs, several in _runs(section, measured):
        folder = RunFolder(runs.records[0].path)
        codes, labels = (stored_array(folder, of("database")) for of in (folder.codes, folder.labels))
        rows = np.unique(np.linspace(0, len(codes) - 1, min(PROJECTED, len(codes))).round().astype(np.int64))
        codes, labels = np.ascontiguousarray(codes[rows]), labels[rows]
        lengths = [row["bits"] for row in several[0].quality if _distinct(codes, row["bits"]) >= FEWEST]
        if not lengths:
            continue
        points = project_codes(codes, lengths, method)
        said = class_texts(labels, class_names(runs, labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1))
        name = f"{runs.name}, seed {runs.records[0].seed}"
        image = raster(
            lambda path, p=points, s=said, t=f"{section.data}: {name} ({METHODS[method][2]})": plots.plot_projection(
                p, s, path, title=t
            ),
            f"{len(rows)} codes of the database in the plane, {name}, a panel a length: {value_text(lengths)} bits.",
        )
        caption = (
            f"{name}: {len(rows):,} codes of the database by {METHODS[method][2]}; a large mark is many equal codes. "
            "Only who is near whom means something."
        )
        found.append(figure(image, caption, wide=True))
    return found


def class_names(method: Method, classes: int) -> list[str] | None:
    """Names that the first run's settings keep; None where there are none, or for other classes."""
    inputs = RunFolder(method.records[0].path).read_config().get("inputs")
    names = inputs.get("class_names") if isinstance(inputs, Mapping) else None
    fits = isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    return names if fits else None


def class_texts(labels: np.ndarray, names: list[str] | None) -> list[str]:
    """The class of every item, in words."""
    if labels.ndim == 1:
        return [names[c] if names else str(c) for c in labels.tolist()]
    several = {0: "no class"}
    found = []
    for row in labels:
        own = np.flatnonzero(row).tolist()
        one = (names[own[0]] if names else str(own[0])) if len(own) == 1 else several.get(len(own), "several classes")
        found.append(one)
    return found


def _runs(section: Section, measured: Mapping[int, Measured]) -> Iterator[tuple[Method, list[Measured]]]:
    """The methods that have codes, and what each seed's measure."""
    for method in section.methods:
        if not method.records[0].variant:
            yield method, [measured[id(record)] for record in method.records]


def _distinct(codes: np.ndarray, length: int) -> int:
    return len(np.unique(np.unpackbits(codes, axis=1, count=length), axis=0))


def _all_seeds(method: Method) -> str:
    count = len(method.records)
    return f", all {count} seeds together" if count > 1 else f", seed {method.records[0].seed}"


def _formatted(value, form: str) -> str:
    return "–" if value is None else form.format(value).removesuffix(".0")
