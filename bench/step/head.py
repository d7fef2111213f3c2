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


class Problem:
    """A loss at one size: the same layer, bank and inputs for all contenders, whose gradients are left in place."""

    def __init__(self, name: str, n: int, d: int, classes: int, num_train: int, lengths=LENGTHS):
        torch.manual_seed(0)
        self.name, self.layer = name, NestedHashLayer(d, lengths)
        # The literal form has no masks, so the bank is full; where a bank is an option, neither side has one.
        self.loss = make(name, classes, lengths, num_train)
        self.objective = NestedObjective(self.layer, self.loss)
        linear = self.layer.hash_layer
        self.step = LiteralStep(name, linear.weight, linear.bias, lengths, self.loss)
        self.features = torch.randn(n, d, requires_grad=True)
        self.labels, self.index = torch.randint(0, classes, (n,)), torch.randperm(num_train)[:n]
        self.multi_hot = F.one_hot(self.labels, classes).float()
        self.parameters = (self.features, *self.objective.parameters())

    def clear(self):
        for p in self.parameters:
            p.grad = None

    def ours(self):
        self.clear()
        self.objective(self.features, self.labels, self.index).total.backward()

    def literal(self):
        self.clear()
        self.step(self.features, self.multi_hot, self.index)

    def gradients(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.parameters]


def apart(a, b) -> float:
    """The largest relative difference of two lists of gradients."""
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))


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
        problem = Problem(name, args.n, args.d, args.classes, args.num_train)
        problem.ours()
        a = problem.gradients()
        seconds, _ = timed(problem.literal)
        error = apart(a, problem.gradients())
        if not error < 1e-5:
            raise SystemExit(f"{name}: gradients differ by {error:.1e}; nothing is timed")
        slow = seconds > 1
        repeats = {"ours": 20, "literal": 1 if slow else 8}
        times = alternate({"ours": problem.ours, "literal": problem.literal}, 3 if slow else args.rounds, repeats)
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
