"""Codes without labels: recall of the nearest neighbours at every length, and what fitting takes.

    python -m bench.unlabelled --data texts.npz cifar10.npz --out runs/unlabelled  # goes on where it was stopped
    python -m bench.unlabelled --out runs/unlabelled --write                       # bench/results/unlabelled.*

A file holds `features` (n, d); rows are brought to length 1. A split keeps 2,000 random rows as queries; the others
are fitted to and are the database. Recall: the share of a query's exact cosine top 10 among the code's first 10 (ties
by ascending row).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

import nhl_fast as nhl
from bench.common import arguments
from bench.common.record import RESULTS, environment, markdown
from nhl_fast.core.files import atomic_write, read_json, write_json
from nhl_fast.fit.backbone import Behind, HiddenLayer

LENGTHS = (8, 16, 32, 64, 128, 256)
METHODS = ("random", "pca", "itq a length", "itq", "learned")
A_LENGTH, HIDDEN = "learned a length", "learned behind a hidden layer"  # asked for by name
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
    if method == A_LENGTH:
        return {b: nhl.fit_layer(database, (b,), "learned", **options) for b in LENGTHS}
    if method == HIDDEN:
        torch.manual_seed(seed)
        backbone = HiddenLayer(database.shape[1], 2 * database.shape[1])
        layer = nhl.fit_layer(database, LENGTHS, "learned", backbone=backbone, **options)
        return dict.fromkeys(LENGTHS, Behind(layer, backbone))
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
        row["funnel"] = funnels(found[LENGTHS[-1]], queries, database, known["neighbors"])
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


def mean_recall(
    rows: list[dict], key: str = "recall", candidates: int = NEIGHBORS
) -> dict[str, dict[int, list[float]]]:
    """{method: {bits: one number a split}}."""
    found: dict[str, dict[int, list[float]]] = {}
    for method in (*METHODS, A_LENGTH, HIDDEN):
        mine = [r[key] for r in rows if r["method"] == method and r[key]]
        if mine:
            found[method] = {b: [r[str(b)][str(candidates)] for r in mine] for b in LENGTHS}
    return found


def table(rows: list[dict], key: str = "recall") -> str:
    """Mean recall over the splits, with their standard deviation, a line a method."""

    def cell(values: list[float]) -> str:
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.4f}{spread}"

    lines = [
        [method, *map(cell, found.values()), len(found[LENGTHS[0]])]
        for method, found in mean_recall(rows, key).items()
    ]
    return markdown(["method", *(f"{b} bits" for b in LENGTHS), "splits"], lines)


def gains(rows: list[dict]) -> str:
    """What `learned` gains over the better of PCA and ITQ a length: at every length, and in the mean."""
    found = mean_recall(rows)
    count = len(found["learned"][LENGTHS[0]])
    ratios = {}
    for b in LENGTHS:
        best = max(statistics.mean(found[m][b][:count]) for m in ("pca", "itq a length"))
        ratios[b] = statistics.mean(found["learned"][b]) / best - 1
    said = ", ".join(f"{100 * ratio:+.1f}% at {b}" for b, ratio in ratios.items())
    mean = 100 * statistics.mean(ratios.values())
    return f"`learned` over the better of PCA and ITQ a length: {said} bits; {mean:+.1f}% in the mean of these."


def beside(rows: list[dict], other: str, method: str = "learned") -> str:
    """What a method finds more than another one, at every length, over the splits that both were fitted to."""
    kept = {r["split"]: r["recall"] for r in rows if r["method"] == other}
    mine = {r["split"]: r["recall"] for r in rows if r["method"] == method and r["split"] in kept}
    said = []
    for b in LENGTHS:
        ours, theirs = (statistics.mean(found[s][str(b)][str(NEIGHBORS)] for s in mine) for found in (mine, kept))
        said.append(f"{100 * (ours / theirs - 1):+.1f}% at {b}")
    return f"`{method}` over `{other}`, {len(mine)} split{'s' * (len(mine) > 1)}: {', '.join(said)} bits."


def seconds(rows: list[dict]) -> str:
    """Time of fitting, a method: of one core, and as it took on the machine."""
    lines = []
    for method in (*METHODS, A_LENGTH, HIDDEN):
        mine = [(r["cpu_seconds"], r["wall_seconds"]) for r in rows if r["method"] == method]
        if mine:
            lines.append([method, *(f"{statistics.median(s):,.0f}" for s in zip(*mine))])
    return markdown(["method", "one core's time, s", "time on the shared machine, s"], lines)


def coarse_to_fine(rows: list[dict]) -> str:
    """Recall of searches in stages, mean over the splits."""
    mine = [r["funnel"] for r in rows if "funnel" in r]
    return markdown(
        ["search", f"recall@{NEIGHBORS}"],
        [[name, f"{statistics.mean(r[name] for r in mine):.4f}"] for name in FUNNELS],
    )


def page(rows: list[dict], here: dict) -> str:
    """All of it as Markdown."""
    parts = [
        "# Codes without labels",
        f"Recall of the exact cosine top {NEIGHBORS} among the first {NEIGHBORS} of the code's ranking, {QUERIES:,} "
        f"queries that were not fitted to; mean ± standard deviation over the splits. {here['cpu']}, "
        f"torch {here['versions']['torch']}, {here['date']}; `python -m bench.unlabelled`.",
    ]
    for name in dict.fromkeys(r["data"] for r in rows):
        mine = [r for r in rows if r["data"] == name]
        parts += [f"## {name}", table(mine), gains(mine), "The queries' raw outputs in place of their codes:"]
        parts += [table(mine, "asymmetric"), coarse_to_fine(mine), seconds(mine)]
    return "\n\n".join(parts) + "\n"


def write(out: Path) -> None:
    """bench/results/unlabelled.json and .md of all rows in `out`."""
    rows = [read_json(path) for path in sorted(out.glob("*.json"))]
    if not rows:
        raise SystemExit(f"--out: no results in {out}")
    here = rows[-1]["environment"]
    kept = [{k: v for k, v in row.items() if k != "environment"} for row in rows]
    write_json(RESULTS / "unlabelled.json", {"environment": here, "rows": kept})
    with atomic_write(RESULTS / "unlabelled.md", "w") as handle:
        handle.write(page(kept, here))


def main() -> None:
    parser = arguments.parser("bench.unlabelled", __doc__)
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="NPZ")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and checkpoints")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, A_LENGTH, HIDDEN), default=METHODS)
    parser.add_argument("--write", action="store_true", help="write bench/results/unlabelled.json and .md")
    args = parser.parse_args()
    run(args.data, args.out, args.splits, args.methods)
    if args.write:
        write(args.out)


if __name__ == "__main__":
    main()
