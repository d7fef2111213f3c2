"""What a measure costs beside mAP alone: NDCG in the pass over the database, and the rules of tied items.

    python -m bench.search.measures [--threads 2] [--rounds 7] [--device cuda] [--write]

Before anything is timed, NDCG is compared with its definition, and the average precisions with those of an evaluation
without it. Contenders take turns; medians are reported.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.common import arguments
from bench.common.data import LENGTHS
from bench.common.record import write
from bench.common.timing import alternate, median_ms
from bench.search.hamming import codes_of, float_multi_hot
from nhl_fast import native
from nhl_fast.retrieval.metrics import evaluate_retrieval

RANKS = (10, 100, 1000)
COUNT = 20  # queries that are compared with the definition
CASES = {
    "id": ("id", False),
    "id, NDCG": ("id", True),
    "expected": ("expected", False),
    "expected, NDCG": ("expected", True),
}


def by_definition(codes, labels, length: int) -> np.ndarray:
    """Mean NDCG (ranks,) of the first COUNT queries, tied items by id."""
    q, d = (np.unpackbits(c.numpy(), axis=1)[:, :length].astype(np.int16) for c in codes)
    classes = max(int(label.max()) + 1 if label.ndim == 1 else label.shape[1] for label in labels)
    a, b = (float_multi_hot(label, classes) for label in labels)
    found = np.zeros(len(RANKS))
    discounts = 1 / np.log2(np.arange(len(d)) + 2)
    for i in range(COUNT):
        order = np.argsort((q[i] != d).sum(1), kind="stable")
        gains = (b[order] @ a[i] > 0).astype(float)
        best = np.sort(gains)[::-1]
        for r, n in enumerate(RANKS):
            ideal = (best * discounts)[:n].sum()
            found[r] += (gains * discounts)[:n].sum() / ideal / COUNT if ideal else 0.0
    return found


def measured(name: str, rounds: int, device: str) -> list[dict]:
    """A row for every case of a protocol, its codes on `device`."""
    host_codes, host_labels, topk = codes_of(name, False)
    codes, labels = ([t.to(device) for t in some] for some in (host_codes, host_labels))
    backend = "cuda" if device == "cuda" else "cpp"

    def asked(rule, gains, count=None):
        of = (codes[0][:count], codes[1], labels[0][:count], labels[1], LENGTHS, topk)
        result = evaluate_retrieval(*of, ties=rule, backend=backend, ndcg=RANKS if gains else ())
        return result, [result.ndcg_at(n)[32] for n in RANKS] if gains else None

    defined = by_definition(host_codes, host_labels, 32)
    if not np.allclose(asked("id", True, COUNT)[1], defined, rtol=1e-9, atol=1e-12):
        raise SystemExit(f"{name}: NDCG differs from its definition; nothing is timed")
    for rule in ("id", "expected"):
        alone, along = (asked(rule, gains)[0].average_precision for gains in (False, True))
        if not torch.equal(alone, along):
            raise SystemExit(f"{name}, {rule}: average precision changes where NDCG is asked for; nothing is timed")
    times = alternate({case: lambda o=options: asked(*o) for case, options in CASES.items()}, rounds, 1)
    base = median_ms(times["id"])
    rows = []
    for case, seconds in times.items():
        ms = median_ms(seconds)
        rows.append({"protocol": name, "case": case, "ms": round(ms, 2), "of_the_first": round(ms / base, 3)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = arguments.parser("bench.search.measures", __doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the codes are")
    parser.add_argument("--write", action="store_true", help="write bench/results/measures(_cuda).json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ready, detail = native.cuda_status() if args.device == "cuda" else native.cpu_status()
    if not ready:
        raise SystemExit(f"the native library is needed: {detail}")
    rows = [row for name in ("cifar10", "coco") for row in measured(name, args.rounds, args.device)]
    if args.write:
        own = {} if args.device == "cpu" else {"device": torch.cuda.get_device_name()}
        name = "measures" if args.device == "cpu" else "measures_cuda"
        write(name, rows, threads=args.threads, instructions=torch.ops.nhl_fast.cpu_isa(), **own)


if __name__ == "__main__":
    main()
