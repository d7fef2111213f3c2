"""The field's table, methods x code lengths, for papers (LaTeX), pages (HTML, Markdown) and spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .core import check
from .text.markup import Markup, html_table, tag

FORMATS = ("latex", "markdown", "csv", "html")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "–": "--", "λ": r"$\lambda$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A value over seeds: mean, sample standard deviation (None for one seed), number of seeds."""

    mean: float
    std: float | None
    seeds: int


def methods_table(
    rows: Sequence[Mapping],
    format: str = "markdown",
    *,
    caption: str = "",
    label: str = "",
    metric: str = "mAP",
    digits: int | None = None,
    percent: bool = False,
) -> str:
    """Methods x code lengths, as papers on hashing print them, from one row a measurement.

    Rows of the same method and length are its seeds: their mean +- sample standard deviation is shown. The best mean
    of a column, as printed, is bold where at least two methods have one; higher is better.

    Args:
        rows: {"method": str, "bits": int, metric: float} and, optionally, "seed": int; methods keep their order.
        format: "latex" (booktabs), "markdown", "csv" (full precision, no caption) or "html" (a <table>).
        caption: what was measured: data, protocol, rule for ties. Sentences on seeds and on bold are added.
        label: LaTeX label.
        metric: which number of the rows, and the name of the columns.
        digits: decimals; None for 4, or 2 with `percent`.
        percent: whether shares are given in percent.

    Returns:
        The table as text; special characters of names and caption are escaped.

    Raises:
        TypeError, ValueError: no row, a missing or wrong entry, or one seed twice for a method and length.
    """
    check.one_of(format, "format", FORMATS)
    percent = check.flag(percent, "percent")
    digits = check.positive_int((2 if percent else 4) if digits is None else digits, "digits", 0)
    table = summarize(rows, metric)
    if percent:
        table = {m: {b: in_percent(cell) for b, cell in cells.items()} for m, cells in table.items()}
    lengths = sorted({b for cells in table.values() for b in cells})
    best = _best(table, lengths, digits)
    counts = {m: _seed_text(cells.values()) for m, cells in table.items()}
    said = " ".join(filter(None, (caption.strip(), *_notes(counts, any(best.values())))))
    if format == "csv":
        return _csv(table, lengths, f"{metric}_percent" if percent else metric)
    with_seeds = len(set(counts.values())) > 1
    head = ["Method", *(["Seeds"] if with_seeds else []), *map(str, lengths)]
    dialect = _DIALECTS[format]
    body = []
    for method, cells in table.items():
        line = [dialect.escape(method), *([dialect.escape(counts[method])] if with_seeds else [])]
        for b in lengths:
            text = _number(cells.get(b), digits, dialect)
            line.append(dialect.bold(text) if method in best[b] else text)
        body.append(line)
    return dialect.render(head, body, said, f"{metric} (%)" if percent else metric, label)


def summarize(rows: Sequence[Mapping], metric: str = "mAP") -> dict[str, dict[int, Cell]]:
    """{method: {bits: Cell}} of the rows of `methods_table`, which says what is an error."""
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Sequence):
        raise TypeError(f"rows: expected a sequence of dicts, got {check.describe(rows)}")
    if not rows:
        raise ValueError("rows: expected at least one row, got none")
    values: dict[str, dict[int, list]] = {}
    seen = set()
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"method", "bits", metric} <= row.keys():
            raise ValueError(f"rows[{i}]: expected 'method', 'bits' and {metric!r}, got {check.describe(row)}")
        method, bits = row["method"], check.positive_int(row["bits"], f"rows[{i}]['bits']")
        if not isinstance(method, str):
            raise TypeError(f"rows[{i}]['method']: expected a name, got {check.describe(method)}")
        value = check.number(row[metric], f"rows[{i}][{metric!r}]", minimum=None)
        if row.get("seed") is not None:
            key = method, bits, row["seed"]
            if key in seen:
                raise ValueError(f"rows[{i}]: seed {row['seed']} of {method!r} at {bits} bits comes twice")
            seen.add(key)
        values.setdefault(method, {}).setdefault(bits, []).append(value)
    return {m: {b: cell_of(v) for b, v in sorted(cells.items())} for m, cells in values.items()}


def cell_of(values: Sequence[float]) -> Cell:
    """Mean and sample standard deviation of at least one value."""
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def in_percent(cell: Cell) -> Cell:
    """A share's cell in percent."""
    return Cell(100 * cell.mean, None if cell.std is None else 100 * cell.std, cell.seeds)


def cell_text(cell: Cell, digits: int) -> str:
    """'0.1234 ± 0.0012', or the number alone for one seed."""
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    return f"{cell.mean:.{digits}f}{spread}"


def escape_latex(text: str) -> str:
    """`text` as LaTeX prints it; control characters and line ends become spaces."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))


def escape_markdown(text: str) -> str:
    """`text` as Markdown prints it, in a cell of a table too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", one_line(text))


def one_line(text: str) -> str:
    """`text` with single spaces for control characters and line ends."""
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()


def _best(table, lengths, digits: int) -> dict[int, set[str]]:
    """{bits: methods whose mean, as printed, is the highest}; none where a column has one method."""
    best = {}
    for b in lengths:
        means = {m: round(cells[b].mean, digits) for m, cells in table.items() if b in cells}
        best[b] = {m for m, v in means.items() if v == max(means.values())} if len(means) > 1 else set()
    return best


def _seed_text(cells) -> str:
    counts = sorted({cell.seeds for cell in cells})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _notes(counts: Mapping[str, str], bold: bool) -> list[str]:
    different = sorted(set(counts.values()))
    if different == ["1"]:
        notes = ["One seed."]
    elif len(different) == 1:
        notes = [f"Mean ± sample standard deviation over {different[0]} seeds."]
    else:
        notes = ["Mean ± sample standard deviation over seeds (their number is in the second column)."]
    return [*notes, "Best in bold."] if bold else notes


def _number(cell: Cell | None, digits: int, dialect):
    return dialect.escape("–" if cell is None else cell_text(cell, digits))


def _csv(table, lengths, metric: str) -> str:
    several = any(cell.seeds > 1 for cells in table.values() for cell in cells.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric}_{b}{part}" for b in lengths for part in ("", *(("_std",) if several else ()))]
    writer.writerow(["method", "seeds", *columns])
    for method, cells in table.items():
        line = [one_line(method), _seed_text(cells.values())]
        for b in lengths:
            cell = cells.get(b)
            line.append("" if cell is None else repr(cell.mean))
            if several:
                line.append("" if cell is None or cell.std is None else repr(cell.std))
        writer.writerow(line)
    return text.getvalue()


class _Latex:
    escape = staticmethod(escape_latex)

    @staticmethod
    def bold(text):
        mean, pm, rest = text.partition(r" $\pm$ ")
        return rf"\textbf{{{mean}}}{pm}{rest}"

    @staticmethod
    def render(head, body, caption, metric, label):
        first = head.index("Seeds") + 1 if "Seeds" in head else 1
        span = len(head) - first
        lines = [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            r"\toprule",
            rf"{'& ' * first}\multicolumn{{{span}}}{{c}}{{{escape_latex(metric)} at code length (bits)}} \\",
            rf"\cmidrule(lr){{{first + 1}-{len(head)}}}",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


class _Markdown:
    escape = staticmethod(escape_markdown)

    @staticmethod
    def bold(text):
        mean, pm, rest = text.partition(" ± ")
        return f"**{mean}**{pm}{rest}"

    @staticmethod
    def render(head, body, caption, metric, label):
        head = [f"{name} bits" if name.isdigit() else name for name in head]
        rule = ["---", *["---:"] * (len(head) - 1)]
        lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
        return "\n".join([f"{escape_markdown(metric)}. {escape_markdown(caption)}", "", *lines]) + "\n"


class _Html:
    escape = staticmethod(str)

    @staticmethod
    def bold(text):
        mean, pm, rest = text.partition(" ± ")
        return Markup(f"{tag('strong', mean)}{pm}{rest}")

    @staticmethod
    def render(head, body, caption, metric, label):
        head = [f"{name} bits" if name.isdigit() else name for name in head]
        return html_table([tag("strong", f"{metric}. "), caption], head, body, class_="numbers")


_DIALECTS = {"latex": _Latex, "markdown": _Markdown, "html": _Html}
