"""Hamming search and evaluation on a device, beside PyTorch's own operations there; see hamming.py --device.

Peers are a product of +-1 codes (half precision, so on tensor cores) with topk, and the same with a stable sort for
average precision. Nothing is timed before its results are right: distances equal the peer's, every (distance, id)
pair is what the two codes say, and a few queries agree with the reference id by id.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch

from bench.common import peers
from bench.common.ceilings import binary_products_per_s, copy_gb_s, free_bytes, popcounts_per_s
from bench.common.data import LENGTHS, PROTOCOLS, protocol, random_rows
from bench.common.timing import milliseconds
from bench.kernels import floors
from nhl_fast.retrieval.hamming import search
from nhl_fast.retrieval.metrics import evaluate_retrieval


@dataclass(frozen=True)
class Sizes:
    """What is measured, the most wanted first."""

    databases: tuple = ((10**6, 128), (10**7, 128), (10**8, 128), (10**7, 64), (10**7, 256), (10**6, 64), (10**6, 32),
                        (10**6, 1024), (10**8, 64))  # fmt: skip
    queries: tuple = (1000, 200, 16, 1, 10_000)
    ks: tuple = (10, 100, 1000)
    peer_ks: tuple = (100,)  # where a peer is compared with and timed: it takes most of the time
    peer_pairs: float = 1e10
    table_pairs: float = 1e9  # the slowest peer, which counts bits by a table
    protocols: tuple = tuple((name, *settings) for name, settings in PROTOCOLS.items())
    lengths: tuple = LENGTHS
    copied: int = 1 << 28  # float32 numbers, for the copy rate
    chunk_bytes: int = 1 << 31


class WrongResult(RuntimeError):
    """Two bodies disagree: there is nothing to time."""


class Measurement:
    """Rows of a run on one device, given to `save` after every change, until the time is over."""

    def __init__(self, device: str, backend: str, seconds: float, sizes: Sizes, save, budget_s: float = 0.4):
        self.device, self.backend, self.sizes, self.save = device, backend, sizes, save
        self.ends, self.budget_s = time.monotonic() + seconds, budget_s
        self.rows, self.missed, self.wrong = [], [], []
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        self.copy, ms, runs = copy_gb_s(device, sizes.copied)
        self.popcounts = popcounts_per_s() if device == "cuda" else None
        self.words_anded = binary_products_per_s() if device == "cuda" else None
        self.add({"part": "ceilings", "case": "copy, bytes read and written", "ms": ms, "runs": runs,
                  "gb_s": self.copy})  # fmt: skip

    def add(self, row: dict) -> None:
        self.rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.save(self.rows)

    def compare(self, base: dict, functions: dict, pairs: int, moved: int, counts: int) -> None:
        """A row for each function, "nhl_fast" first; `moved` bytes and `counts` population counts are the floors."""
        hbm = moved / self.copy / 1e6
        ours = None
        for name, function in functions.items():
            try:
                ms, runs = milliseconds(function, self.budget_s, self.device)
            except torch.cuda.OutOfMemoryError:
                self.add({**base, "contender": name, "note": "does not fit in the device's memory"})
                torch.cuda.empty_cache()
                continue
            ours = ms if name == "nhl_fast" else ours
            row = {**base, "contender": name, "ms": round(ms, 5), "runs": runs}
            row |= {"giga_pairs_s": round(pairs / ms / 1e6, 3), "gb_s": round(moved / ms / 1e6, 2)}
            units = {"popcount_floor_ms": self.popcounts, "tensor_core_floor_ms": self.words_anded}
            arithmetic = {key: round(counts / rate * 1e3, 5) for key, rate in units.items() if rate}
            least = min(arithmetic.values(), default=0.0)
            row |= {"hbm_floor_ms": round(hbm, 5), **arithmetic, "of_floor": round(max(hbm, least) / ms, 4)}
            if name != "nhl_fast" and ours:
                row["nhl_fast_is_faster_by"] = round(ms / ours, 2)
            self.add(row)

    def case(self, what: str, function, counts: int) -> None:
        """Runs one case of so many population counts, unless its time is over; a failure becomes a row."""
        # A case is some ten calls, ours and the peer's.
        expected = 10 * counts / self.popcounts if self.popcounts else 0
        if time.monotonic() + expected > self.ends:
            self.missed.append(what)
            return
        try:
            function()
        except torch.cuda.OutOfMemoryError:
            self.add({"case": what, "note": "does not fit in the device's memory"})
        except WrongResult as wrong:
            self.wrong.append(what)
            self.add({"case": what, "note": f"wrong result, not timed: {wrong}"})
        except Exception as failure:
            self.wrong.append(what)
            self.add({"case": what, "note": f"{type(failure).__name__}: {failure}"[:300]})
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def summary(self) -> str:
        """One line a comparison, and what was not reached or is wrong."""
        lines = []
        for row in self.rows:
            if factor := row.get("nhl_fast_is_faster_by"):
                names = ("part", "case", "n", "bits", "queries", "k")
                what = " ".join(f"{name} {row[name]}" for name in names if name in row)
                lines.append(f"{what}: nhl_fast {factor} times as fast as {row['contender']}")
        if self.missed:
            lines.append("not reached in the time: " + "; ".join(self.missed))
        if self.wrong:
            lines.append("FAILED: " + "; ".join(self.wrong))
        return "\n".join(lines)


def distances_of_pairs(queries: torch.Tensor, database: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(Q, k) int32 distances of every query to the items in its row of `ids`."""
    ones = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.int32, device=ids.device)
    parts = [
        ones[(database[some] ^ query[:, None]).int()].sum(-1, dtype=torch.int32)
        for query, some in zip(queries.split(64), ids.split(64))
    ]
    return torch.cat(parts)


def check_search(queries, database, k, found, others: dict[str, torch.Tensor]) -> None:
    """Raises WrongResult unless `found` is the top k; `others` are others' distances, by their names."""
    distances, ids = found
    what = f"{len(queries)} queries, {len(database)} items, {8 * database.shape[1]} bits, k {k}"
    for name, peer in others.items():
        if not torch.equal(distances, peer):
            raise WrongResult(f"{what}: distances differ from those of {name}")
    if not torch.equal(distances_of_pairs(queries, database, ids), distances):
        raise WrongResult(f"{what}: a distance is not that of its id")
    keys = distances.long() * len(database) + ids
    if not (keys[:, 1:] > keys[:, :-1]).all():
        raise WrongResult(f"{what}: not in the order of (distance, id)")
    expected = search(queries[:2], database, k, backend="reference")
    if not all(torch.equal(a[:2], b) for a, b in zip(found, expected)):
        raise WrongResult(f"{what}: ids differ from the reference's")


def measure_search(run: Measurement, n: int, bits: int) -> None:
    """Top-k over one database, for all numbers of queries and all k."""
    if time.monotonic() > run.ends:
        run.missed.append(f"search n {n}, {bits} bits")
        return
    database = random_rows(n, bits, 0, run.device)
    others = searchers(run, database)
    for num_queries in run.sizes.queries:
        queries = random_rows(num_queries, bits, 1, run.device)
        for k in (k for k in run.sizes.ks if k <= n):
            base = {"part": "search", "n": n, "bits": bits, "queries": num_queries, "k": k}
            moved, counts = floors.search(num_queries, n, bits, k)
            case = f"search n {n}, {bits} bits, nq {num_queries}, k {k}"
            few = {
                name: searcher
                for name, (searcher, most) in others.items()
                if k in run.sizes.peer_ks and num_queries * n <= most
            }
            run.case(case, partial(search_case, run, base, queries, database, k, few, moved, counts), counts)


def searchers(run: Measurement, database: torch.Tensor) -> dict:
    """{name: (searcher, most pairs that it is tried on)} of what others offer on the device."""
    n, sizes = len(database), run.sizes
    found = {"torch xor, table, topk": (peers.table_searcher(database, sizes.chunk_bytes), sizes.table_pairs)}
    # The expanded codes, one chunk of products with its topk, and what is searched with.
    needed = 8 * n * database.shape[1] * run.dtype.itemsize + 3 * sizes.chunk_bytes
    if needed <= free_bytes(run.device):
        product = peers.device_searcher(database, run.dtype, sizes.chunk_bytes)
        found = {"torch product, topk": (product, sizes.peer_pairs), **found}
    if run.device == "cuda":
        try:
            found["faiss GpuIndexBinaryFlat"] = (peers.faiss_device_searcher(database), sizes.peer_pairs)
        except (ImportError, RuntimeError) as error:  # faiss raises the latter for its own failures
            run.add({"part": "search", "n": n, "note": f"faiss is left out: {str(error)[:200]}"})
    return found


def search_case(run: Measurement, base: dict, queries, database, k: int, others: dict, moved, counts: int) -> None:
    functions = {"nhl_fast": partial(search, queries, database, k, backend=run.backend)}
    functions |= {name: partial(searcher, queries, k) for name, searcher in others.items()}
    found = functions["nhl_fast"]()
    check_search(queries, database, k, found, {name: searcher(queries, k) for name, searcher in others.items()})
    del found
    run.compare(base, functions, len(queries) * len(database), moved, counts)


def measure_evaluation(run: Measurement, name, queries, n, classes, per_row, topk) -> None:
    """Average precision at all lengths in one call, as in the field's protocols."""
    lengths = run.sizes.lengths
    codes, labels = protocol(queries, n, classes, per_row, lengths[-1], run.device)
    functions = {
        "nhl_fast": partial(evaluate_retrieval, *codes, *labels, lengths=lengths, topk=topk, backend=run.backend),
        "torch product, stable sort": partial(
            peers.device_map, *codes, *labels, lengths, topk or n, run.dtype, run.sizes.chunk_bytes
        ),
    }
    found, expected = (function() for function in functions.values())
    if not torch.allclose(found.average_precision, expected.cpu(), rtol=1e-9, atol=1e-12):
        raise WrongResult(f"{name}: average precision differs from the stable sort's")
    base = {"part": "evaluation", "case": name, "n": n, "bits": lengths[-1], "queries": queries, "k": topk or n}
    moved, counts = floors.evaluation(queries, n, lengths)
    run.compare(base, functions, queries * n * len(lengths), moved, counts)


def measure(
    device: str, backend: str, seconds: float, save, sizes: Sizes | None = None, budget_s=0.15
) -> Measurement:
    """All cases on `device` with our `backend`, the most wanted first, until `seconds` are over.

    Args:
        save: called with all rows after each new one.

    Returns:
        the measurement, whose `wrong` names the cases that failed: theirs were not timed.
    """
    sizes = sizes or Sizes()
    run = Measurement(device, backend, seconds, sizes, save, budget_s)
    first, rest = sizes.databases[:3], sizes.databases[3:]
    for n, bits in first:
        measure_search(run, n, bits)
    for name, queries, n, *settings in sizes.protocols:
        _, counts = floors.evaluation(queries, n, sizes.lengths)
        run.case(f"evaluation {name}", partial(measure_evaluation, run, name, queries, n, *settings), counts)
    for n, bits in rest:
        measure_search(run, n, bits)
    return run
