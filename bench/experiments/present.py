"""Tables and plots of the experiments: on the terminal, and in bench/results/experiments."""

from __future__ import annotations

import statistics

from bench.common.record import RESULTS, environment
from nhl_fast.core.files import atomic_write, write_json
from nhl_fast.paper_table import methods_table
from nhl_fast.text.table import format_table
from nhl_fast.training.arrays import save_csv

from . import engine, figures, paired

FOLDER = RESULTS / "experiments"
EXTRA = (
    "recorded",
    "backbone",
    "quality",
    "asymmetric",
    "prefix_map",
    "ties",
    "advice",
    "best_per_length",
    "weights",
    "graded",
    "curve",
    "memory",
)


def rows(config: dict, wanted, records) -> dict:
    """The table of results and what the runs measured besides mAP."""
    extra = {name: engine.collect(wanted, records, name) for name in EXTRA if name in config.get("measures", ())}
    for name, found in {
        "prefix_map": engine.collect(wanted, records, "prefix_map"),
        "recorded": engine.collect(wanted, records, "recorded"),
        "backbone": engine.collect(wanted, records, "backbone"),
    }.items():
        if found:
            extra[name] = found
    runs = [
        {**job.labels, "seed": job.seed, "bits": int(bits), "mAP": value}
        for job, record in zip(wanted, records)
        for bits, value in record["map"].items()
    ]
    tests = paired.against(wanted, records, config.get("reference", engine.REFERENCE))
    return {
        "rows": engine.summarise(wanted, records),
        "runs": runs,
        "run_seconds": sum(r["seconds"] for r in records),
        "seconds": timed(wanted, records),
        "paired": tests,
        **extra,
    }


def timed(wanted, records) -> list[dict]:
    """Seconds of training of every cell: the median over the seeds of a run, or of the runs of all its lengths."""
    cells: dict[tuple, dict[int, float]] = {}
    for job, record in zip(wanted, records):
        cell = cells.setdefault(tuple(job.labels.items()), {})
        cell[job.seed] = cell.get(job.seed, 0.0) + record["seconds"]
    return [{**dict(labels), "seconds": statistics.median(cell.values())} for labels, cell in cells.items()]


def paper_rows(runs: list[dict]) -> list[dict]:
    """Runs as `methods_table` takes them: the labels joined to a method's name."""
    told = ("seed", "bits", "mAP")
    return [
        {"method": ", ".join(str(v) for k, v in run.items() if k not in told), **{k: run[k] for k in told}}
        for run in runs
    ]


def caption(document: dict) -> str:
    """Data, protocol and rule for ties, for a table in a paper."""
    data, each = document["data"], " a class" if "queries" not in document["data"] else ""
    queries, train = (data[name] if not each else data[f"{name}_per_class"] for name in ("queries", "train"))
    ranking = f"of the first {data['topk']}" if data.get("topk") else "over the whole ranking"
    return (
        f"{document['title']}. Data {data['name']} ({document['features']}), "
        f"{queries} queries and {train} training items{each}, the rest is the "
        f"database; mAP {ranking}, expected value over ties."
    )


def wide(rows: list[dict]) -> list[dict]:
    """One line a cell: labels, mAP (and deviation) at every length, and the mean over the lengths."""
    cells: dict[tuple, dict] = {}
    for row in rows:
        labels = tuple((k, v) for k, v in row.items() if k not in ("bits", "mAP", "std", "seeds"))
        cells.setdefault(labels, {})[row["bits"]] = row
    lines = []
    for labels, found in cells.items():
        line = dict(labels)
        for bits, row in sorted(found.items()):
            line[str(bits)] = f"{row['mAP']:.4f}±{row['std']:.3f}"
        line["mean"] = statistics.fmean(r["mAP"] for r in found.values())
        lines.append(line)
    return lines


def show(name: str, document: dict) -> None:
    """Print the table."""
    print(f"\n{name}: {document['title']}")
    table = document["rows"]
    if not table:
        return
    if "mAP" in table[0]:
        lines = wide(table)
        columns = sorted({k for line in lines for k in line if k.isdigit()}, key=int)
        labels = [k for k in lines[0] if not k.isdigit() and k != "mean"]
        table = [{k: line.get(k) for k in (*labels, *columns, "mean")} for line in lines]
    print(format_table(table))


def write(name: str, config: dict, document: dict) -> None:
    """NAME.json, NAME.csv, the paper's tables NAME.tex and NAME.md and, where the config names a figure, NAME.png."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = environment()
    about["command"] = f"python -m bench.experiments {name} --write"
    write_json(FOLDER / f"{name}.json", {"environment": about, **document})
    save_csv(FOLDER / f"{name}.csv", document["rows"] or document["floats"])
    if document.get("runs"):
        for suffix, kind in ((".tex", "latex"), (".md", "markdown")):
            text = methods_table(paper_rows(document["runs"]), kind, caption=caption(document), label=f"tab:{name}")
            write_text(FOLDER / f"{name}{suffix}", text)
    if config.get("show"):
        figures.draw(config["show"], document, FOLDER / f"{name}.png")


def write_text(path, text: str) -> None:
    """A text file, written whole or not at all."""
    with atomic_write(path, "w") as handle:
        handle.write(text)
