"""Search and evaluation of a mapped file in one streaming pass, beside a plain read of the file and a scan in memory.

    python -m bench.search.stream --folder DIR [--items 125000000] [--write]

Random codes of 128 bits are written to DIR (2 GB) and put out of the page cache before each reading, as those of a
file larger than memory are. "disk": the file is read in blocks of 16 MB, nothing else. "warm": the same call with the
file in memory. A stream should take no longer than the slower of the two does, over 0.8.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import numpy as np
import torch

from bench.common import arguments, record
from bench.common.timing import timed
from nhl_fast.retrieval.shards import cut_rows, evaluate_shards, search_shards

BITS, CLASSES = 128, 100
BLOCK = 1 << 24


def written(folder: Path, items: int) -> tuple[Path, Path]:
    """Files of codes and of labels, made once."""
    generator, files = np.random.default_rng(0), []
    for name, shape in (("codes", (items, BITS // 8)), ("labels", (items,))):
        path = folder / f"{name}_{items}.npy"
        files.append(path)
        if path.exists():
            continue
        out = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for start in range(0, items, 1 << 20):
            part = out[start : start + (1 << 20)]
            part[:] = generator.integers(0, 256 if name == "codes" else CLASSES, part.shape, dtype=np.uint8)
        out.flush()
        del out
    return files[0], files[1]


def forget(*files: Path) -> None:
    """Put files out of the page cache."""
    for path in files:
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(*files: Path) -> None:
    buffer = bytearray(BLOCK)
    for path in files:
        with open(path, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def main() -> None:
    parser = arguments.parser("bench.search.stream", __doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--items", type=int, default=125_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write bench/results/stream.json and .csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    files = written(args.folder, args.items)
    generator = np.random.default_rng(1)
    queries = generator.integers(0, 256, (1000, BITS // 8), dtype=np.uint8)
    query_labels = generator.integers(0, CLASSES, 1000)

    def shards(labels: bool):
        maps = [np.load(path, mmap_mode="r") for path in (files if labels else files[:1])]
        return cut_rows(*maps)

    def search(count):
        return search_shards(queries[:count], shards(False), 10)

    def evaluate(count):
        return evaluate_shards(queries[:count], query_labels[:count], shards(True), (32, 64, 128), ties="expected")

    calls = {
        "search, 1 query": (lambda: search(1), files[:1]),
        "search, 10 queries": (lambda: search(10), files[:1]),
        "search, 100 queries": (lambda: search(100), files[:1]),
        "evaluate, 10 queries, 3 lengths": (lambda: evaluate(10), files),
    }
    rows = []
    for name, (call, needed) in calls.items():
        times: dict[str, list[float]] = {"disk": [], "warm": [], "stream": []}
        for _ in range(args.rounds):
            forget(*files)
            times["disk"].append(timed(lambda needed=needed: read(*needed))[0])
            call()  # pages are mapped anew by every call, but in memory
            times["warm"].append(timed(call)[0])
            forget(*files)
            times["stream"].append(timed(call)[0])
        row = {"call": name, "items": args.items, "bytes": sum(path.stat().st_size for path in needed)}
        row |= {f"{kind}_s": round(statistics.median(taken), 3) for kind, taken in times.items()}
        bound = [max(disk, warm) / stream for disk, warm, stream in zip(*times.values())]
        row["of_the_slower_one"] = round(statistics.median(bound), 3)
        rows.append(row)
        print(row, flush=True)
    if args.write:
        record.write("stream", rows, threads=args.threads)


if __name__ == "__main__":
    main()
