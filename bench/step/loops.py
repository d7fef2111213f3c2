"""The step, an epoch and a small evaluation beside the loops of public code, in one run.

    python -m bench.step.loops [--parts step,epoch,evaluation] [--losses csq,dsh] [--write]

The loops are those of `literal.py`: the published procedure for nested codes, and one model a length. Before anything
is timed, gradients are compared (1e-5 relative): ours with the published procedure's, and the sum over the single
models with ours at weights of 1 without distillation; of an epoch, the weights after three steps, and the first
values; of the evaluation, every average precision. Contenders take turns within one process; medians are reported.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bench.common import arguments
from bench.common.data import LENGTHS, protocol
from bench.common.losses import CASES, make
from bench.common.record import write
from bench.common.timing import alternate, median_ms, timed
from bench.search.hamming import usual
from bench.step.head import Problem, apart
from bench.step.literal import LiteralStep, SingleStep
from nhl_fast import NestedHashLayer, NestedObjective
from nhl_fast.losses import REGISTRY
from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.text.table import format_table

PARTS = ("step", "epoch", "evaluation")
OURS, PUBLISHED, SINGLE = "nhl_fast", "published", "single"
CONTENDERS = (OURS, PUBLISHED, SINGLE)
LOSSES = tuple(dict.fromkeys((*REGISTRY, *CASES)))
EPOCH_LOSSES = ("csq", "dhn", "dtsh", "dch")  # the published step of dsh takes 2 s


def row(part: str, case: str, times: dict[str, list[float]], error: float) -> dict:
    """Medians in milliseconds of the contenders that there are."""
    found = {f"{name}_ms": round(median_ms(times[name]), 3) if name in times else None for name in CONTENDERS}
    return {"part": part, "case": case, **found, "error": float(f"{error:.1e}")}


def agreed(part: str, case: str, error: float, bound: float) -> float:
    if not error < bound:
        raise SystemExit(f"{part}, {case}: results differ by {error:.1e}; nothing is timed")
    return error


# ------------------------------------------------------------------------------------------------------------- step


class Loops(Problem):
    """A loss at one size, with a model for each length beside."""

    def __init__(self, name, n, d, classes, num_train, lengths=LENGTHS):
        super().__init__(name, n, d, classes, num_train, lengths)
        linear = self.layer.hash_layer
        self.heads = [
            [t[:b].detach().clone().requires_grad_() for t in (linear.weight, linear.bias)] for b in lengths
        ]
        self.singles = [SingleStep(name, *head, self.loss, k) for k, head in enumerate(self.heads)]

    def single(self):
        self.clear()
        for head, step in zip(self.heads, self.singles):
            head[0].grad = head[1].grad = None
            step(self.features, self.multi_hot, self.index)

    def difference(self) -> float:
        """Of the gradients, see above."""
        self.ours()
        ours = self.gradients()
        self.literal()
        published = apart(ours, self.gradients())
        self.single()
        summed = self.features.grad.clone()
        self.clear()
        plain = NestedObjective(self.layer, self.loss, 0.0, "uniform")
        plain(self.features, self.labels, self.index).total.backward()
        return max(published, apart([summed], [self.features.grad]))


def step_row(name: str, n: int, d: int, classes: int, items: int, rounds: int) -> dict:
    problem = Loops(name, n, d, classes, items)
    error = agreed("step", name, problem.difference(), 1e-5)
    functions = {OURS: problem.ours, PUBLISHED: problem.literal, SINGLE: problem.single}
    slow = {key: timed(function)[0] > 0.5 for key, function in functions.items()}
    repeats = {OURS: 20, **{key: 1 if slow[key] else 8 for key in (PUBLISHED, SINGLE)}}
    return row("step", name, alternate(functions, 3 if any(slow.values()) else rounds, repeats), error)


# ------------------------------------------------------------------------------------------------------------ epoch


class Pictures(torch.utils.data.Dataset):
    """Pictures of 32 x 32 in memory, each turned into numbers as scripts do it; with its class and its place."""

    def __init__(self, items: int, classes: int):
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.randint(0, 256, (items, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, classes, (items,), generator=generator)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, place):
        picture = self.pictures[place].float().div_(255).sub_(0.5).div_(0.25)
        return picture.flip(2) if torch.rand(()) < 0.5 else picture, self.labels[place], place


def small_net(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, width), nn.Tanh()),
    )


class Training:
    """A net and a head from one start. `how`: OURS, PUBLISHED, or the number of the length of a single model."""

    def __init__(self, name: str, data: Pictures, classes: int, how: str | int, width: int = 256, lengths=LENGTHS):
        torch.manual_seed(0)
        self.data, self.how, self.classes = data, how, classes
        self.net, self.layer = small_net(width), NestedHashLayer(width, lengths)
        loss, linear = make(name, classes, lengths, len(data)), self.layer.hash_layer
        head = list(self.layer.parameters())
        if how == OURS:
            self.objective = NestedObjective(self.layer, loss)
        elif how == PUBLISHED:
            self.step = LiteralStep(name, *head, lengths, loss)
        else:
            head = [t[: lengths[how]].detach().clone().requires_grad_() for t in (linear.weight, linear.bias)]
            self.step = SingleStep(name, *head, loss, how)
        self.parameters = [*self.net.parameters(), *head, *loss.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.01, momentum=0.9)

    def epoch(self, most: int | None = None) -> torch.Tensor:
        """Train through the data, or `most` batches of it; the first values: every length's, or the step's own."""
        torch.manual_seed(1)
        loader, first = torch.utils.data.DataLoader(self.data, batch_size=64, shuffle=True), None
        for number, (pictures, labels, index) in enumerate(loader):
            if number == most:
                break
            self.optimizer.zero_grad()
            features = self.net(pictures)
            if self.how == OURS:
                result = self.objective(features, labels, index)
                result.total.backward()
                value = result.losses
            else:
                value = self.step(features, nn.functional.one_hot(labels, self.classes).float(), index)
            self.optimizer.step()
            first = value if first is None else first
        return first


def epoch_row(name: str, items: int, classes: int, rounds: int, lengths=LENGTHS) -> dict:
    data = Pictures(items, classes)

    def training(how):
        return Training(name, data, classes, how, lengths=lengths)

    ours, published = training(OURS), training(PUBLISHED)
    values = ours.epoch(3)
    published.epoch(3)
    error = apart([p.detach() for p in ours.parameters], [p.detach() for p in published.parameters])
    firsts = torch.stack([training(k).epoch(1) for k in range(len(lengths))])
    error = agreed("epoch", name, max(error, apart([values], [firsts])), 1e-4)
    models = {OURS: [OURS], PUBLISHED: [PUBLISHED], SINGLE: range(len(lengths))}
    times: dict[str, list[float]] = {key: [] for key in models}
    for _ in range(rounds):
        for key, hows in models.items():
            times[key].append(sum(timed(training(how).epoch)[0] for how in hows))
    return row("epoch", name, times, error)


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluation_row(queries: int, items: int, classes: int, rounds: int, lengths=LENGTHS) -> dict:
    codes, labels = protocol(queries, items, classes, None, lengths[-1])

    def ours():
        return evaluate_retrieval(*codes, *labels, lengths=lengths)

    loop = usual(codes, labels, None, lengths, queries)
    error = float(np.abs(ours().average_precision.numpy() - loop()).max())
    case = f"{queries:,} x {items:,}"
    agreed("evaluation", case, error, 1e-9)
    # Nested codes and single ones are ranked by the same loop, a length at a time.
    return row("evaluation", case, alternate({OURS: ours, PUBLISHED: loop}, rounds, {OURS: 20, PUBLISHED: 1}), error)


def main() -> None:
    parser = arguments.parser("bench.step.loops", __doc__)
    parser.add_argument("--parts", type=arguments.some_of(PARTS), default=[*PARTS], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--losses", type=arguments.some_of(LOSSES), default=[*LOSSES], help="of the step")
    parser.add_argument("--epoch-losses", type=arguments.some_of(LOSSES), default=[*EPOCH_LOSSES])
    for name, default in (("n", 64), ("d", 2048), ("classes", 100), ("items", 5000), ("rounds", 7), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", action="store_true", help="write bench/results/loops.*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []

    def add(made):
        rows.append(made)
        print(format_table([made], 2).splitlines()[-1], flush=True)

    if "step" in args.parts:
        for name in args.losses:
            add(step_row(name, args.n, args.d, args.classes, args.items, args.rounds))
    if "epoch" in args.parts:
        for name in args.epoch_losses:
            add(epoch_row(name, args.items, min(args.classes, 10), max(3, args.rounds // 2)))
    if "evaluation" in args.parts:
        add(evaluation_row(100, 5400, 10, args.rounds))
    print(format_table(rows, 2))
    if args.write:
        write("loops", rows, settings={k: v for k, v in vars(args).items() if k != "write"})


if __name__ == "__main__":
    main()
