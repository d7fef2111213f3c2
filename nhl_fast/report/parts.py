"""The parts of a report's section, each as a list of HTML elements; an empty list where there is nothing to say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from ..core.names import data_title
from ..paper_table import cell_of, cell_text, methods_table
from ..pictures import plots
from ..text.markup import Markup, html_table, scroll, tag
from ..training.run_folder import RunFolder
from .codes import Measured, common, mean_conflicts, mean_curves
from .files import naming
from .groups import Method, Section, value_text
from .pictures import plot_method_grid, png, svg
from .records import Record


def figure(image: Markup, caption: str, wide: bool = False) -> Markup:
    """A picture with its caption; a wide one scrolls on a narrow screen, so that its text stays readable."""
    shown = tag("div", image, class_="wide", role="region", aria_label=caption, tabindex=0) if wide else image
    return tag("figure", shown, tag("figcaption", caption))


def results(section: Section, pictures: bool, percent: bool) -> list[Markup]:
    rows = section.rows("mAP", section.metric)
    table = methods_table(rows, "html", caption=section.caption, metric=section.metric, percent=percent)
    found = [scroll(table, f"{section.metric} of methods and code lengths")]
    different = [name for name in section.differences() if name != "models"]
    if len(section.methods) > 1:
        found.append(tag("p", f"The methods differ in: {', '.join(different) or 'their inputs'}.", class_="soft"))
    if len(section.methods) > 1 and min(len(m.records) for m in section.methods) < 3:
        said = "Fewer than three seeds for at least one method: differences may be noise between runs."
        found.append(tag("p", said, class_="note"))
    short = [
        r for r in section.records if not r.variant and r.epochs < r.config["epochs"] and not r.config["patience"]
    ]
    for record in short:
        said = f"{record.name} stopped after {record.epochs} of {record.config['epochs']} epochs."
        found.append(tag("p", said, class_="note"))
    return [*found, map_picture(section)] if pictures else found


def further(section: Section, percent: bool) -> list[Markup]:
    """What evaluation measured besides mAP."""
    found = []
    for metric in dict.fromkeys(name for r in section.records for name in r.metrics if name != "mAP"):
        table = methods_table(section.rows(metric), "html", metric=metric, percent=percent)
        found.append(scroll(table, f"{metric} of methods and code lengths"))
    return found


def map_picture(section: Section) -> Markup | None:
    """mAP against bits of every run: all prefixes where they were measured, else the trained lengths."""
    curves = {m.name: common([r.prefix_map or r.map for r in m.records]) for m in section.methods}
    curves = {name: found for name, found in curves.items() if found[0]}
    if not curves:
        return None
    marked = sorted({b for r in section.records for b in r.map})
    prefixes = any(r.prefix_map for r in section.records)
    what = "every prefix of the code" if prefixes else "the trained lengths"
    said = f"{section.metric} against the number of bits, {what}."
    if prefixes:
        said += " Ties in this picture: the exact mean over all orders."
    if any(len(m.records) > 1 for m in section.methods):
        said += " Thin lines are seeds, thick ones their mean."
    ends = "; ".join(
        f"{m.name} {m.records[0].map[min(m.records[0].map)]:.3f} at {min(m.records[0].map)} bits and "
        f"{m.records[0].map[max(m.records[0].map)]:.3f} at {max(m.records[0].map)} bits"
        for m in section.methods
    )
    image = svg(
        lambda path: plots.plot_map_vs_bits(
            curves, path, marked_lengths=marked, title=f"{section.data}: {section.metric} of {what}"
        ),
        f"Line chart of {section.metric} against bits. First seed: {ends}.",
    )
    return figure(image, said)


def curves(section: Section, measured: Mapping[int, Measured]) -> list[Markup]:
    """Methods side by side at every length, and all lengths of each method."""
    several = {m.name: [measured[id(r)] for r in m.records] for m in section.methods if not m.records[0].variant}
    means = {name: mean_curves(of_seeds) for name, of_seeds in several.items()}
    found = []
    lengths = sorted({b for of_lengths in means.values() for b in of_lengths})
    if len(means) > 1 and lengths:
        image = svg(
            lambda path: plot_method_grid(means, lengths, path, title=f"{section.data}: precision and recall"),
            f"Precision against recall of {', '.join(means)}, a panel for each of {value_text(lengths)} bits.",
        )
        caption = "Methods at each code length: precision against recall (mean over queries, seeds)."
        found.append(figure(image, caption, wide=True))
        ranks = next(iter(several.values()))[0].ranks
        at_n = {n: {b: (precision, ranks) for b, (precision, _) in c.items()} for n, c in means.items()}
        image = svg(
            lambda path: plot_method_grid(
                at_n,
                lengths,
                path,
                title=f"{section.data}: precision at N",
                x="N (logarithmic)",
                y="Precision at N",
                ranks=True,
            ),
            f"Precision at N of {', '.join(means)}, a panel for each of {value_text(lengths)} bits.",
        )
        caption = "Methods at each code length: precision at N (mean over queries, seeds)."
        found.append(figure(image, caption, wide=True))
    for name, of_lengths in means.items():
        if not of_lengths:
            continue
        heading, said = f"{section.data}: {name}", f"a line for each of {value_text(sorted(of_lengths))} bits"
        image = svg(
            lambda path, c=of_lengths, t=heading: plots.plot_pr_curves(c, path, title=t),
            f"Precision against recall of {name}, {said}.",
        )
        found.append(figure(image, f"{name}: precision against recall along the ranking (mean over queries, seeds)."))
        at_n = {b: (several[name][0].ranks, *curve) for b, curve in of_lengths.items()}
        image = svg(
            lambda path, c=at_n, t=heading: plots.plot_at_n(c, path, title=t),
            f"Precision at N and recall at N of {name}, {said}.",
        )
        found.append(figure(image, f"{name}: precision and recall at N (mean over queries, seeds).", wide=True))
    return found


def times(section: Section) -> list[Markup]:
    rows = []
    for method in section.methods:
        records = method.records
        best = sorted({r.best_epoch for r in records if r.best_epoch is not None})
        rows.append(
            [
                [method.name, f" ({records[0].note})" if records[0].note else None],
                len(records),
                _span([r.epochs for r in records]),
                _span(best) if best else "–",
                cell_text(cell_of([r.seconds for r in records]), 2),
                cell_text(cell_of([r.seconds_per_epoch for r in records]), 3),
                cell_text(cell_of([1000 * r.seconds_per_step for r in records]), 2),
            ]
        )
    compared = any(r.variant for r in section.records)
    what = "with validation, of several models the sum" if compared else "without validation and evaluation"
    caption = f"Training time {what}; an epoch and a step: medians. Mean ± sample standard deviation over seeds."
    head = ["Method", "Seeds", "Epochs", "Best epoch", "Training, s", "An epoch, s", "A step, ms"]
    found = [scroll(html_table(caption, head, rows, class_="numbers"), "Training time")]
    ratios = [
        single.seconds / nested.seconds
        for nested in section.records
        for single in section.records
        if (nested.variant, single.variant) == ("nested", "single")
        and (nested.path, nested.seed) == (single.path, single.seed)
    ]
    if ratios:
        ratio = statistics.median(ratios)
        found.append(tag("p", f"One model for each length took {ratio:.2f} times as long in all as the nested one."))
    known = {_machine(r) for r in section.records}
    if len(known) > 1 or None in known:
        said = "not recorded for every run" if None in known else "not the same for every run"
        found.append(
            tag("p", f"The machine or its number of threads is {said}: times may not compare.", class_="note")
        )
    return found


def training(section: Section, pictures: bool) -> list[Markup]:
    """Each method's log: the first seed's in sight, the others folded."""
    found = []
    for method in section.methods if pictures else ():
        images = [_history(method, record) for record in method.records if record.history]
        found += images[:1]
        if len(images) > 1:
            name = f"{method.name}: {len(images) - 1} more seed{'s' if len(images) > 2 else ''}"
            found.append(tag("details", tag("summary", name), images[1:]))
    return found


def _history(method: Method, record: Record) -> Markup:
    lengths = record.config["code_lengths"]
    name = f"{method.name}, seed {record.seed}"
    title = f"{data_title(record.conditions.data, record.data_options)}: {name}"
    with naming(RunFolder(record.path).log):
        image = svg(
            lambda path: plots.plot_history(record.history, path, code_lengths=lengths, title=title),
            f"Training log of {name} over {record.epochs} epochs: loss, weight, self-distillation and validation mAP "
            f"of each length.",
        )
    return figure(image, f"{name}: training log; best weights from epoch {record.best_epoch}.", wide=True)


def conflicts(section: Section) -> list[Markup]:
    """Anti-domination: how often the gradient of a longer length works against that of a prefix."""
    found = []
    for method in section.methods:
        lengths, table = method.records[0].config["code_lengths"], mean_conflicts(method)
        if table is None or len(lengths) < 2:
            continue
        rows = [
            [f"{b} bits", *(_heat(table[k][i]) if i > k else "" for i in range(1, len(lengths)))]
            for k, b in enumerate(lengths[:-1])
        ]
        caption = (
            f"{method.name}: share of the training steps in which the gradient of a longer length (column), on the "
            f"weights of a prefix (row), points against the prefix's own{of_seeds(method)}."
        )
        head = ["Prefix", *(f"{b} bits" for b in lengths[1:])]
        shown = html_table(caption, head, rows, class_="numbers heat")
        found.append(scroll(shown, f"Conflicts between lengths of {method.name}"))
    runs = [m for m in section.methods if not m.records[0].variant]
    silent = [m.name for m in runs if mean_conflicts(m) is None]
    if silent:
        said = f"Not recorded for {', '.join(silent)}: only dominance-aware weights of several lengths measure them."
        found.append(tag("p", said, class_="soft"))
    return found


def gallery(section: Section) -> list[Markup]:
    """The gallery that evaluation drew, of each method's first seed."""
    found = []
    for method in section.methods:
        record = method.records[0]
        if record.variant:
            continue
        name = f"{method.name}, seed {record.seed}"
        alt = f"Nearest database images of some queries at each code length, {name}; right and wrong ones are marked."
        image = png(RunFolder(record.path).picture("gallery"), alt)
        if image is not None:
            caption = f"{name}: the first query of each of the first classes, not chosen by result."
            found.append(figure(image, caption, wide=True))
    return found


def _machine(record: Record) -> str | None:
    said = [str([e.get(k) for k in ("cpu", "cores", "threads", "device", "gpu")]) for e in record.environments]
    return "; ".join(said) or None


def _span(values) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def of_seeds(method: Method) -> str:
    count = len(method.records)
    return f", mean over {count} seeds" if count > 1 else f", seed {method.records[0].seed}"


def _heat(share: float) -> tuple[str, dict]:
    return f"{share:.0%}", {"style": f"background: rgba(213, 94, 0, {0.6 * share:.2f})"}
