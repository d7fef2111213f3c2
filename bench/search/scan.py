"""Top-k search on a CUDA device by each unit that can count bits there: `python -m bench.search.scan [--seconds 60]`.

A case is timed only after its first queries agree with the CPU engine on distances and ids. Times are of whole calls,
repeated between two events for at least 20 ms, and of the same calls replayed as a CUDA graph, which leaves out the
host. Writes scan_cuda.csv to $OUT, or to bench/results/.
"""

from __future__ import annotations

import csv
import os
import time

import torch

from bench.common import arguments
from bench.common.data import random_rows
from bench.common.record import out_folder
from bench.common.timing import milliseconds
from bench.gpu.device import captured
from nhl_fast import native

BURST_S = 0.02  # a run is as many calls
# (bits, items, queries, k), the most wanted first.
CASES = [
    *((128, n, q, 10) for n in (10**6, 10**7) for q in (1000, 200, 64, 16, 1, 10_000)),
    *((128, 10**6, 1000, k) for k in (100, 1000, 2048, 3000)),
    *((128, 10**8, q, k) for q, k in ((1, 10), (16, 10), (200, 10), (1000, 100))),
    *((b, 10**6, q, 10) for b in (64, 32, 256, 512, 1024) for q in (1000, 1)),
    *((128, 10**7, 1000, k) for k in (100, 1000)),
]


def units() -> list[str]:
    return [*(["mma"] if torch.cuda.get_device_capability()[0] in (8, 9) else []), "imma", "popc"]


def main() -> None:
    parser = arguments.parser("bench.search.scan", __doc__)
    parser.add_argument("--seconds", type=float, default=60, help="starts no case after these")
    parser.add_argument("--units", type=arguments.some_of(("mma", "imma", "popc")), help="of mma, imma, popc")
    args = parser.parse_args()
    if not native.cuda_status()[0]:
        raise SystemExit(f"scan: {native.cuda_status()[1]}")
    ends = time.monotonic() + args.seconds
    path = out_folder() / "scan_cuda.csv"
    rows, wrong, codes = [], 0, {}
    for bits, n, num, k in CASES:
        if time.monotonic() > ends:
            print(f"not reached: {bits} bits, {n} items, {num} queries, k {k}")
            continue
        shape = (n, bits)
        if shape not in codes:
            codes.clear()  # one database at a time
            codes[shape] = random_rows(n, bits, 0, "cuda")
        items, queries = codes[shape], random_rows(num, bits, 1, "cuda")
        few = min(num, 2 if n > 10**7 else 8)
        expected = native.topk(queries[:few].cpu(), items.cpu(), k, bits)
        for unit in args.units or units():
            if unit == "imma" and bits > 512:
                continue
            os.environ["NHL_FAST_CUDA_SCAN"] = unit

            def call(queries=queries, items=items, k=k, bits=bits):
                return native.topk(queries, items, k, bits)

            row = {"bits": bits, "items": n, "queries": num, "k": k, "unit": unit}
            found = call()
            row["right"] = all(torch.equal(a[:few].cpu(), b) for a, b in zip(found, expected))
            if row["right"]:
                for key, function in (("ms", call), ("graph_ms", captured(call))):
                    row[key] = round(milliseconds(function, 5 * BURST_S, burst_s=BURST_S)[0], 4)
                row["giga_pairs_s"] = round(n * num / row["graph_ms"] / 1e6, 1)
                row["items_gb_s"] = round(n * bits / 8 / row["graph_ms"] / 1e6, 1)
            else:
                wrong += 1
            rows.append(row)
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    os.environ.pop("NHL_FAST_CUDA_SCAN", None)
    with open(path, "w", newline="") as handle:
        fields = ["bits", "items", "queries", "k", "unit", "right", "ms", "graph_ms", "giga_pairs_s", "items_gb_s"]
        writer = csv.DictWriter(handle, [*fields, "device"], restval="")
        writer.writeheader()
        writer.writerows({**row, "device": torch.cuda.get_device_name()} for row in rows)
    if wrong:
        raise SystemExit(f"scan: {wrong} cases are wrong")


if __name__ == "__main__":
    main()
