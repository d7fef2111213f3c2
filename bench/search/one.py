"""One query of few codes, where what surrounds the scan is what takes time: index, function and faiss in turn.

    python -m bench.search.one [--items 100,1000,10000,60000] [--bits 128] [--write]

One thread, wall time, medians over all blocks; arrays go in and come out everywhere, tensors where a row says so.
"""

from __future__ import annotations

import numpy as np
import torch

import nhl_fast as nhl
from bench.common import arguments, peers, record
from bench.common.data import random_rows
from bench.common.timing import alternate, median_ms

K, ROUNDS, CALLS = 10, 9, 1000


def searchers(database: np.ndarray, query: np.ndarray) -> dict:
    """{name: function that gives the distances of the query (1, bytes)}."""
    index, tensor = nhl.NestedIndex(8 * database.shape[1]), torch.from_numpy(query)
    index.add(database)
    found = {
        "index": lambda: index.search(query, K, output="numpy")[0],
        "index, tensors": lambda: index.search(tensor, K)[0],
        "nhl.search": lambda: nhl.search(query, database, K, output="numpy")[0],
    }
    try:
        faiss = peers.faiss_searcher(database, 1)
    except ImportError:
        return found
    return {**found, "faiss": lambda: faiss(query, K)}


def measure(items: int, bits: int) -> list[dict]:
    database, query = random_rows(items, bits, 0).numpy(), random_rows(1, bits, 1).numpy()
    wanted = nhl.search(query, database, K, backend="reference")[0].numpy()
    functions = searchers(database, query)
    for name, function in functions.items():
        if not np.array_equal(np.asarray(function()), wanted):
            raise SystemExit(f"{name}, {items} codes: the distances are wrong")
    return [
        {"items": items, "bits": bits, "k": K, "name": name, "us": round(1000 * median_ms(taken), 2)}
        for name, taken in alternate(functions, ROUNDS, CALLS).items()
    ]


def main() -> None:
    parser = arguments.parser("bench.search.one", __doc__)
    parser.add_argument("--items", type=arguments.numbers, default=[100, 1000, 10_000, 60_000])
    parser.add_argument("--bits", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="write bench/results/one_query.json and .csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for items in args.items for row in measure(items, args.bits)]
    for row in rows:
        print(row)
    if args.write:
        record.write("one_query", rows, threads=1)


if __name__ == "__main__":
    main()
