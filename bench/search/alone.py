"""Top-k, each library in a process of its own: two OpenMP pools in one process slow each other down.

    python -m bench.search.alone [--threads 2] [--bits 128,64,32] [--peers faiss,usearch] [--write]

The processes take turns, block by block, so that the noise of a shared machine falls on all of them; medians over
all blocks, or one call where a call takes more than a second. A library whose distances differ from ours is not
timed. --write leaves bench/results/hamming_alone.{csv,json}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time

import numpy as np

N, QUERIES, KS = 1_000_000, (200, 1), (10, 100, 1000)
ROUNDS, BLOCK_S, SLOW_S = 7, 0.15, 1.0


def rows(n: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


def make(name: str, database: np.ndarray, threads: int):
    if name != "nhl_fast":
        from bench.common import peers

        return peers.SEARCHERS[name](database, threads)
    import torch

    from nhl_fast.retrieval.hamming import search

    torch.set_num_threads(threads)
    items = torch.from_numpy(database)
    return lambda queries, k: search(torch.from_numpy(queries), items, k, backend="cpp")[0].numpy()


def serve(name: str, bits: int, threads: int) -> None:
    """Answers lines of JSON [number of queries, k, seconds] with {"digest", "seconds": one number a call}."""
    searcher, every = make(name, rows(N, bits, 0), threads), rows(max(QUERIES), bits, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        number, k, budget = json.loads(line)
        queries = every[:number]
        # The first call warms the caches up after another process's turn, and is all there is of a slow one.
        started = time.perf_counter()
        found = searcher(queries, k)
        taken = [time.perf_counter() - started]
        if taken[0] < SLOW_S:
            taken, ends = [], time.perf_counter() + budget
            while len(taken) < 2 or time.perf_counter() < ends:
                started = time.perf_counter()
                searcher(queries, k)
                taken.append(time.perf_counter() - started)
        found = np.sort(np.asarray(found).astype(np.int32), axis=1)
        print(json.dumps({"digest": hashlib.sha256(found.tobytes()).hexdigest(), "seconds": taken}), flush=True)


class Library:
    """A library in its own process."""

    def __init__(self, name: str, bits: int, threads: int):
        command = [
            sys.executable,
            "-m",
            "bench.search.alone",
            "--serve",
            name,
            "--bits",
            str(bits),
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.close()
            raise ImportError(f"{name} did not start; its message is above")

    def ask(self, number: int, k: int, seconds: float) -> dict:
        self.process.stdin.write(json.dumps([number, k, seconds]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(libraries: dict[str, Library], bits: int, number: int, k: int) -> dict:
    """The row of one case."""
    first = {name: library.ask(number, k, 0.0) for name, library in libraries.items()}
    right = [name for name in libraries if first[name]["digest"] == first["nhl_fast"]["digest"]]
    times = {name: first[name]["seconds"] for name in right}
    quick = [name for name in right if times[name][0] < SLOW_S]
    for _ in range(ROUNDS):
        for name in quick:
            times[name] += libraries[name].ask(number, k, BLOCK_S)["seconds"]
            time.sleep(0.02)  # until its threads have stopped spinning
    row = {"bits": bits, "queries": number, "k": k}
    medians = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    for name in libraries:
        row[f"{name}_ms"] = round(medians[name], 3) if name in medians else "wrong"
    for name in libraries:
        if name != "nhl_fast":
            row[f"{name}_over_nhl_fast"] = round(medians[name] / medians["nhl_fast"], 2) if name in medians else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", default="128,64,32")
    parser.add_argument("--peers", default="faiss,usearch")
    parser.add_argument("--queries", default=",".join(map(str, QUERIES)), help=f"at most {max(QUERIES)} each")
    parser.add_argument("--write", action="store_true", help="write bench/results/hamming_alone.{csv,json}")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, int(args.bits), args.threads)
    found = []
    for bits in map(int, args.bits.split(",")):
        libraries = {"nhl_fast": Library("nhl_fast", bits, args.threads)}
        for name in filter(None, args.peers.split(",")):
            try:
                libraries[name] = Library(name, bits, args.threads)
            except ImportError as error:
                print(f"left out: {error}")
        for number in map(int, args.queries.split(",")):
            for k in KS:
                found.append(compare(libraries, bits, number, k))
                print(found[-1], flush=True)
        for library in libraries.values():
            library.close()
    if args.write:
        from bench.common.record import write

        write("hamming_alone", found, threads=args.threads)


if __name__ == "__main__":
    main()
