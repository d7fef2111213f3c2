"""An index of many codes: build, save, map, first search, and the memory beyond the codes.

    python -m bench.search.index [--n 1000000] [--bits 128] [--folder DIR] [--write]

Building and mapping each have a process of their own. Memory is the resident memory that the system reports for
the process, less what it held before (with the library loaded and warm); "beyond the codes" also takes the bytes
of the codes off: for the built index from the peak, for the mapped one only memory that is not the file's counts.
The results of the first search are compared with NumPy's before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from bench.common import arguments, record
from bench.common.data import random_rows
from bench.common.timing import timed
from nhl_fast.index.nested_index import NestedIndex

BLOCK = 1_000_000
K = 10


def block_of(number: int, n: int, bits: int) -> np.ndarray:
    return random_rows(min(BLOCK, n - number * BLOCK), bits, number).numpy()


def make_queries(n: int, bits: int, count: int) -> np.ndarray:
    """Codes of the first block with a tenth of their bits flipped."""
    generator = np.random.default_rng(2**32)
    noise = np.packbits(generator.random((count, bits)) < 0.1, axis=1)
    return block_of(0, n, bits)[generator.integers(0, min(n, BLOCK), count)] ^ noise


def brute_force(query: np.ndarray, n: int, bits: int) -> list[tuple[int, int]]:
    """The K nearest (distance, id) of one query among the generated codes."""
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint16)
    best: list[tuple[int, int]] = []
    for start in range(0, n, BLOCK):
        distances = ones[block_of(start // BLOCK, n, bits) ^ query].sum(1)
        last = np.partition(distances, K - 1)[K - 1] if len(distances) > K else bits
        near = np.flatnonzero(distances <= last)
        best = sorted(best + [(int(distances[i]), start + int(i)) for i in near])[:K]
    return best


class Memory:
    """Resident memory of this process beyond what it was at the start, in bytes."""

    def __init__(self):
        # The kernel then counts the peak from here on.
        Path("/proc/self/clear_refs").write_text("5")
        self.start = self._read()
        self.peak_anonymous = 0

    @staticmethod
    def _read() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}

    def peak(self) -> int:
        return self._read()["VmHWM"] - self.start["VmRSS"]

    def anonymous(self) -> int:
        return self._read()["RssAnon"] - self.start["RssAnon"]

    def watch(self, function):
        """Call `function`, and note the highest `anonymous` seen in between (every millisecond)."""
        done = threading.Event()

        def look():
            while not done.wait(0.001):
                self.peak_anonymous = max(self.peak_anonymous, self.anonymous())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            return function()
        finally:
            done.set()
            watcher.join()
            self.peak_anonymous = max(self.peak_anonymous, self.anonymous())


def median_seconds(function, repeats: int) -> float:
    return statistics.median(timed(function)[0] for _ in range(repeats))


def warm_up(bits: int) -> None:
    index = NestedIndex(bits)
    index.add(block_of(0, 1000, bits))
    index.search(make_queries(1000, bits, 2), K)


def build(n: int, bits: int, path: Path) -> dict:
    warm_up(bits)
    block_of(0, n, bits)
    memory, index, seconds = Memory(), NestedIndex(bits), 0.0
    for number in range(-(-n // BLOCK)):
        rows = block_of(number, n, bits)
        seconds += timed(lambda rows=rows: index.add(rows))[0]
    del rows
    codes_bytes = n * bits // 8
    out = {"build": seconds, "held beyond the codes": memory.anonymous() - codes_bytes}
    # The generated block, one at a time, belongs to the caller.
    out["peak beyond the codes, building"] = memory.peak() - codes_bytes - min(n, BLOCK) * bits // 8
    out["save"] = timed(lambda: index.save(path))[0]
    index.search(make_queries(n, bits, 200), K)
    out["peak beyond the codes, all"] = memory.peak() - codes_bytes
    out["segments"] = len(index._state.segments)
    out["search 1, built"] = median_seconds(lambda: index.search(make_queries(n, bits, 1), K), 5)
    out["index.nbytes"] = index.nbytes
    return out


def map_(n: int, bits: int, path: Path) -> dict:
    warm_up(bits)
    one, many = make_queries(n, bits, 1), make_queries(n, bits, 200)
    # Out of the page cache, so that the first search reads the disk.
    with open(path, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    memory = Memory()
    out = {}
    out["map (verify=False)"], index = timed(lambda: NestedIndex.load(path, verify=False))
    out["first search 1, mapped"], found = memory.watch(lambda: timed(lambda: index.search(one, K)))
    out["search 1, mapped"] = median_seconds(lambda: index.search(one, K), 5)
    out["search 200, mapped"] = memory.watch(lambda: median_seconds(lambda: index.search(many, K), 3))
    out["peak beyond the file, mapped"] = memory.peak_anonymous
    out["map (verify=True)"] = timed(lambda: NestedIndex.load(path))[0]
    out["found"] = [list(pair) for pair in zip(*(array[0].tolist() for array in found))]
    return out


STAGES = {"build": build, "map": map_}


def main() -> None:
    parser = arguments.parser("bench.search.index", __doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help=f"codes, at least {K}")
    parser.add_argument("--bits", type=int, default=128, help="a multiple of 8")
    parser.add_argument("--folder", type=Path, help="where the index file goes for a while")
    parser.add_argument("--write", action="store_true", help="write bench/results/index_N.json and .csv")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n, bits = options.n, options.bits
    if n < K or bits < 8 or bits % 8:
        parser.error(f"expected --n of at least {K} and --bits a multiple of 8")
    if options.stage:
        print(json.dumps(STAGES[options.stage](n, bits, options.folder)))
        return
    measured = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for stage in STAGES:
            command = [sys.executable, "-m", "bench.search.index", "--n", str(n), "--bits", str(bits)]
            command += ["--folder", str(Path(folder) / "index"), "--stage", stage]
            measured |= json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        measured["file"] = (Path(folder) / "index").stat().st_size
    found, expected = measured.pop("found"), brute_force(make_queries(n, bits, 1)[0], n, bits)
    if [tuple(pair) for pair in found] != expected:
        raise SystemExit(f"the search is wrong: {found}, expected {expected}")
    codes_bytes = n * bits // 8
    rows = []
    for name, value in measured.items():
        unit = "s" if isinstance(value, float) else "segments" if name == "segments" else "bytes"
        share = round(value / codes_bytes, 4) if unit == "bytes" else ""
        rows.append({"measure": name, "value": value, "unit": unit, "of the codes": share})
    print(json.dumps({"environment": record.environment(), "n": n, "bits": bits, "k": K, "rows": rows}, indent=2))
    if options.write:
        record.write(f"index_{n}", rows, n=n, bits=bits, k=K, codes_bytes=codes_bytes)


if __name__ == "__main__":
    main()
