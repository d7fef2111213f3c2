"""The full head step (projection, losses, distillation, weights, all gradients) beside a literal baseline.

    python -m bench.step.head [--losses csq,dsh] [--write]

Both compute the same gradients, which is checked (1e-5 relative) before anything is timed. They take turns in
blocks within one process; medians are reported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.common import arguments
from bench.common.data import LENGTHS
from bench.common.losses import NAMES, make
from bench.common.record import write
from bench.common.timing import alternate, median_ms, timed
from bench.step.literal import LiteralStep
from nhl_fast import NestedHashLayer, NestedObjective
from nhl_fast.text.table import format_table


def problem(name: str, n: int, d: int, classes: int, num_train: int):
    """(our step, literal step, a function that gives the last gradients)."""
    torch.manual_seed(0)
    layer = NestedHashLayer(d, LENGTHS)
    # The literal form has no masks, so the bank is full; where a bank is an option, neither side has one.
    loss = make(name, classes, LENGTHS, num_train)
    objective = NestedObjective(layer, loss)
    literal = LiteralStep(name, layer.hash_layer.weight, layer.hash_layer.bias, LENGTHS, loss)
    features = torch.randn(n, d, requires_grad=True)
    labels, index = torch.randint(0, classes, (n,)), torch.randperm(num_train)[:n]
    multi_hot = F.one_hot(labels, classes).float()
    parameters = (features, layer.hash_layer.weight, layer.hash_layer.bias)

    def clear():
        for p in parameters:
            p.grad = None

    def ours():
        clear()
        objective(features, labels, index).total.backward()

    def theirs():
        clear()
        literal(features, multi_hot, index)

    return ours, theirs, lambda: [p.grad.clone() for p in parameters]


def main() -> None:
    parser = arguments.parser("bench.step.head", __doc__)
    parser.add_argument("--losses", type=arguments.some_of(NAMES), default=[*NAMES], help=f"of {', '.join(NAMES)}")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--num-train", type=int, default=13_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write bench/results/head_step.*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.losses:
        ours, literal, gradients = problem(name, args.n, args.d, args.classes, args.num_train)
        ours()
        a = gradients()
        seconds, _ = timed(literal)
        b = gradients()
        error = max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b))
        if not error < 1e-5:
            raise SystemExit(f"{name}: gradients differ by {error:.1e}; nothing is timed")
        slow = seconds > 1
        repeats = {"ours": 20, "literal": 1 if slow else 8}
        times = alternate({"ours": ours, "literal": literal}, 3 if slow else args.rounds, repeats)
        rows.append(
            {
                "loss": name,
                "literal_ms": round(median_ms(times["literal"]), 3),
                "nhl_fast_ms": round(median_ms(times["ours"]), 3),
                "speedup": round(median_ms(times["literal"]) / median_ms(times["ours"]), 2),
                "gradient_error": float(f"{error:.1e}"),
            }
        )
        print(format_table(rows[-1:], 2).splitlines()[-1], flush=True)
    print(format_table(rows, 2))
    if args.write:
        write("head_step", rows, settings={k: v for k, v in vars(args).items() if k != "write"})


if __name__ == "__main__":
    main()
