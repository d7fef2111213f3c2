"""Top-k, each library in a process of its own: two OpenMP pools in one process slow faiss down.

    python bench/bench_alone.py

Medians; equality of the results is what bench_hamming.py checks. Writes bench/results/hamming_alone.{csv,json}.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import numpy as np

N, THREADS = 1_000_000, 2


def measure(name: str, bits: int) -> dict[str, float]:
    import peers

    database, queries = (
        np.random.default_rng(seed).integers(0, 256, (rows, bits // 8), dtype=np.uint8)
        for seed, rows in ((0, N), (1, 200))
    )
    if name == "faiss":
        run = peers.SEARCHERS["faiss"](database, THREADS)
    else:
        import torch

        from nhl_fast.hamming import search

        torch.set_num_threads(THREADS)
        tensor = torch.from_numpy(database)
        run = lambda q, k: search(torch.from_numpy(q), tensor, k, backend="cpp")  # noqa: E731
    found = {}
    for number in (200, 1):
        for k in (10, 100, 1000):
            seconds = []
            for _ in range(6 if number > 1 else 40):
                started = time.perf_counter()
                run(queries[:number], k)
                seconds.append(time.perf_counter() - started)
            found[f"{number},{k}"] = 1000 * statistics.median(seconds[1:])
    return found


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    from record import write

    rows = []
    for bits in (128, 64, 32):
        times = {}
        for name in ("nhl_fast", "faiss"):
            command = [sys.executable, __file__, name, str(bits)]
            times[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for case, ours in times["nhl_fast"].items():
            q, k = case.split(",")
            faiss = times["faiss"][case]
            row = {
                "bits": bits,
                "queries": q,
                "k": k,
                "nhl_fast_ms": round(ours, 3),
                "faiss_ms": round(faiss, 3),
            }
            rows.append({**row, "times_faster": round(faiss / ours, 2)})
            print(rows[-1], flush=True)
    write("hamming_alone", rows)


if __name__ == "__main__":
    main()
