"""The head step on a CUDA device: ours, the reference and the literal procedure; see gpu_check.py."""

from __future__ import annotations

import time

import floors
import torch
import torch.nn.functional as F
from literal import LiteralStep

from nhl_fast import NestedHashLayer, NestedObjective, losses

LENGTHS = (8, 16, 32, 64, 128)
CLASSES, BANK = 100, 13_000
SHAPES = ((64, 2048), (256, 2048), (4096, 768), (32768, 2048))
GRAPHED = 256  # rows up to which a CUDA graph is captured on every side that can be
LITERAL_BYTES = 60e9


class Problem:
    """One loss at one size, with the same layer, bank and inputs for every contender."""

    def __init__(self, name, n, d, dtype=torch.float32, distill=1.0):
        torch.manual_seed(0)
        self.name, self.n, self.d, self.dtype, self.distill = name, n, d, dtype, distill
        self.layer = NestedHashLayer(d, LENGTHS, device="cuda")
        train = max(BANK, n)
        options = {} if name == "mdsh" else {"num_train": train}
        self.loss = losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, **options).cuda()
        bank = getattr(self.loss, "bank", None)
        if bank is not None:
            labels = torch.randint(0, CLASSES, (train,), device="cuda")
            bank.update(torch.arange(train, device="cuda"), torch.randn(train, 128, device="cuda"), labels)
        self.bank = 0 if bank is None else train
        self.features = torch.randn(n, d, device="cuda").to(dtype).requires_grad_()
        self.labels = torch.randint(0, CLASSES, (n,), device="cuda")
        self.index = torch.randperm(train, device="cuda")[:n]
        self.multi_hot = F.one_hot(self.labels, CLASSES).float()
        self.parameters = (self.features, *self.layer.parameters())

    def objective(self, backend):
        return NestedObjective(self.layer, self.loss, distill_weight=self.distill, backend=backend)

    def step(self, backend, compiled=False):
        """A function that returns (total, gradients) and leaves none behind."""
        objective = self.objective(backend)
        forward = torch.compile(lambda x, y, i: objective(x, y, i).total) if compiled else None

        def call():
            arguments = (self.features, self.labels, self.index)
            total = forward(*arguments) if compiled else objective(*arguments).total
            return total.detach(), *torch.autograd.grad(total, self.parameters)

        return call

    def literal(self):
        linear = self.layer.hash_layer
        step = LiteralStep(self.name, linear.weight, linear.bias, LENGTHS, self.loss, self.distill)

        def call():
            for p in self.parameters:
                p.grad = None
            total = step(self.features, self.multi_hot, self.index)
            grads = [p.grad for p in self.parameters]
            for p in self.parameters:
                p.grad = None
            return total, *grads

        return call

    def literal_bytes(self) -> float:
        """A lower estimate of what the literal procedure holds at once."""
        pairs = self.n * (self.bank or self.n) * 4
        cube = 3 * pairs * LENGTHS[-1] if self.name == "dsh" else 0
        return cube + 5 * 6 * pairs + 5 * 5 * self.n**2 * 4


def error(found, expected) -> float:
    """The largest relative difference of the gradients."""
    pairs = zip(found[1:], expected[1:])
    return max(((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item() for a, b in pairs)


def captured(function):
    """A replay of the function's CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def peak_mb(function) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def matrix_rate(report, problem) -> float | None:
    tf32 = torch.backends.cuda.matmul.allow_tf32
    kind = "bf16" if problem.dtype == torch.bfloat16 else "tf32" if tf32 else "fp32"
    return report.head.get(f"matmul_{kind}_tflop_s")


def measure(report, problem, contender, function, expected, tolerance, milliseconds) -> None:
    """One row (two, with a CUDA graph) for a contender, or its failure."""
    base = {
        "part": "steps", "case": problem.name, "n": problem.n, "d": problem.d, "bank": problem.bank,
        "dtype": str(problem.dtype).removeprefix("torch."), "tf32": torch.backends.cuda.matmul.allow_tf32,
        "distill": problem.distill, "contender": contender,
    }  # fmt: skip
    try:
        found = function()
        difference = error(found, expected) if expected is not None else None
        del found
        if difference is not None and not difference <= tolerance:
            report.add({**base, "error": difference, "note": "wrong gradients: not timed"})
            return
        peak = peak_mb(function)
        variants = {False: function}
        if problem.n <= GRAPHED and contender != "literal":
            try:
                variants[True] = captured(function)
            except Exception as failure:
                report.add({**base, "graph": True, "note": f"not captured: {str(failure).splitlines()[0]}"})
        for graphed, timed in variants.items():
            ms, runs = milliseconds(timed)
            element = problem.features.element_size()
            moved, operations = floors.step(
                problem.name, problem.n, problem.d, LENGTHS, element=element, bank=problem.bank, classes=CLASSES,
                distill=problem.distill > 0,
            )  # fmt: skip
            row = {**base, "graph": graphed, "ms": ms, "runs": runs, "peak_mb": peak, "error": difference}
            row |= {"gb_s": round(moved / ms / 1e6, 1), "tflop_s": round(operations / ms / 1e9, 2)}
            if copy := report.head.get("copy_gb_s"):
                row["of_copy"] = round(moved / ms / 1e6 / copy, 3)
            if rate := matrix_rate(report, problem):
                row["of_matmul"] = round(operations / ms / 1e9 / rate, 3)
            report.add(row)
    except torch.cuda.OutOfMemoryError:
        report.add({**base, "note": "does not fit in the device's memory"})
    except Exception as failure:
        report.add(
            {**base, "note": f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"}
        )
    finally:
        torch.cuda.empty_cache()


def compare(report, name, n, d, contenders, milliseconds, dtype=torch.float32, distill=1.0) -> None:
    """Rows of one loss at one size; the eager reference's gradient is what the others are checked with."""
    problem = Problem(name, n, d, dtype, distill)
    reference, expected = problem.step("reference"), None
    try:
        expected = reference()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    # Where full float32 is compared with tf32, or half-precision gradients with each other, they may differ more.
    loose = dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
    tolerance = 3e-2 if loose else 1e-3
    for contender in contenders:
        if contender == "literal":
            if (
                dtype != torch.float32
                or problem.literal_bytes() > LITERAL_BYTES
                or (name in ("dtsh", "shcir") and n > GRAPHED)
            ):
                continue
            function = problem.literal()
        else:
            function = {
                "nhl_fast triton": lambda: problem.step("triton"),
                "reference": lambda: reference,
                "reference, torch.compile": lambda: problem.step("reference", compiled=True),
            }[contender]()
        measure(report, problem, contender, function, expected, tolerance, milliseconds)


def summary(rows) -> str:
    """How many times faster than each other contender ours is, and how much less memory it takes."""
    lines = []
    ours = [r for r in rows if r.get("contender") == "nhl_fast triton" and "ms" in r]
    same = ("case", "n", "d", "dtype", "tf32", "distill")
    for own in ours:
        for other in rows:
            if other is own or "ms" not in other or other.get("contender") in (None, "nhl_fast triton"):
                continue
            if any(own[key] != other.get(key) for key in same):
                continue
            # With graphs on both sides where the other has one; the literal procedure cannot be captured.
            if own["graph"] != other["graph"] and not (own["graph"] and other["contender"] == "literal"):
                continue
            lines.append(
                f"{own['case']:<6}{own['n']:>6} x {own['d']:<5}{own['dtype']:<9}graph={own['graph']!s:<6}"
                f"{other['ms'] / own['ms']:>8.2f} times as fast as {other['contender']}, peak memory "
                f"{other['peak_mb']} MB against {own['peak_mb']}"
            )
    return "\n".join(lines)


def measure_steps(report, seconds: float, names, milliseconds) -> str:
    """All steps, the most wanted first, until the time is over."""
    ends = time.monotonic() + seconds
    names = names or list(losses.REGISTRY)
    eager, compiled = ["nhl_fast triton", "reference", "literal"], ["reference, torch.compile"]
    centers = [name for name in names if name in ("csq", "dpn")]
    first, rest = SHAPES[0], SHAPES[1:]
    jobs = [(name, *first, eager, {}) for name in names]
    for shape in reversed(rest):
        jobs += [(name, *shape, eager, {"distill": 0.0}) for name in centers]
        jobs += [(name, *shape, eager, {"distill": 0.0, "dtype": torch.bfloat16}) for name in centers]
    jobs += [(name, *SHAPES[-1], eager, {"distill": 0.0, "tf32": True}) for name in centers]
    jobs += [(name, *first, compiled, {}) for name in names[:3]]
    # All triplets of a batch this large are beyond any budget here.
    jobs += [(name, *shape, eager, {}) for shape in rest for name in names if name != "dtsh" or shape[0] <= GRAPHED]
    jobs += [(name, *first, compiled, {}) for name in names[3:]]
    missed = []
    for name, n, d, contenders, options in jobs:
        options = dict(options)
        torch.backends.cuda.matmul.allow_tf32 = options.pop("tf32", False)
        if time.monotonic() > ends:
            missed.append(f"{name} {n} x {d} {options or ''} {', '.join(contenders)}")
            continue
        try:
            compare(report, name, n, d, contenders, milliseconds, **options)
        except Exception as failure:
            report.add({"part": "steps", "case": name, "n": n, "d": d, "note": repr(failure)[:300]})
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.cuda.empty_cache()
    wrong = [r for r in report.rows if r.get("note", "").startswith("wrong gradients")]
    text = summary(report.rows) + ("\nnot reached in the time: " + "; ".join(missed) if missed else "")
    if wrong:
        raise RuntimeError(f"{len(wrong)} contenders gave wrong gradients\n{text}")
    return text
