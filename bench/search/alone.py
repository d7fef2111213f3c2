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
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch

from bench.common import arguments, peers, record
from bench.common.data import random_rows
from bench.common.timing import median_ms, timed
from nhl_fast.retrieval.hamming import search

N, QUERIES, KS = 1_000_000, (200, 1), (10, 100, 1000)
ROUNDS, BLOCK_S, SLOW_S = 7, 0.15, 1.0


def make(name: str, database: np.ndarray, threads: int):
    if name != "nhl_fast":
        return peers.SEARCHERS[name](database, threads)
    torch.set_num_threads(threads)
    items = torch.from_numpy(database)
    return lambda queries, k: search(torch.from_numpy(queries), items, k, backend="cpp")[0].numpy()


def serve(name: str, bits: int, threads: int) -> None:
    """Answers lines of JSON [number of queries, k, seconds] with {"digest", "seconds": one number a call}."""
    searcher, every = make(name, random_rows(N, bits, 0).numpy(), threads), random_rows(max(QUERIES), bits, 1).numpy()
    print("ready", flush=True)
    for line in sys.stdin:
        number, k, budget = json.loads(line)
        queries = every[:number]
        # The first call warms the caches up after another process's turn, and is all there is of a slow one.
        first, found = timed(partial(searcher, queries, k))
        taken = [first]
        if taken[0] < SLOW_S:
            taken, ends = [], time.perf_counter() + budget
            while len(taken) < 2 or time.perf_counter() < ends:
                taken.append(timed(partial(searcher, queries, k))[0])
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
    medians = {name: median_ms(seconds) for name, seconds in times.items()}
    for name in libraries:
        row[f"{name}_ms"] = round(medians[name], 3) if name in medians else "wrong"
    for name in libraries:
        if name != "nhl_fast":
            row[f"{name}_over_nhl_fast"] = round(medians[name] / medians["nhl_fast"], 2) if name in medians else ""
    return row


def main() -> None:
    parser = arguments.parser("bench.search.alone", __doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=arguments.numbers, default=[128, 64, 32])
    parser.add_argument(
        "--peers",
        type=arguments.some_of(peers.SEARCHERS),
        default=["faiss", "usearch"],
        help=f"of {', '.join(peers.SEARCHERS)}",
    )
    parser.add_argument("--queries", type=arguments.numbers, default=[*QUERIES], help=f"at most {max(QUERIES)} each")
    parser.add_argument("--write", action="store_true", help="write bench/results/hamming_alone.{csv,json}")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if max(args.queries) > max(QUERIES):
        parser.error(f"--queries: expected at most {max(QUERIES)}, got {max(args.queries)}")
    if args.serve:
        return serve(args.serve, args.bits[0], args.threads)
    found = []
    for bits in args.bits:
        libraries = {"nhl_fast": Library("nhl_fast", bits, args.threads)}
        for name in args.peers:
            try:
                libraries[name] = Library(name, bits, args.threads)
            except ImportError as error:
                print(f"left out: {error}")
        for number in args.queries:
            for k in KS:
                found.append(compare(libraries, bits, number, k))
                print(found[-1], flush=True)
        for library in libraries.values():
            library.close()
    if args.write:
        record.write("hamming_alone", found, threads=args.threads)


if __name__ == "__main__":
    main()
