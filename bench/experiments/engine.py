"""From an experiment's config file to its table of results: runs in parallel processes, each kept in a cache.

A config is JSON: "title", "question", "settings" (changes to `TrainConfig` for all runs), "data" (see
`datasets.build`), "seeds", "axes" (name -> list of {"label", ...}), "arms", "measures", "show" (a plot of `figures`),
"reference" (the arm that `paired` tests the others against, else "single") and "quick" (what --quick replaces). An
entry of an axis may hold "settings", "settings_by" (axis -> label -> settings, later ones over earlier ones; "arm"
counts as an axis), "seeds_by" (axis -> label -> seeds), "data" and "rule" (see `weightings.build`). An arm is
{"label", "lengths": [..]} for one model with all lengths, or {"label", "each": [..]} for one model a length; it may
hold "settings" and "seeds_by", too.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
import statistics
from pathlib import Path

import torch
from tqdm.auto import tqdm

from nhl_fast.core.files import read_json, write_json

from . import datasets, jobs

HERE = Path(__file__).parent
REFERENCE = "single"
KEYS = {"title", "question", "settings", "data", "seeds", "axes", "arms", "measures", "quick", "kind", "show"}
KEYS |= {"reference"}


def load(name: str, quick: bool = False) -> dict:
    """The config of experiment `name`, with its "quick" replacements if asked."""
    path = HERE / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"experiment: expected one of {', '.join(names())}, got {name!r}")
    config = read_json(path)
    unknown = sorted(set(config) - KEYS)
    if unknown:
        raise ValueError(f"{path.name}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    _check_tables(path.name, config)
    if quick:
        changes = config.get("quick", {})
        axes = {
            axis: [e for e in entries if e["label"] in changes.get("axes", {}).get(axis, [e["label"]])]
            for axis, entries in config.get("axes", {}).items()
        }
        settings = {**config.get("settings", {}), **changes.get("settings", {})}
        config = {**config, "seeds": changes.get("seeds", [0]), "settings": settings, "axes": axes}
    return config


def _check_tables(name: str, config: dict) -> None:
    known = {axis: {e["label"] for e in entries} for axis, entries in config.get("axes", {}).items()}
    arms = {arm["label"] for arm in config.get("arms", ())}
    for entry in (e for entries in (*config.get("axes", {}).values(), config.get("arms", ())) for e in entries):
        for kind, axes in (("settings_by", {**known, "arm": arms}), ("seeds_by", known)):
            for axis, table in entry.get(kind, {}).items():
                if wrong := sorted(set(table) - axes.get(axis, set())):
                    raise ValueError(f"{name}: {kind} of {entry['label']!r}: {axis} has no {', '.join(wrong)}")


def names() -> list[str]:
    """All experiments."""
    return sorted(p.stem for p in HERE.glob("*.json"))


def other_data(data: dict, name: str | None, counts: dict) -> dict:
    """`data`, or what stands for it where other data was asked for, with `counts` of rows a class."""
    if name is None:
        return data
    if name != "digits":
        return {**data, "name": name, **counts}
    kept = {k: v for k, v in data.items() if k not in ("labels", "queries", "train", "smallest_class", "net")}
    return {
        **kept,
        "name": name,
        "queries_per_class": 20,
        "train_per_class": min(100, data.get("train_per_class", 100)),
    }


def expand(config: dict, data_name: str | None = None, counts: dict | None = None) -> list[jobs.Job]:
    """All runs of a config: axes x arms x seeds."""
    found, axes = [], config.get("axes", {})
    for cell in itertools.product(*axes.values()):
        labels = {axis: entry["label"] for axis, entry in zip(axes, cell)}
        data, rules, seeds = dict(config["data"]), [None], config["seeds"]
        for entry in cell:
            for axis, table in entry.get("seeds_by", {}).items():
                seeds = [s for s in seeds if s in table.get(labels[axis], seeds)]
            data |= entry.get("data", {})
            rules += [entry["rule"]] if "rule" in entry else []
        data = other_data(data, data_name, counts or {})
        for arm, seed in itertools.product(config["arms"], seeds):
            if any(seed not in t.get(labels[axis], [seed]) for axis, t in arm.get("seeds_by", {}).items()):
                continue
            settings = dict(config.get("settings", {}))
            for entry in cell:
                settings |= entry.get("settings", {})
                for axis, table in entry.get("settings_by", {}).items():
                    settings |= table.get({**labels, "arm": arm["label"]}[axis], {})
            merged = {**settings, **arm.get("settings", {})}
            for lengths in [[b] for b in arm["each"]] if "each" in arm else [arm["lengths"]]:
                found.append(
                    jobs.Job(
                        {**labels, "arm": arm["label"]},
                        seed,
                        data,
                        {**merged, "code_lengths": lengths},
                        rules[-1] if len(lengths) > 1 else None,
                        tuple(config.get("measures", ())),
                    )
                )
    return found


def _work(job: jobs.Job) -> dict:
    if "memory" not in job.measures:
        return _alone(job)
    # A process of its own, whose memory no earlier run has grown.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_alone, job).result()


def _alone(job: jobs.Job) -> dict:
    torch.set_num_threads(1)
    return jobs.run(job)


def run_all(wanted: list[jobs.Job], cache: Path, processes: int, description: str) -> list[dict]:
    """A record for every job; those in the cache are not run again. A killed run loses only what was under way."""
    cache.mkdir(parents=True, exist_ok=True)
    unique = {job.key(): job for job in wanted}
    missing = [key for key in unique if not (cache / f"{key}.json").exists()]
    bar = tqdm(total=len(unique), initial=len(unique) - len(missing), desc=description, unit="run")
    if missing:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
            futures = {pool.submit(_work, unique[key]): key for key in missing}
            try:
                for future in concurrent.futures.as_completed(futures):
                    write_json(cache / f"{futures[future]}.json", future.result())
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    bar.close()
    return [read_json(cache / f"{job.key()}.json") for job in wanted]


def summarise(wanted: list[jobs.Job], records: list[dict]) -> list[dict]:
    """One row a cell and code length: labels, bits, mAP mean and standard deviation over the seeds."""
    cells: dict[tuple, dict[int, list[float]]] = {}
    for job, record in zip(wanted, records):
        cell = cells.setdefault(tuple(job.labels.items()), {})
        for bits, value in record["map"].items():
            cell.setdefault(int(bits), []).append(value)
    rows = []
    for labels, lengths in cells.items():
        for bits, values in sorted(lengths.items()):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(
                {**dict(labels), "bits": bits, "mAP": statistics.fmean(values), "std": spread, "seeds": len(values)}
            )
    return rows


def collect(wanted: list[jobs.Job], records: list[dict], name: str) -> list[dict]:
    """What each run measured under `name`, with its labels and seed."""
    return [
        {**job.labels, "seed": job.seed, "lengths": job.config["code_lengths"], name: record[name]}
        for job, record in zip(wanted, records)
        if record.get(name) is not None
    ]


def describe(config: dict, wanted: list[jobs.Job]) -> dict:
    """What a result says of itself besides its rows."""
    return {
        "title": config["title"],
        "question": config["question"],
        "data": wanted[0].data,
        "features": datasets.told(wanted[0].data["name"]),
        "split_seeds": sorted({job.data.get("split", jobs.SPLIT_SEED + job.seed) for job in wanted}),
        "seeds": sorted({job.seed for job in wanted}),
        "settings": config.get("settings", {}),
        "reference": config.get("reference", REFERENCE),
        "runs": len(wanted),
        "config": json.loads(json.dumps({k: config.get(k) for k in ("axes", "arms")})),
    }
