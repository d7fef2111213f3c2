"""Hamming search and evaluation beside what others offer.

    python -m bench.search.hamming [--quick] [--parts topk,evaluation,growth] [--threads 2]
    python -m bench.search.hamming --device cuda [--quick] [--seconds 600]

Results are verified equal before anything is timed, and medians are reported. On the CPU, ours and the peers take
turns in one process with the same number of threads. Writes hamming_cpu or hamming_cuda .csv and .json to $OUT, or
else to bench/results (not with --quick). For --device cuda see device.py.
"""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
import torch

from bench.common import arguments, peers
from bench.common.data import LENGTHS, PROTOCOLS, protocol, random_rows
from bench.common.record import write
from bench.common.timing import alternate, median_ms, timed
from nhl_fast import native
from nhl_fast.retrieval.hamming import radius_search, search
from nhl_fast.retrieval.metrics import evaluate_retrieval


def row(part: str, case: str, name: str, seconds: list[float], pairs: float, ours_ms: float | None) -> dict:
    ms = median_ms(seconds)
    return {
        "part": part,
        "case": case,
        "name": name,
        "ms": round(ms, 4),
        "runs": len(seconds),
        "giga_distances_per_s": round(pairs / ms / 1e6, 3),
        "nhl_fast_is_faster_by": None if ours_ms is None else round(ms / ours_ms, 2),
    }


def report(rows: list[dict]) -> None:
    for r in rows:
        factor = r["nhl_fast_is_faster_by"]
        beside = "" if factor is None else f"   nhl_fast is {factor} times as fast"
        print(f"{r['part']:<12}{r['case']:<40}{r['name']:<34}{r['ms']:>12.3f} ms{beside}", flush=True)


def compare(part: str, case: str, functions: dict, pairs: float, rounds: int, budget: float) -> list[dict]:
    """Rows for functions already verified; "nhl_fast" is ours. Each gets about `budget` seconds a round."""
    repeats = {}
    for name, function in functions.items():
        repeats[name] = int(np.clip(budget / timed(function)[0], 1, 40))
    times = alternate(functions, rounds, repeats)
    ours = median_ms(times["nhl_fast"])
    rows = [row(part, case, name, t, pairs, None if name == "nhl_fast" else ours) for name, t in times.items()]
    report(rows)
    return rows


def make_searchers(database: np.ndarray, threads: int) -> dict:
    found = {}
    for name, make in peers.SEARCHERS.items():
        try:
            found[name] = make(database, threads)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def bench_topk(threads: int, quick: bool) -> list[dict]:
    n, rows = 200_000 if quick else 1_000_000, []
    for bits in (128, 64, 32):
        tensor = random_rows(n, bits, 0)
        database = tensor.numpy()
        searchers = make_searchers(database, threads)
        for num_queries, ks in ((200, (10, 100, 1000)), (1, (10, 100, 1000))):
            for k in ks:
                rows_asked = random_rows(num_queries, bits, 1)
                queries = rows_asked.numpy()
                functions = {"nhl_fast": partial(search, rows_asked, tensor, k, backend="cpp")}
                distances = functions["nhl_fast"]()[0].numpy()
                for name, searcher in searchers.items():
                    # The slow ones are shown on a few cases only.
                    if name in ("numpy", "torch", "usearch") and (k != 10 or (quick and num_queries > 1)):
                        continue
                    result = searcher(queries, k)
                    if not np.array_equal(np.sort(result, axis=1), distances):
                        print(f"{name} is not exact at {bits} bits, k {k}: left out")
                        continue
                    functions[name] = partial(searcher, queries, k)
                case = f"{bits} bits, n {n}, nq {num_queries}, k {k}"
                rows += compare("topk", case, functions, num_queries * n, 3 if quick else 5, 0.05 if quick else 0.5)
    return rows


def codes_of(name: str, quick: bool):
    """(codes, labels, K) of a protocol; of a tenth of its items with `quick`."""
    queries, n, classes, per_row, topk = PROTOCOLS[name]
    if quick:
        queries, n = queries // 10, n // 10
    return *protocol(queries, n, classes, per_row, LENGTHS[-1]), topk


def usual(codes, labels, topk, lengths, count: int):
    """The usual loop over the first `count` queries; codes and labels are expanded before the clock starts."""
    q, d = (np.unpackbits(c.numpy(), axis=1).astype(np.float32) * 2 - 1 for c in codes)
    classes = max(int(label.max()) + 1 if label.ndim == 1 else label.shape[1] for label in labels)
    a, b = (float_multi_hot(label, classes) for label in labels)
    return lambda: np.stack(
        [peers.usual_map(q[:count], d, a[:count], b, length, topk or len(d)) for length in lengths]
    )


def float_multi_hot(label: torch.Tensor, classes: int) -> np.ndarray:
    return (torch.nn.functional.one_hot(label, classes) if label.ndim == 1 else label).float().numpy()


def bench_evaluation(threads: int, quick: bool) -> list[dict]:
    rows = []
    for name in PROTOCOLS:
        codes, labels, topk = codes_of(name, quick)
        queries, n = len(codes[0]), len(codes[1])

        def ours(codes=codes, labels=labels, topk=topk):
            return evaluate_retrieval(*codes, *labels, lengths=LENGTHS, topk=topk, backend="cpp")

        count = 20 if quick else 100
        loop = usual(codes, labels, topk, LENGTHS, count)
        expected = loop()
        if not np.allclose(ours().average_precision[:, :count].numpy(), expected, rtol=1e-9, atol=1e-12):
            raise SystemExit(f"{name}: average precision differs from the usual loop's; nothing is timed")
        times = alternate({"nhl_fast": ours, "loop": loop}, 3, {"nhl_fast": 3, "loop": 1})
        # The loop's time is proportional to its queries.
        whole = [t * queries / count for t in times["loop"]]
        case = f"{queries} x {n}, K {topk or n}, {len(LENGTHS)} lengths"
        pairs = queries * n * len(LENGTHS)
        fast = median_ms(times["nhl_fast"])
        part = [row(name, case, "nhl_fast", times["nhl_fast"], pairs, None)]
        part.append(row(name, case, f"usual loop ({count} queries, scaled)", whole, pairs, fast))
        report(part)
        rows += part
    return rows


def bench_growth(threads: int, quick: bool) -> list[dict]:
    """How evaluation and search grow with items, queries, lengths, bits, k and threads, one at a time."""
    rows = []

    def add(part, case, function, pairs):
        function()
        seconds = []
        while len(seconds) < 3 or (sum(seconds) < 0.5 and len(seconds) < 30):
            seconds.append(timed(function)[0])
        one = row(part, case, "nhl_fast", seconds, pairs, None)
        report([one])
        rows.append(one)

    scale = 10 if quick else 1
    for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000):
        if n // scale >= 1000:
            tensors = random_rows(200, 128, 1), random_rows(n // scale, 128, 0)
            add("search", f"items {n // scale}", lambda t=tensors: search(*t, 10), 200 * n // scale)
    n = 1_000_000 // scale
    for bits in (8, 16, 32, 48, 64, 128, 256, 512, 1024):
        tensors = random_rows(200, bits, 1), random_rows(n, bits, 0)
        add("search", f"bits {bits}", lambda t=tensors: search(*t, 10), 200 * n)
        # Nothing is within radius 0: what remains is the distances and one comparison each.
        add("ceiling", f"bits {bits}", lambda t=tensors: radius_search(*t, 0), 200 * n)
    tensors = random_rows(200, 128, 1), random_rows(n, 128, 0)
    for k in (1, 10, 100, 1000, 10_000):
        add("search", f"k {k}", lambda k=k: search(*tensors, k), 200 * n)
    for num in (1, 2, 4, 8, 32, 200, 1000):
        queries = random_rows(num, 128, 1)
        add("search", f"queries {num}", lambda q=queries: search(q, tensors[1], 10), num * n)
    codes, labels, _ = codes_of("cifar10", quick)
    for m in range(1, len(LENGTHS) + 1):
        pairs = len(codes[0]) * len(codes[1]) * m
        add(
            "evaluation",
            f"lengths {LENGTHS[:m]}",
            lambda m=m: evaluate_retrieval(*codes, *labels, LENGTHS[:m]),
            pairs,
        )
    for share in (0.1, 0.3, 1.0):
        q, d = int(share * len(codes[0])), int(share * len(codes[1]))
        add(
            "evaluation",
            f"queries {q}",
            lambda q=q: evaluate_retrieval(codes[0][:q], codes[1], labels[0][:q], labels[1], LENGTHS),
            q * len(codes[1]) * 5,
        )
        add(
            "evaluation",
            f"items {d}",
            lambda d=d: evaluate_retrieval(codes[0], codes[1][:d], labels[0], labels[1][:d], LENGTHS),
            len(codes[0]) * d * 5,
        )
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        add("threads", f"search {count}", lambda: search(*tensors, 10), 200 * n)
        pairs = len(codes[0]) * len(codes[1]) * 5
        add("threads", f"evaluation {count}", lambda: evaluate_retrieval(*codes, *labels, LENGTHS), pairs)
    torch.set_num_threads(threads)
    return rows


PARTS = {"topk": bench_topk, "evaluation": bench_evaluation, "growth": bench_growth}


def on_cuda(seconds: float, quick: bool) -> None:
    """The measurements of device.py on the CUDA device, or the reason why there are none."""
    if not torch.cuda.is_available():
        raise SystemExit("hamming: --device cuda: PyTorch sees no CUDA device here")
    ready, detail = native.cuda_status()
    if not ready:
        raise SystemExit(f"hamming: --device cuda: {detail}")
    from bench.search import device

    save = (lambda rows: None) if quick else partial(write, "hamming_cuda")
    sizes = device.Sizes(databases=((10**6, 128),), protocols=()) if quick else None
    run = device.measure("cuda", "cuda", seconds, save, sizes)
    print(run.summary())
    if run.wrong:
        raise SystemExit(f"hamming: {len(run.wrong)} cases failed")


def main() -> None:
    parser = arguments.parser("bench.search.hamming", __doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, a few seconds, writes nothing")
    parser.add_argument("--parts", type=arguments.some_of(PARTS), default=[*PARTS], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=600, help="for --device cuda: starts no case after these")
    args = parser.parse_args()
    if args.device == "cuda":
        return on_cuda(args.seconds, args.quick)
    torch.set_num_threads(args.threads)
    ready, detail = native.cpu_status()
    if not ready:
        raise SystemExit(f"the native library is needed: {detail}")
    rows = [row for part in args.parts for row in PARTS[part](args.threads, args.quick)]
    speedups = [r["nhl_fast_is_faster_by"] for r in rows if r["name"] == "faiss"]
    if speedups:
        print(f"beside faiss: {min(speedups)} to {max(speedups)}, median {statistics.median(speedups):.1f}")
    if not args.quick:
        write("hamming_cpu", rows, instructions=torch.ops.nhl_fast.cpu_isa())


if __name__ == "__main__":
    main()
