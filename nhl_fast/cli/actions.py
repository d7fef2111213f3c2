"""What each command of `nhl-fast` does; parsing is in `cli`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

from ..core import check, ranks
from ..core.backend import backends as list_backends
from ..core.environment import environment
from ..core.files import as_path, atomic_write, read_json, write_json
from ..core.operation import ABSENT, SERVES, table
from ..data import load_dataset
from ..fit.run import is_fit
from ..report.write import check_targets, write_report
from ..retrieval import advise as advising
from ..retrieval.codes import mask_tail, num_bytes
from ..retrieval.metrics import check_ranks, evaluate_retrieval
from ..text.table import format_table
from ..training import compare as comparing
from ..training.arrays import load_array, save_array, save_csv
from ..training.evaluate import Evaluation, best_per_length_map, evaluate_model, metric_rows, write_evaluation
from ..training.lock import claim, hold
from ..training.model import encode_split
from ..training.run import Run
from ..training.run_folder import RunFolder, check_output
from ..training.run_pictures import write_pictures
from ..training.trained import load as load_trained
from ..training.trainer import Trainer
from . import duplicates as duplicating
from . import fit as fitted
from . import funnel as funnels
from . import search as searching
from .search import encode_input


def emit(args, obj, text: str) -> None:
    """Print `obj` as JSON where asked for, else `text`."""
    print(json.dumps(obj, indent=2) if args.json else text)


def fit(args) -> None:
    fitted.fit(args)


def open_run(args) -> Run:
    if is_fit(args.run):
        raise ValueError(f"run: {args.run} is a fit of vectors, measured when it was made: see its metrics.json")
    return Run.open(args.run, args.places, args.device)


def warn_of_threads(record: dict) -> None:
    """After the first epoch: say where the machine has no cores left for this process's threads."""
    cores, taken = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if record["epoch"] == 1 and taken > 1 and load > cores:
        print(
            f"nhl-fast: {taken} threads on {cores} cores whose load is {load:.1f} wait for one another; "
            "--threads 1 may be many times faster",
            file=sys.stderr,
        )


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def train(args) -> None:
    if args.topk is not None:
        check.positive_int(args.topk, "--topk")
    split = RunFolder(args.out).split
    split = split if args.resume is not None and split.exists() else None
    with ranks.launched(args.config.device) as several:
        train_ranks(args, split) if several else train_here(args, split)


def train_here(args, split=None, group=None) -> None:
    data = load_dataset(split_file=split, **args.data_spec)
    set_threads(args.threads)
    trainer = Trainer(
        data,
        args.config,
        args.out,
        data_spec=args.data_spec,
        progress=args.progress,
        on_epoch=warn_of_threads if args.progress else None,
    )
    with contextlib.ExitStack() as stack:

        def own() -> Path:
            return stack.enter_context(claim(args.out, args.resume is not None))

        folder = own() if group is None else ranks.from_first(own, group)
        train_and_evaluate(args, trainer, args.resume is not None, folder)


def train_ranks(args, split) -> None:
    """One of `torchrun`'s ranks; the first does what a lone process does, and the others help it to train."""
    group = ranks.resolve_group("auto")
    split = ranks.from_first(lambda: split, group)  # and no rank writes before all have looked at the folder
    if group.rank() == 0:
        train_here(args, split, group)
        return
    data = load_dataset(split_file=split, **args.data_spec)
    set_threads(args.threads)
    trainer = Trainer(data, args.config, args.out, data_spec=args.data_spec, progress=False)
    ranks.from_first(None, group)  # it owns the folder, or says why not
    trainer.fit(args.resume is not None)


def train_and_evaluate(args, trainer: Trainer, resume: bool, folder: Path) -> None:
    data = trainer.data
    if not args.no_evaluate:
        check_ranks(args.ndcg, len(data.database))
    if not args.json:
        print(
            f"{data.title}: {len(data.train)} training, {len(data.validation)} validation, {len(data.query)} query, "
            f"{len(data.database)} database rows, {data.num_classes} classes (protocol: {data.protocol})"
        )
    result = trainer.fit(resume)
    seconds = sum(r["seconds"] for r in result.history)
    said = {"run": args.out, "epochs": len(result.history), "best_epoch": result.best_epoch, "seconds": seconds}
    if not args.json:
        best = f", best weights from epoch {result.best_epoch}" if len(data.validation) else ""
        epochs = "1 epoch" if len(result.history) == 1 else f"{len(result.history)} epochs"
        print(f"trained {epochs} in {seconds:.1f} s{best}; weights in {args.out}")
    if args.no_evaluate:
        if args.json:
            print(json.dumps(said, indent=2))
        return
    args.lengths = None
    args.workers = args.config.workers
    evaluate_run(args, Run.open(folder, args.places, device=args.config.device), said)


def evaluate(args) -> None:
    files = [args.query_codes, args.database_codes, args.query_labels, args.database_labels]
    if (args.run is None) == (not any(files)):
        raise ValueError("give either a run folder or --query-codes, --database-codes and their labels")
    if args.run is not None:
        RunFolder(args.run).read_config()
        with hold(Path(args.run)):
            evaluate_run(args, open_run(args), {"run": args.run})
        return
    if not all(files):
        raise ValueError(
            "codes from files need all of --query-codes, --database-codes, --query-labels, --database-labels"
        )
    names = ("query-codes", "database-codes", "query-labels", "database-labels")
    q, d, ql, dl = (load_array(path, f"--{name}") for path, name in zip(files, names))
    bits = 8 * q.shape[-1]
    default = tuple(b for b in (8, 16, 32, 64, 128, 256, 512, 1024) if b <= bits)
    result = evaluate_retrieval(q, d, ql, dl, lengths=args.lengths or default, **measured(args))
    rows = metric_rows(Evaluation(q, d, result, {}))
    emit(args, {"lengths": rows}, format_table(rows))


def measured(args) -> dict:
    """What the options say of how rankings are measured."""
    return {"topk": args.topk, "ties": args.ties, "ndcg": args.ndcg, "mean_over": args.mean_over}


def evaluate_run(args, run: Run, said: dict) -> None:
    evaluation = evaluate_model(
        run.model, run.data, lengths=args.lengths, workers=args.workers, progress=args.progress, **measured(args)
    )
    metrics = write_evaluation(run.folder, evaluation, run.data)
    history = run.folder.read_log()
    try:
        pictures, note = write_pictures(run.folder, evaluation, run.data, history, run.code_lengths), ""
    except ImportError as error:
        pictures, note = [], f"no pictures: {error}"
    rows = metrics["lengths"]
    if run.config["best_per_length"]:
        own = best_per_length_map(run, topk=args.topk, ties=args.ties, mean_over=args.mean_over)
        rows = [{**row, "mAP_own_best": own.get(row["bits"])} for row in rows]
    folder = run.folder
    written = [str(p) for p in (folder.metrics, folder.metrics_table, folder.all_codes)]
    paths = [str(p) for p in pictures]
    where = "over the whole ranking" if args.topk is None else f"over the first {args.topk}"
    title = f"{run.data.title}: {len(run.data.query)} queries, {len(run.data.database)} database items, mAP {where}"
    lines = [title, format_table(rows), "", "files:", *(f"  {p}" for p in written + paths), *([note] if note else [])]
    emit(args, {**said, **metrics, "lengths": rows, "files": written + paths}, "\n".join(lines))


def encode(args) -> None:
    if is_fit(args.run):
        fitted.encode(args)
        return
    stored = RunFolder(args.run).read_config()["data"]
    read = [None if args.input is None else as_path(args.input, "--input"), args.places.get("path")]
    output = check_output(args.output, "--output", [*read, stored.get("path"), stored.get("labels")])
    run = (
        load_trained(args.run, device=args.device or "cpu", data_options=args.places)
        if args.input
        else open_run(args)
    )
    longest = run.code_lengths[-1]
    length = longest if args.length is None else args.length
    if not 1 <= length <= longest:
        raise ValueError(f"--length: expected 1 to {longest} bits, got {args.length}")
    listed = None
    if args.input is not None:
        codes, listed = encode_input(run, args.input, "--input", args.progress)
    else:
        codes = encode_split(run.model, getattr(run.data, args.split), workers=args.workers, progress=args.progress)
    codes = mask_tail(codes[:, : num_bytes(length)], length)
    save_array(output, codes)
    said = {"output": args.output, "codes": len(codes), "bits": length, "bytes_per_code": codes.shape[1]}
    text = f"{len(codes)} codes of {length} bits ({codes.shape[1]} bytes each) in {args.output}"
    if listed is not None:
        beside = check_output(output.with_suffix(".names.txt"), "--output")
        with atomic_write(beside, "w") as handle:
            handle.writelines(f"{name}\n" for name in listed)
        said["names"] = str(beside)
        text += f", the pictures' names in {beside}"
    emit(args, said, text)


def search(args) -> None:
    if args.run is not None:
        if args.queries or args.codes:
            raise ValueError("give either a run folder or --queries and --codes")
        if is_fit(args.run):
            fitted.search(args)
        else:
            trained = load_trained(args.run, device=args.device or "cpu", data_options=args.places)
            emit(args, *searching.search_run(args, open_run(args), trained))
        return
    if not (args.queries and args.codes):
        raise ValueError("give a run folder, or both --queries and --codes")
    queries, codes = load_array(args.queries, "--queries"), load_array(args.codes, "--codes")
    distances, ids = searching.nearest(args, queries, codes, args.length)
    lines = [
        f"query {q}: " + "  ".join(f"{i}:{d}" for i, d in zip(row_ids, row))
        for q, (row, row_ids) in enumerate(zip(distances.tolist(), ids.tolist()))
    ]
    said = {"ids": ids.tolist(), "distances": distances.tolist()}
    emit(args, said, "\n".join([*lines, "(id:distance)"]))


def duplicates(args) -> None:
    emit(args, *duplicating.duplicates(args))


def compare(args) -> None:
    check.positive_int(args.seeds, "--seeds")
    if args.out is None:
        run_comparison(args, None)
        return
    folder = as_path(args.out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder):
        files = RunFolder(folder)
        check_output(files.comparison, "--out")
        check_output(files.comparison_table, "--out")
        run_comparison(args, files)


def run_comparison(args, folder: RunFolder | None) -> None:
    data = load_dataset(**args.data_spec)
    first = args.config.seed
    set_threads(args.threads)
    result = comparing.compare(data, args.config, range(first, first + args.seeds), progress=args.progress)
    result |= {"split": data.summary(), "data_spec": args.data_spec, "data_fingerprint": data.run_fingerprint}
    result["environment"] = environment(args.config.device)
    if folder is not None:
        write_json(folder.comparison, result)
        save_csv(folder.comparison_table, result["summary"])
    times, means = result["time"], result["mean"]
    lines = [
        format_table(result["summary"]),
        "",
        f"mean mAP: nested {means['nested']:.4f}, single-length models {means['single']:.4f}",
        f"time: nested {times['nested_seconds']:.1f} s, all {len(args.config.code_lengths)} single-length models "
        f"{times['all_single_seconds']:.1f} s, {times['total_ratio']:.2f} times as long",
        f"a nested step takes {times['step_cost_of_nesting']:.2f} times a single-length step",
    ]
    if args.seeds < 3:
        lines.append("one or two seeds: run-to-run noise is about 0.02 mAP; use --seeds 3 for a claim")
    emit(args, result, "\n".join(lines))


def report(args) -> None:
    if args.output is None and args.table is None:
        raise ValueError("give -o PAGE.html, --table FILE (.tex, .md or .csv), or both")
    check_targets(args.output, args.table, ("--output", "--table"))
    said = write_report(
        args.runs, args.output, args.table, title=args.title, percent=args.percent, projection=args.projection
    )
    scale, digits = (100, 2) if args.percent else (1, 4)
    lines = []
    for section in said["sections"]:
        lines.append(section["title"])
        bits = sorted({b for m in section["methods"] for b in m["mAP"]})
        lines.append(
            format_table(
                [
                    {"method": m["method"], "seeds": len(m["seeds"])}
                    | {str(b): scale * m["mAP"][b]["mean"] if b in m["mAP"] else None for b in bits}
                    for m in section["methods"]
                ],
                digits,
            )
        )
        lines.append("")
    lines += [f"{name}: {said[name]}" for name in ("page", "table") if said[name]]
    emit(args, said, "\n".join(lines))


def advise(args) -> None:
    if args.recall is not None:
        emit(args, *funnels.advise(args))
        return
    if args.codes is not None or args.queries is not None:
        raise ValueError("--codes and --queries: expected --recall beside them")
    if args.run is None or args.items is None:
        raise ValueError("give a run folder and --items, or --codes and --recall")
    metrics = RunFolder(args.run).metrics
    if not metrics.is_file():
        raise FileNotFoundError(f"{args.run} is not evaluated yet: run 'nhl-fast evaluate {args.run}' first")
    stored = read_json(metrics)
    if not isinstance(stored, dict) or not isinstance(stored.get("prefix_map"), dict):
        raise ValueError(f"{metrics} is not the evaluation of a run")
    if args.max_latency_ms is not None:
        check.number(args.max_latency_ms, "--max-latency-ms", positive=True)
    curve = {int(b): v for b, v in stored["prefix_map"].items()}
    items, latencies = int(args.items), None
    if args.max_latency_ms is not None:
        # One length in a byte costs as much as the next; the powers of two and the ends bound the rest from above.
        steps = sorted({b for b in curve if b % 8 == 0} | {max(curve)})
        measured = advising.measure_latency(steps, items)
        latencies = {b: measured[min(s for s in steps if s >= b)] for b in curve}
    advice = advising.advise(
        curve,
        items,
        min_map=args.min_map,
        max_bytes=args.max_memory,
        max_latency=None if args.max_latency_ms is None else args.max_latency_ms / 1000,
        latencies=latencies,
        tolerance=args.tolerance,
    )
    if advice.bits is None:
        raise ValueError(f"no length meets every bound: {advice.reason}")
    latency = "" if advice.latency_seconds is None else f", {1000 * advice.latency_seconds:.2f} ms a search"
    text = (
        f"{advice.bits} bits: mAP {advice.map:.4f}, {advice.memory_bytes / 1e6:,.1f} MB for {items:,} items"
        f"{latency}\n"
        f"({advice.reason})"
    )
    emit(args, vars(advice), text)


def backends(args) -> None:
    found, operations = list_backends(), table()
    said = {
        name: {
            "available": b.available,
            "detail": b.detail,
            "operations": {operation: reasons[name] for operation, reasons in operations.items()},
        }
        for name, b in found.items()
    }
    short = {SERVES: "yes", ABSENT: "-"}
    lines = [f"{'':<24}" + "".join(f"{name:<10}" for name in found)]
    for operation, reasons in operations.items():
        lines.append(f"{operation:<24}" + "".join(f"{short.get(reasons[name], 'no'):<10}" for name in found))
    legend = "yes: serves. no: not available here, see above. -: has no implementation of this operation."
    text = "\n".join([*map(str, found.values()), "", *(line.rstrip() for line in lines), "", legend])
    emit(args, said, text)
