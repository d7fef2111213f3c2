"""Codes without labels: recall of the nearest neighbours at every length, and what fitting takes.

    python -m bench.unlabelled --data texts.npz cifar10.npz --out runs/unlabelled  # goes on where it was stopped
    python -m bench.unlabelled --out runs/unlabelled --write                       # bench/results/unlabelled.*

A file holds `features` (n, d); rows are brought to length 1. A split keeps 2,000 random rows as queries; the others
are fitted to and are the database. Recall: the share of a query's exact cosine top 10 among the code's first 10 (ties
by ascending row).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import nhl_fast as nhl
from nhl_fast.core.environment import environment
from nhl_fast.core.files import atomic_write, read_json, write_json

RESULTS = Path(__file__).parent / "results"
LENGTHS = (8, 16, 32, 64, 128, 256)
METHODS = ("random", "pca", "itq a length", "itq", "learned")
ASYMMETRIC = ("itq", "learned")  # whose queries' raw outputs are measured, too
QUERIES, NEIGHBORS, CANDIDATES = 2000, 10, (10, 100)
FUNNELS = {
    "64 bits, 500 of them by 256 bits": ((64, 500),),
    "128 bits, 100 of them by the vectors": ((128, 100),),
    "128 bits, 500 of them by the vectors": ((128, 500),),
}


def split(path: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries, database), rows of length 1."""
    x = torch.nn.functional.normalize(torch.from_numpy(np.load(path)["features"].astype(np.float32)))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:QUERIES]], x[order[QUERIES:]]


def layers(method: str, database: torch.Tensor, seed: int, folder: Path) -> dict[int, nhl.NestedHashLayer]:
    """{length: the layer that gives its code}: one for all, or one a length."""
    options = {"seed": seed, "progress": True}
    if method == "itq a length":
        return {b: nhl.fit_layer(database, (b,), "itq", **options) for b in LENGTHS}
    if method == "learned":
        options |= {"checkpoint": folder, "resume": (folder / "checkpoint.safetensors").exists()}
    layer = nhl.fit_layer(database, LENGTHS, method, **options)
    return dict.fromkeys(LENGTHS, layer)


def measure(name: str, path: Path, seed: int, method: str, out: Path, known: dict) -> dict:
    """One row: recall of every length, and the seconds of fitting."""
    queries, database = split(path, seed)
    cpu, wall = time.process_time(), time.perf_counter()
    found = layers(method, database, seed, out / f"{name}-{seed}-{method.replace(' ', '-')}")
    row = {"data": name, "split": seed, "method": method}
    row |= {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    if "neighbors" not in known:
        known["neighbors"] = nhl.neighbor_recall(
            *(found[8].encode(x) for x in (queries, database)), queries, database, (8,), NEIGHBORS, CANDIDATES
        ).neighbors
    row["recall"], row["asymmetric"] = {}, {}
    for b, layer in found.items():
        codes = layer.encode(database)
        options = {"lengths": (b,), "k": NEIGHBORS, "candidates": CANDIDATES, "neighbors": known["neighbors"]}
        row["recall"][str(b)] = nhl.neighbor_recall(layer.encode(queries), codes, **options).recall[b]
        if method not in ASYMMETRIC:
            continue
        raw = nhl.neighbor_recall(layer.project(queries).detach(), codes, asymmetric=True, **options)
        row["asymmetric"][str(b)] = raw.recall[b]
    if method == "learned":
        row["funnel"] = funnels(found[256], queries, database, known["neighbors"])
    return row


def funnels(layer, queries, database, neighbors) -> dict[str, float]:
    """Recall of searches that go coarse to fine."""
    q, d, said = layer.encode(queries), layer.encode(database), {}
    for name, stages in FUNNELS.items():
        vectors = {"vectors": database, "query_vectors": queries} if "vectors" in name else {}
        _, ids = nhl.funnel_search(q, d, NEIGHBORS, stages, **vectors)
        said[name] = float((ids[:, :, None] == neighbors[:, None]).any(1).double().mean())
    return said


def run(files: list[Path], out: Path, splits: int, methods) -> None:
    """Every row that is not there yet, each written when it is known."""
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(splits):
        for path in files:
            known: dict = {}
            for method in methods:
                file = out / f"{path.stem}-{seed}-{method.replace(' ', '-')}.json"
                if file.exists():
                    continue
                row = measure(path.stem, path, seed, method, out, known)
                write_json(file, {**row, "environment": environment()})
                print(path.stem, seed, method, {b: round(r[10], 4) for b, r in row["recall"].items()}, flush=True)


def table(rows: list[dict], key: str) -> list[str]:
    """Mean recall over the splits (and their spread), a line a method."""
    lines = [f"| method | {' | '.join(f'{b} bits' for b in LENGTHS)} |", "|---" * (len(LENGTHS) + 1) + "|"]
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method and r[key]]
        if mine:
            cells = []
            for b in LENGTHS:
                values = [r[key][str(b)]["10"] for r in mine]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.4f}{spread}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def gains(rows: list[dict]) -> tuple[dict[int, float], float] | None:
    """Of `learned` over the better of PCA and ITQ a length: a length, and the mean of these ratios."""
    mean = {
        method: {
            b: statistics.mean(r["recall"][str(b)]["10"] for r in rows if r["method"] == method) for b in LENGTHS
        }
        for method in METHODS
        if any(r["method"] == method for r in rows)
    }
    if not {"learned", "pca", "itq a length"} <= mean.keys():
        return None
    ratios = {b: mean["learned"][b] / max(mean["pca"][b], mean["itq a length"][b]) - 1 for b in LENGTHS}
    return ratios, statistics.mean(ratios.values())


def write(out: Path) -> None:
    """bench/results/unlabelled.json and .md of all rows in `out`."""
    rows = [read_json(path) for path in sorted(out.glob("*.json"))]
    if not rows:
        raise SystemExit(f"--out: no results in {out}")
    places = {str(r.pop("environment")) for r in rows}
    write_json(RESULTS / "unlabelled.json", {"environment": environment(), "machines": sorted(places), "rows": rows})
    here = environment()
    lines = [
        "# Codes without labels",
        "",
        f"Recall of the exact cosine top {NEIGHBORS} among the first {NEIGHBORS} of the code's ranking, {QUERIES:,} "
        f"queries that were not fitted to. {here['cpu']}, torch {here['versions']['torch']}, {here['date']}; "
        "`python -m bench.unlabelled`.",
    ]
    for name in dict.fromkeys(r["data"] for r in rows):
        mine = [r for r in rows if r["data"] == name]
        count = len({r["split"] for r in mine})
        lines += ["", f"## {name}", "", f"{count} split(s); where several: mean ± standard deviation."]
        lines += ["", *table(mine, "recall"), "", "The queries' raw outputs in place of their codes:", ""]
        lines += table(mine, "asymmetric")
        if found := gains(mine):
            told = ", ".join(f"{100 * v:+.1f}% at {b}" for b, v in found[0].items())
            lines += ["", f"`learned` over the better of PCA and ITQ a length: {told}; mean {100 * found[1]:+.1f}%."]
        for method in METHODS:
            seconds = [(r["cpu_seconds"], r["wall_seconds"]) for r in mine if r["method"] == method]
            if seconds:
                cpu, wall = (statistics.median(s) for s in zip(*seconds))
                lines += [
                    "",
                    f"Fitting, {method}: {cpu:.1f} s of one core's time ({wall:.0f} s on the shared machine).",
                ]
        for row in (r for r in mine if "funnel" in r):
            lines += ["", f"Coarse to fine (split {row['split']}):", ""]
            lines += [f"- {said}: {value:.4f}" for said, value in row["funnel"].items()]
    with atomic_write(RESULTS / "unlabelled.md", "w") as handle:
        handle.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="NPZ")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and checkpoints")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--write", action="store_true", help="write bench/results/unlabelled.json and .md")
    args = parser.parse_args()
    run(args.data, args.out, args.splits, args.methods)
    if args.write:
        write(args.out)


if __name__ == "__main__":
    main()
