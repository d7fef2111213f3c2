"""A report of runs: one HTML page to attach to a paper, and the paper's table."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import as_path, atomic_write
from ..core.version import __version__
from ..paper_table import methods_table, summarize
from ..pictures.projection import require_method
from ..training.run_folder import check_output
from .groups import Section, group
from .page import render
from .records import distinct_names, load_records

_TABLES = {".tex": "latex", ".md": "markdown", ".csv": "csv"}
_PAGES = (".html", ".htm")


def write_report(
    runs: Sequence,
    page=None,
    table=None,
    *,
    title: str | None = None,
    date: str | None = None,
    percent: bool = False,
    projection: str | None = None,
) -> dict:
    """Write a page about runs, a table of them, or both. The run folders are only read.

    Runs that differ in the seed alone are one method: mean and standard deviation are given. Results of other data,
    rows, cut or rule for ties go into sections (or tables) of their own. Both files are made before one is written.

    Args:
        runs: evaluated run folders (of `nhl-fast train`), and folders or files of comparisons (compare.json).
        page: the .html to write, which needs no other file and no network.
        table: the .tex (booktabs), .md or .csv to write, methods x code lengths.
        title: of the page.
        date: of the page, as it is to be read; default today.
        percent: whether the tables of measures are in percent.
        projection: "tsne" or "umap" to show the page's codes in the plane (`project_codes`); None leaves that out.

    Returns:
        {"page", "table", "sections": [{"title", "data", "protocol", "topk", "ties", "methods": [{"method", "seeds",
        "mAP": {bits: {"mean", "std", "seeds"}}}]}]}.

    Raises:
        FileNotFoundError: a run, or a folder to write to, is not there, or a run is not evaluated.
        ValueError, TypeError: damaged or foreign files (the message names the folder), one run given twice, another
            suffix, or a .csv for results that may not stand in one table.
        ImportError: the package of the `projection` is missing.
    """
    if isinstance(runs, (str, bytes)) or not isinstance(runs, Sequence) or not runs:
        raise ValueError(f"runs: expected at least one run folder, got {runs!r}")
    if page is None and table is None:
        raise ValueError("page, table: expected at least one file to write, got none")
    page, table = check_targets(page, table)
    percent = check.flag(percent, "percent")
    if projection is not None:
        require_method(projection, "projection")
    sections = group(distinct_names([record for run in runs for record in load_records(run)]))
    texts = {}
    if table is not None:
        texts[table] = tables_text(sections, _TABLES[table.suffix.lower()], percent)
    if page is not None:
        heading = title or f"Nested hashing: {', '.join(dict.fromkeys(s.data for s in sections))}"
        day = date or datetime.date.today().isoformat()
        texts[page] = render(sections, heading, day, made_with(), percent, projection)
    for path, text in texts.items():
        with atomic_write(path, "w") as handle:
            handle.write(text.encode("utf-8", "replace").decode())  # half a surrogate pair, from damaged JSON
    return {
        "page": None if page is None else str(page),
        "table": None if table is None else str(table),
        "sections": [_summary(section) for section in sections],
    }


def tables_text(sections: Sequence[Section], format: str, percent: bool = False) -> str:
    """The table of each section, one after the other; a .csv holds one."""
    if format == "csv" and len(sections) > 1:
        found = "; ".join(f"{s.title} ({s.metric}, ties {s.conditions.ties})" for s in sections)
        raise ValueError(
            f"table: one .csv holds one table, but these results may not share one: {found}; "
            "report them apart, or write .tex or .md"
        )
    texts = []
    for i, section in enumerate(sections, 1):
        rows = section.rows("mAP", section.metric)
        label = f"tab:nested-hashing-{i}" if len(sections) > 1 else "tab:nested-hashing"
        options = {"caption": section.caption, "label": label, "metric": section.metric, "percent": percent}
        texts.append(methods_table(rows, format, **options))
    return "\n".join(texts)


def made_with() -> str:
    """Versions of what makes the page."""
    return f"page made with nhl_fast {__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}, Python " + (
        platform.python_version()
    )


def _summary(section: Section) -> dict:
    c = section.conditions
    cells = summarize(section.rows())
    methods = [
        {
            "method": m.name,
            "seeds": [r.seed for r in m.records],
            "mAP": {b: asdict(cell) for b, cell in cells[m.name].items()},
        }
        for m in section.methods
    ]
    return {
        "title": section.title,
        "data": c.data,
        "protocol": c.protocol,
        "topk": c.topk,
        "ties": c.ties,
        "mean_over": c.mean_over,
        "methods": methods,
    }


def check_targets(page, table, names: tuple[str, str] = ("page", "table")) -> tuple[Path | None, Path | None]:
    """The files to write, checked before the work; `names` are those of the arguments."""
    page = None if page is None else _target(page, names[0], _PAGES)
    return page, None if table is None else _target(table, names[1], tuple(_TABLES))


def _target(value, name: str, suffixes: tuple[str, ...]) -> Path:
    path = as_path(value, name)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: expected a file name ending in {' or '.join(suffixes)}, got {str(path)!r}")
    return check_output(path, name)
