"""Searches of an index on a device: all of it resident, half of it, or streamed: `python -m bench.search.placed`.

    python -m bench.search.placed [--n 20000000] [--bits 128] [--device cuda,cuda:1] [--seconds 20]

Codes are random; times are of whole calls of `NestedIndex.search`, queries and results on the device. A case is timed
only after its first queries agree with the index in main memory on distances and ids. With `--device cpu` the index
goes the ways of a card, over main memory: that says nothing of a card. Writes placed_cuda.csv and .json to $OUT, or
to bench/results/.
"""

from __future__ import annotations

import time

import torch

from bench.common import arguments, record
from bench.common.data import random_rows
from bench.common.timing import milliseconds
from nhl_fast import NestedIndex
from nhl_fast.index.placement import check_devices

K, CHECKED = 10, 4
QUERIES = (1000, 1)
# How many times the bytes of the codes a device may take. What is wanted most comes first.
PARTS = {"resident": 4.0, "streamed": 0.02, "half": 0.55}
LEAST_BYTES = 1 << 16


def filled(n: int, bits: int) -> NestedIndex:
    index = NestedIndex(bits)
    index.add(random_rows(n, bits, 0, "cpu"))
    return index


def measure(index: NestedIndex, devices, seconds: float, budget_s: float = 0.4) -> list[dict]:
    """Rows by part, queries and filter; RuntimeError where a result differs. None begins after `seconds`."""
    ends, rows = time.monotonic() + seconds, []
    n, width = len(index), index.length // 8
    allow = index.filter(torch.arange(n) % 2 == 0)
    for part, share in PARTS.items():
        limit = max(LEAST_BYTES, int(share * n * (width + 1)) // len(devices))
        placed = index.to(devices, device_bytes=limit)
        here = placed.filter(torch.arange(n) % 2 == 0)
        for num, filtered in ((num, filtered) for num in QUERIES for filtered in (False, True)):
            base = {"part": "placed", "case": part, "n": n, "bits": index.length, "queries": num, "k": K,
                    "filter": filtered, "devices": len(devices), "device_bytes": placed.device_nbytes}  # fmt: skip
            if time.monotonic() > ends:
                rows.append({**base, "note": "not reached"})
                continue
            queries = random_rows(num, index.length, 1, str(devices[0]))
            found = placed.search(queries, K, allow=here if filtered else None)
            expected = index.search(queries[:CHECKED].cpu(), K, allow=allow if filtered else None)
            if not all(torch.equal(a[:CHECKED].cpu(), b) for a, b in zip(found, expected)):
                raise RuntimeError(f"{part}, {num} queries, filter {filtered}: differs from the index in main memory")

            def call(queries=queries, placed=placed, here=here, filtered=filtered):
                return placed.search(queries, K, allow=here if filtered else None)

            ms, runs = milliseconds(call, budget_s, str(devices[0]))
            row = {**base, "ms": round(ms, 4), "runs": runs, "giga_pairs_s": round(n * num / ms / 1e6, 2)}
            rows.append({**row, "codes_gb_s": round(n * width / ms / 1e6, 2)})
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        del placed, here
    return rows


def main() -> None:
    parser = arguments.parser("bench.search.placed", __doc__)
    parser.add_argument("--n", type=int, default=20_000_000)
    parser.add_argument("--bits", type=int, default=128, help="a multiple of 8")
    parser.add_argument("--device", default="cuda", help="one, or several separated by commas")
    parser.add_argument("--seconds", type=float, default=60, help="starts no case after these")
    options = parser.parse_args()
    if options.n < K * 2 or options.bits < 8 or options.bits % 8:
        parser.error(f"--n, --bits: expected at least {2 * K} items of whole bytes, got {options.n}, {options.bits}")
    try:
        devices = check_devices(options.device.split(","))
    except (TypeError, ValueError, RuntimeError) as error:
        parser.error(f"--{error}")
    started = time.monotonic()
    index = filled(options.n, options.bits)
    rows = measure(index, devices, options.seconds - (time.monotonic() - started))
    record.write(f"placed_{devices[0].type}", rows)


if __name__ == "__main__":
    main()
