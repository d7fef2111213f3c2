"""Single queries through `PrefixBuckets` beside the scan, on codes of trained models and on random ones.

    python -m bench.search.buckets --run RUN --data features.npz [--run RUN --data features.npz ...] [--write]

RUN is a folder of `nhl-fast train` on the `features` of the file. 1,000 of its rows, drawn at random, are queries;
the database is the others in turn, the first time as they are, then with Gaussian noise of half their mean length,
until there are --items. Times are CPU time of one thread, the two searches in turn, of each query the least of
--rounds. Results are compared to the last id before they are timed.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

import nhl_fast as nhl
from bench.common import arguments, record
from bench.common.data import random_rows

K, NOISE, LENGTHS = 10, 0.5, (32, 64, 128)


def trained(run: Path, data: Path, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, packed queries)."""
    model = nhl.load(run)
    x = torch.from_numpy(np.load(data)["features"].astype(np.float32))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    queries, others = x[order[:1000]], x[order[1000:]]
    scale = NOISE * float(others.norm(dim=1).mean()) / others.shape[1] ** 0.5
    codes = []
    for start in range(0, items, len(others)):
        rows = others[: items - start]
        if start:
            rows = rows + scale * torch.randn(rows.shape, generator=generator)
        codes.append(torch.as_tensor(model.encode(rows)))
    return torch.cat(codes), torch.as_tensor(model.encode(queries))


def measure(name: str, codes: torch.Tensor, queries: torch.Tensor, rounds: int) -> list[dict]:
    rows = []
    for bits in LENGTHS:
        database, wanted = (part[:, : bits // 8].contiguous() for part in (codes, queries))
        buckets = nhl.PrefixBuckets(database)
        calls = (lambda q, d=database: nhl.search(q, d, K), lambda q, b=buckets: b.search(q, K))
        for query in wanted:
            if not all(map(torch.equal, *(call(query) for call in calls))):
                raise SystemExit(f"{name}, {bits} bits: the results differ")
        least = np.full((2, len(wanted)), np.inf)
        for _ in range(rounds):
            for q, query in enumerate(wanted):
                for i, call in enumerate(calls):
                    started = time.thread_time()
                    call(query)
                    least[i, q] = min(least[i, q], time.thread_time() - started)
        scan, mine = (1000 * statistics.fmean(times) for times in least)
        row = {"codes": name, "items": len(database), "bits": bits, "visited": round(buckets.visited(wanted, K), 3)}
        row |= {"scan_ms": round(scan, 4), "buckets_ms": round(mine, 4), "times_the_scan": round(scan / mine, 2)}
        row["worst_query"] = round(float((least[0] / least[1]).min()), 2)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = arguments.parser("bench.search.buckets", __doc__)
    parser.add_argument("--run", type=Path, action="append", default=[], help="folder of a training run")
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="NPZ", help="its features")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write bench/results/buckets.json and .csv")
    args = parser.parse_args()
    if len(args.run) != len(args.data):
        parser.error("--data: expected one for each --run")
    torch.set_num_threads(1)
    rows = []
    for run, data in zip(args.run, args.data):
        codes, queries = trained(run, data, args.items)
        rows += measure(data.stem, codes, queries[: args.queries], args.rounds)
    bits = max(LENGTHS)
    rows += measure("random", random_rows(args.items, bits, 0), random_rows(args.queries, bits, 1), args.rounds)
    if args.write:
        record.write("buckets", rows, threads=1, noise=NOISE, k=K)


if __name__ == "__main__":
    main()
