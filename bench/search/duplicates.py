"""Near-duplicate pairs of codes: nhl.near_duplicates, the flat radius search, and faiss IndexBinaryMultiHash.

    python -m bench.search.duplicates [--n 1000000] [--bits 64,128] [--radii 0,1,2,4,8,12,16] [--write]

Codes are random, or clusters of eight in the mean whose bits are flipped with a chance of 0.03. The flat search and
faiss answer some of the rows as queries, and their times are scaled to all rows (faiss's with what it takes to add
the rows; half of the flat search's, which would meet each pair twice). faiss has the tables that make it exact: as
many hashes as give keys of at most 16 bits, flips by the pigeonhole principle; the fastest of those that finish a
trial within a bound. The pairs of these queries must be the same for all before anything is reported.
"""

from __future__ import annotations

import time

import numpy as np
import torch

import nhl_fast as nhl
from bench.common import arguments, record
from bench.common.data import random_rows
from bench.common.timing import timed

QUERIES = 1000
FLIP = 0.03
# Seconds that faiss may take for a trial of a few queries, scaled to QUERIES.
PATIENCE = 30


def clustered_rows(n: int, bits: int, seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    centers = random_rows(max(1, n // 8), bits, seed).numpy()
    rows = centers[generator.integers(0, len(centers), n)]
    for start in range(0, n, 2**17):
        part = rows[start : start + 2**17]
        part ^= np.packbits(generator.random((len(part), bits), dtype=np.float32) < FLIP, axis=1)
    return torch.from_numpy(rows)


KINDS = {"random": random_rows, "clustered": clustered_rows}


def pairs_of(queries: np.ndarray, offsets, ids) -> set[tuple[int, int]]:
    """{(i, j), i < j} of a radius search for some of the rows themselves."""
    first = queries[np.repeat(np.arange(len(queries)), np.diff(offsets))]
    other = first != ids
    i, j = first[other], np.asarray(ids)[other]
    return set(zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist()))


def faiss_pairs(rows: np.ndarray, queries: np.ndarray, radius: int):
    """(seconds for all rows, "hashes x bits, flips", pairs of the queries) of the fastest exact set of tables."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    n, bits = len(rows), 8 * rows.shape[1]
    best = None
    for hashes in sorted({1, 2, 4, 8, radius + 1}):
        width, flips = min(16, bits // hashes), radius // hashes
        if hashes > bits or flips > width:
            continue
        index = faiss.IndexBinaryMultiHash(bits, hashes, width)
        index.nflip = flips
        added = timed(lambda index=index: index.add(rows))[0]
        few = queries[:5]
        trial = timed(lambda index=index, few=few: index.range_search(rows[few], radius + 1))[0]
        if trial / len(few) * len(queries) > PATIENCE:
            continue
        seconds, (limits, _, ids) = timed(lambda index=index: index.range_search(rows[queries], radius + 1))
        total = added + seconds / len(queries) * n
        if best is None or total < best[0]:
            best = total, f"{hashes} x {width}, {flips}", pairs_of(queries, limits.astype(np.int64), ids)
    return best


def measure(kind: str, n: int, bits: int, radius: int) -> dict:
    rows = KINDS[kind](n, bits, 0)
    queries = np.sort(np.random.default_rng(1).choice(n, min(n, QUERIES), replace=False))
    nhl.near_duplicates(rows[: n // 100], radius)
    seconds, (i, j, _) = timed(lambda: nhl.near_duplicates(rows, radius, output="numpy"))
    asked = np.isin(i, queries) | np.isin(j, queries)
    wanted = set(zip(i[asked].tolist(), j[asked].tolist()))
    flat, (offsets, _, ids) = timed(lambda: nhl.radius_search(rows[torch.from_numpy(queries)], rows, radius))
    if pairs_of(queries, offsets.numpy(), ids.numpy()) != wanted:
        raise SystemExit(f"{kind}, {bits} bits, radius {radius}: the pairs are not those of the radius search")
    flat = flat / len(queries) * n / 2
    row = {"codes": kind, "n": n, "bits": bits, "radius": radius, "pairs": len(i)}
    row |= {"near_duplicates, s": round(seconds, 3), "radius_search / 2, s": round(flat, 2)}
    try:
        found = faiss_pairs(rows.numpy(), queries, radius)
    except ImportError:
        return row
    if found is None:
        return row | {"faiss, s": f"above {PATIENCE * n / QUERIES:.0f}", "faiss tables": "", "times faiss": ""}
    if found[2] != wanted:
        raise SystemExit(f"{kind}, {bits} bits, radius {radius}: the pairs are not those of faiss")
    ratio = round(found[0] / seconds, 1)
    return row | {"faiss, s": round(found[0], 2), "faiss tables": found[1], "times faiss": ratio}


def main() -> None:
    parser = arguments.parser("bench.search.duplicates", __doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="codes, at least 1,000")
    parser.add_argument("--bits", type=arguments.numbers, default=[64, 128])
    parser.add_argument("--radii", default="0,1,2,4,8,12,16")
    parser.add_argument("--codes", type=arguments.some_of(KINDS), default=list(KINDS))
    parser.add_argument("--write", action="store_true", help="write bench/results/duplicates.json and .csv")
    options = parser.parse_args()
    radii = [int(radius) for radius in options.radii.split(",")]
    if options.n < 1000 or any(bits % 8 for bits in options.bits):
        parser.error("expected --n of at least 1000 and --bits multiples of 8")
    rows = []
    started = time.perf_counter()
    for bits in options.bits:
        for kind in options.codes:
            for radius in radii:
                rows.append(measure(kind, options.n, bits, radius))
                print(rows[-1], flush=True)
    print(f"{time.perf_counter() - started:.0f} s in all, {torch.get_num_threads()} threads")
    if options.write:
        record.write("duplicates", rows, queries=QUERIES, flip=FLIP)


if __name__ == "__main__":
    main()
