"""Searches in stages: recall and time beside the exact scan, on trained codes of a million items and more.

    python -m bench.search.funnel --data texts.npz --out runs/funnel [--bits 256 1024] [--write]

`features` (n, d) of the file are brought to length 1; 1,000 random rows are queries. Layers are learned on the others
without labels (`fit_layer`), once, and kept in --out. The database is the others in turn, the first time as they are,
then with fresh Gaussian noise of length 0.5, until there are --items. Recall: the share of a query's exact cosine top
10 among the ten found. Times are of an index, of queries one by one and of all at once, in blocks that take turns.
"""

from __future__ import annotations

from pathlib import Path

import torch

import nhl_fast as nhl
from bench.common import arguments, record
from bench.common.timing import alternate, median_ms
from bench.search.funnel_codes import NOISE, database_of

NEIGHBORS = 10
SINGLE = 50  # queries that are timed one by one
FUNNELS = (
    None,
    ((64, 500),),
    ((64, 1000),),
    ((64, 2000),),
    ((64, 5000),),
    ((64, 2000), (128, 500)),
    ((64, 10000), (128, 1000)),
    ((128, 500),),
    ((128, 1000),),
    ((128, 2000),),
)


def recall(ids: torch.Tensor, neighbors: torch.Tensor) -> float:
    return float((ids[:, :, None] == neighbors[:, None]).any(1).double().mean())


def measure(bits: int, codes, queries, neighbors, rounds: int) -> list[dict]:
    """A row a funnel, the exact scan first."""
    index = nhl.NestedIndex(bits)
    index.add(codes)
    calls = {}
    for funnel in FUNNELS:
        calls[funnel, "all"] = lambda f=funnel: index.search(queries, NEIGHBORS, funnel=f)
        calls[funnel, "one"] = lambda f=funnel: [index.search(q, NEIGHBORS, funnel=f) for q in queries[:SINGLE]]
    plain = index.nbytes
    times = alternate(calls, rounds, 1)
    exact = index.search(queries, NEIGHBORS)
    full = recall(exact[1], neighbors)
    rows = []
    for funnel in FUNNELS:
        distances, ids = index.search(queries, NEIGHBORS, funnel=funnel)
        row = {"bits": bits, "items": len(codes), "funnel": "exact scan" if funnel is None else str(funnel)}
        row["recall"] = round(recall(ids, neighbors), 5)
        row["of_exact_recall"] = round(row["recall"] / full, 5)
        row["as_near"] = round(float((distances <= exact[0][:, -1:]).double().mean()), 5)
        for kind, count in (("all", len(queries)), ("one", SINGLE)):
            mine, scan = (median_ms(times[f, kind]) / count for f in (funnel, None))
            row |= {f"{kind}_ms_a_query": round(mine, 5), f"{kind}_times_the_scan": round(scan / mine, 2)}
        rows.append(row)
        print(row, flush=True)
    print(f"{bits} bits: {plain / 1e6:.0f} MB of codes, {index.nbytes / 1e6:.0f} MB with prefixes", flush=True)
    return rows


def main() -> None:
    parser = arguments.parser("bench.search.funnel", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--out", type=Path, required=True, help="folder of the layers and codes")
    parser.add_argument("--bits", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write bench/results/funnel.json and .csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for bits in args.bits:
        rows += measure(bits, *database_of(args.data, bits, args.items, args.out, NEIGHBORS), args.rounds)
    if args.write:
        record.write("funnel", rows, record.RESULTS, threads=args.threads, noise=NOISE, data=args.data.name)


if __name__ == "__main__":
    main()
