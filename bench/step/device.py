"""The head step on a CUDA device: ours, the reference and the literal procedure; bench.gpu runs this.

One row a loss, size and contender (two where a CUDA graph is captured as well). Every contender's gradients are
compared with those of the eager reference before it is timed.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.common import arguments, data, losses
from bench.gpu.device import DEVICE, REHEARSAL, alive, captured, milliseconds, peak_mb, relative_error
from bench.gpu.jobs import work
from bench.kernels import floors
from bench.step.literal import LiteralStep
from nhl_fast import NestedHashLayer, NestedObjective

LENGTHS = (4, 8, 16) if REHEARSAL else data.LENGTHS
CLASSES, BANK = (5, 60) if REHEARSAL else (100, 13_000)
SHAPES = ((16, 300), (40, 12)) if REHEARSAL else ((64, 2048), (256, 2048), (4096, 768), (32768, 2048))
SMALL = SHAPES[1][0]  # rows up to which every contender that can be is captured in a CUDA graph
LITERAL_BYTES = 60e9
LOOPS, CUBES = ("dtsh", "shcir"), ("dsh",)  # whose literal form goes row by row, or holds (N, bank, bits) numbers
OURS, REFERENCE, COMPILED, LITERAL = "nhl_fast triton", "reference", "reference, torch.compile", "literal"


class Problem:
    """One loss at one size, with the same layer, bank and inputs for every contender."""

    def __init__(self, name, n, d, dtype=torch.float32, distill=1.0, weighed=False):
        torch.manual_seed(0)
        self.name, self.n, self.d, self.dtype, self.distill = name, n, d, dtype, distill
        self.weighed = weighed
        self.layer = NestedHashLayer(d, LENGTHS, device=DEVICE)
        train = max(BANK, n)
        self.loss = losses.make(name, CLASSES, LENGTHS, train, DEVICE)
        if weighed:
            self.loss.label_options(class_weights=torch.linspace(0.5, 2.0, CLASSES))
        bank = losses.bank_of(self.loss)
        self.bank = 0 if bank is None else train
        self.features = torch.randn(n, d, device=DEVICE).to(dtype).requires_grad_()
        self.labels = torch.randint(0, CLASSES, (n,), device=DEVICE)
        self.index = torch.randperm(train, device=DEVICE)[:n]
        self.parameters = (self.features, *self.layer.parameters())

    def step(self, contender):
        """A function that returns (total, gradients) and leaves none behind."""
        if contender == LITERAL:
            return self._literal()
        backend = "triton" if contender == OURS else "reference"
        objective = NestedObjective(self.layer, self.loss, distill_weight=self.distill, backend=backend)
        forward = objective
        if contender == COMPILED:
            # The graphs of other sizes count against a limit, beyond which PyTorch runs eagerly and says nothing.
            torch._dynamo.reset()
            forward = torch.compile(objective, dynamic=False, backend="eager" if REHEARSAL else "inductor")

        def call():
            total = forward(self.features, self.labels, self.index).total
            return total.detach(), *torch.autograd.grad(total, self.parameters)

        return call

    def _literal(self):
        linear = self.layer.hash_layer
        step = LiteralStep(self.name, linear.weight, linear.bias, LENGTHS, self.loss, self.distill)
        multi_hot = F.one_hot(self.labels, CLASSES).float()

        def call():
            for p in self.parameters:
                p.grad = None
            total = step(self.features, multi_hot, self.index)
            grads = [p.grad for p in self.parameters]
            for p in self.parameters:
                p.grad = None
            return total, *grads

        return call

    def literal_bytes(self) -> float:
        """A lower estimate of what the literal procedure holds at once."""
        pairs = self.n * (self.bank or self.n) * 4
        cube = 3 * pairs * LENGTHS[-1] if self.name in CUBES else 0
        return cube + 5 * 6 * pairs + 5 * 5 * self.n**2 * 4


def expected_gradients(problem):
    """The eager reference's, or None where they do not fit in the device's memory."""
    try:
        return problem.step(REFERENCE)()[1:]
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def measure(name, n, d, contender, dtype=torch.float32, distill=1.0, tf32=False, weighed=False, rates=None):
    """The rows of one contender."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "none"
    try:
        yield from _measure(Problem(name, n, d, dtype, distill, weighed), contender, tf32, rates or {})
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def _measure(problem, contender, tf32, rates):
    base = {
        "part": "steps", "case": problem.name, "n": problem.n, "d": problem.d, "bank": problem.bank,
        "dtype": str(problem.dtype).removeprefix("torch."), "tf32": tf32, "distill": problem.distill,
        "contender": contender,
    } | ({"weighed": True} if problem.weighed else {})  # fmt: skip
    if contender == LITERAL and problem.literal_bytes() > LITERAL_BYTES:
        yield {**base, "note": "not run: it would hold more than 60 GB"}
        return
    expected = expected_gradients(problem)
    function = problem.step(contender)
    try:
        difference = relative_error(function()[1:], expected) if expected is not None else None
        # Where full float32 is compared with tf32, or half-precision gradients with each other, they differ more.
        tolerance = 3e-2 if tf32 or problem.dtype != torch.float32 else 1e-3
        if difference is not None and not difference <= tolerance:
            yield {**base, "error": difference, "note": "wrong gradients: not timed"}
            return
        del expected
        peak = peak_mb(function)
        yield {**base, **times(function, problem, rates), "graph": False, "peak_mb": peak, "error": difference}
    except torch.cuda.OutOfMemoryError:
        yield {**base, "note": "does not fit in the device's memory"}
        return
    if contender == OURS or (problem.n <= SMALL and contender != LITERAL):
        try:
            replay = captured(function)
        except Exception as failure:
            yield {**base, "graph": True, "note": f"not captured: {type(failure).__name__}: {str(failure)[:160]}"}
            return
        yield {**base, **times(replay, problem, rates), "graph": True, "peak_mb": peak, "error": difference}


def times(function, problem, rates) -> dict:
    """Milliseconds, and the rates that they mean for the bytes and operations of the step (floors.py)."""
    ms, runs = milliseconds(function)
    moved, operations = floors.step(
        losses.terms(problem.loss), problem.n, problem.d, LENGTHS, element=problem.features.element_size(),
        classes=CLASSES, distill=problem.distill > 0,
    )  # fmt: skip
    row = {"ms": ms, "runs": runs, "gb_s": round(moved / ms / 1e6, 1), "tflop_s": round(operations / ms / 1e9, 3)}
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    unit = "bf16" if problem.dtype == torch.bfloat16 else "tf32" if tf32 else "fp32"
    for key, rate, achieved in (
        ("of_copy", rates.get("copy_gb_s"), row["gb_s"]),
        ("of_matmul", rates.get(f"matmul_{unit}_tflop_s"), row["tflop_s"]),
    ):
        if rate:
            row[key] = round(achieved / rate, 4)
    return row


def plan(names):
    """(name, n, d, contender, options), the most wanted first, and torch.compile of larger sizes last."""
    names = list(names or losses.NAMES)
    bodies = {name: [body for body, _ in losses.terms(losses.make(name, 5, LENGTHS, 10))] for name in names}
    centers = [name for name in names if bodies[name] == ["center"]]
    first, rest = SHAPES[0], SHAPES[1:]
    found = [(name, *first, contender, {}) for name in names for contender in (OURS, REFERENCE, COMPILED, LITERAL)]
    found += [(name, *first, c, {"weighed": True}) for name in names for c in (OURS, REFERENCE)]
    for options in ({"distill": 0.0}, {"distill": 0.0, "dtype": torch.bfloat16}):
        for shape in reversed(rest):
            found += [(name, *shape, c, options) for name in centers for c in (OURS, REFERENCE)]
    found += [(name, *SHAPES[-1], c, {"distill": 0.0, "tf32": True}) for name in centers for c in (OURS, REFERENCE)]
    for shape in rest:
        for name in names:
            # All triplets of a batch this large, and a Python loop over its rows, are beyond any budget here.
            large = shape[0] > SMALL
            contenders = () if large and "triplets" in bodies[name] else (OURS, REFERENCE, LITERAL)
            contenders = [c for c in contenders if not (large and name in LOOPS and c == LITERAL)]
            found += [(name, *shape, c, {}) for c in contenders]
    for shape in rest:
        some = [name for name in names if shape[0] <= SMALL or "triplets" not in bodies[name]]
        found += [(name, *shape, COMPILED, {}) for name in some]
    return found


def key_of(name, n, d, contender, options) -> str:
    told = " ".join(f"{key}={str(value).removeprefix('torch.')}" for key, value in options.items())
    return f"step {name} {n}x{d} {contender} {told}".strip()


def jobs(names, rates, match="") -> dict:
    """{key: job}, of those whose key has the regular expression `match` in it."""
    found = {}
    for name, n, d, contender, options in plan(names):
        key = key_of(name, n, d, contender, options)
        if re.search(match, key):
            found[key] = partial(measure, name, n, d, contender, rates=rates, **options)
    return found


def compile_steps(name, match="") -> None:
    """Compile what the jobs of a loss need, so that the time is theirs: kernels are kept on the disk.

    Of larger sizes torch.compile's only where they are asked for by `match`: they take longest.
    """
    seen = set()
    for _, n, d, contender, options in plan([name]):
        key = (n, d, contender, *map(str, options.items()))
        if contender not in (OURS, COMPILED) or key in seen or (contender == COMPILED and n > SMALL and not match):
            continue
        if not re.search(match, key_of(name, n, d, contender, options)):
            continue
        seen.add(key)
        options = dict(options)
        torch.backends.cuda.matmul.fp32_precision = "tf32" if options.pop("tf32", False) else "none"
        try:
            Problem(name, n, d, **options).step(contender)()
        except Exception as failure:
            print(f"{name} {n}x{d} {contender}: {type(failure).__name__}: {str(failure)[:300]}", flush=True)


def main() -> int:
    parser = arguments.parser("bench.step.device", __doc__)
    parser.add_argument("--rows", type=Path, help="file of JSON lines to go on with")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rates", default="{}", help="measured rates as JSON (copy_gb_s, matmul_fp32_tflop_s, ..)")
    parser.add_argument("--losses", type=arguments.some_of(losses.NAMES), help=f"of {', '.join(losses.NAMES)}")
    parser.add_argument(
        "--warm", choices=losses.NAMES, metavar="LOSS", help="compile what this loss needs, and time nothing"
    )
    parser.add_argument("--match", default="", help="a regular expression: only the jobs that it is found in")
    options = parser.parse_args()
    todo = jobs(options.losses, json.loads(options.rates), options.match)
    if not REHEARSAL and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device (NHL_FAST_REHEARSAL=1 rehearses on a CPU)")
    if options.warm:
        compile_steps(options.warm, options.match)
        return 0
    if options.rows is None:
        parser.error("--rows: expected a file")
    return work(options.rows, todo, options.seconds, alive)


if __name__ == "__main__":
    sys.exit(main())
