"""How often a search on a CUDA device looks twice, and its cost: `python -m bench.search.misses [--seconds 60]`.

A search of few neighbours takes its limit from a sample; a query for which that did not do costs the call its exact
counts. Each case is timed with many sets of queries: where the slowest takes far longer than the fastest, a limit
missed. Each set's first queries agree with the CPU engine before it is timed. Writes misses_cuda.json and
.csv to $OUT, or to bench/results/.
"""

from __future__ import annotations

import statistics
import time

import torch

from bench.common import arguments
from bench.common.data import random_rows
from bench.common.record import write
from bench.common.timing import milliseconds
from nhl_fast import native

SETS = 24
TWICE = 1.25  # times the fastest set's, from which on a set counts as one that looked twice
# (bits, items, queries, k), the most wanted first.
CASES = [
    *((256, 10**7, 1000, k) for k in (1000, 2048, 500, 100, 10)),
    *((128, 10**7, q, 1000) for q in (1000, 200, 16)),
    (128, 10**7, 1000, 2048),
    *((128, 10**6, 1000, k) for k in (10, 1000, 2048)),
]


def measured(items: torch.Tensor, on_host: torch.Tensor, num: int, k: int, sets: int) -> list[float]:
    """Milliseconds of a call with each set of queries."""
    bits = 8 * items.shape[1]
    times = []
    for seed in range(sets):
        queries = random_rows(num, bits, 1 + seed, items.device)
        found = native.topk(queries, items, k, bits)
        expected = native.topk(queries[:2].cpu(), on_host, k, bits)
        if not all(torch.equal(a[:2].cpu(), b) for a, b in zip(found, expected)):
            raise SystemExit(f"misses: wrong results at {bits} bits, {len(items)} items, {num} queries, k {k}")
        times.append(milliseconds(lambda q=queries: native.topk(q, items, k, bits), 0.03, "cuda")[0])
    return times


def main() -> None:
    parser = arguments.parser("bench.search.misses", __doc__)
    parser.add_argument("--seconds", type=float, default=60, help="starts no case after these")
    parser.add_argument("--sets", type=int, default=SETS, help="of queries a case")
    args = parser.parse_args()
    if not native.cuda_status()[0]:
        raise SystemExit(f"misses: {native.cuda_status()[1]}")
    ends, rows, codes = time.monotonic() + args.seconds, [], {}
    for bits, n, num, k in CASES:
        if time.monotonic() > ends:
            print(f"not reached: {bits} bits, {n} items, {num} queries, k {k}")
            continue
        if (bits, n) not in codes:
            codes.clear()  # one database at a time
            items = random_rows(n, bits, 0, "cuda")
            codes[bits, n] = items, items.cpu()
        times = measured(*codes[bits, n], num, k, args.sets)
        row = {"bits": bits, "n": n, "queries": num, "k": k, "sets": len(times)}
        row |= {"fastest_ms": min(times), "median_ms": statistics.median(times), "slowest_ms": max(times)}
        row = {key: round(value, 4) for key, value in row.items()}
        row["looked_twice"] = sum(ms > TWICE * min(times) for ms in times)
        rows.append({**row, "device": torch.cuda.get_device_name()})
        print(row, flush=True)
        write("misses_cuda", rows)


if __name__ == "__main__":
    main()
