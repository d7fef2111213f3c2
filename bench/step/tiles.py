"""How long a whole step takes, as a CUDA graph, with other tile sizes of one kernel; one line a choice.

    python -m bench.step.tiles                      # all
    python -m bench.step.tiles --warm 3 --of 12     # compiles every twelfth choice, the third: several at once
    python -m bench.step.tiles --only pairs

Gradients are compared with the reference's before anything is timed. A choice that doesn't compile, or needs more
shared memory than there is, is told as such.
"""

from __future__ import annotations

import itertools
import json
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch

from bench.common import arguments
from bench.gpu.device import captured, milliseconds, relative_error
from bench.step.device import OURS, REFERENCE, Problem
from nhl_fast.steps import fused  # noqa: F401 (finds nhl_fast.kernels in a checkout)

KERNELS = ("backward", "distillation", "dots", "pairs", "projection", "softmax", "triplets")
backward, distillation, dots, pairs, projection, softmax, triplets = (
    import_module(f"nhl_fast.kernels.{name}") for name in KERNELS
)


def changed(module, name, **values):
    """A patch of a function that gives `Tiles`: some of its values are others."""
    original = getattr(module, name)
    return mock.patch.object(module, name, lambda *arguments: original(*arguments)._replace(**values))


def tiles_of(module, name, **values):
    """A patch of a kernel's `Tiles`."""
    return mock.patch.object(module, name, getattr(module, name)._replace(**values))


# (rows, columns, depth, warps) of a product's tile.
SQUARE = ((128, 128, 32, 8), (128, 128, 64, 8), (64, 128, 32, 8), (64, 128, 32, 4), (64, 128, 64, 8),
          (128, 64, 32, 4), (64, 64, 64, 4), (64, 64, 32, 4))  # fmt: skip
PRODUCT = ((128, 64, 32, 4), (128, 128, 32, 8), (128, 128, 64, 8), (64, 64, 32, 4), (64, 64, 64, 4), (32, 64, 32, 4),
           (32, 128, 32, 4), (64, 32, 32, 4), (256, 64, 32, 8))  # fmt: skip
BACKWARD = ((32, 64, 32, 4), (32, 128, 32, 4), (32, 32, 32, 4), (16, 64, 32, 4), (32, 32, 64, 4), (32, 64, 64, 4))
# (rows, columns, bits, warps, stages) of the tile of a loss or of the distillation.
LOSS = ((32, 32, 32, 4, 1), (32, 64, 32, 4, 1), (64, 32, 32, 4, 1), (64, 64, 32, 8, 1), (32, 32, 32, 4, 2),
        (64, 64, 32, 8, 2), (32, 64, 32, 8, 2), (16, 64, 32, 4, 2), (16, 128, 32, 8, 2),
        (32, 128, 32, 8, 1))  # fmt: skip
# The same of the pairs with a bank, around what measured best, and of the softmax over centres.
PAIRS = ((32, 32, 32, 4, 1), (64, 16, 32, 4, 1), (64, 32, 16, 4, 1), (64, 32, 32, 4, 2), (64, 64, 32, 4, 1),
         (64, 64, 32, 8, 1), (128, 32, 32, 8, 1), (128, 16, 32, 4, 1))  # fmt: skip
MANY = ((64, 64, 32, 4, 1), (64, 64, 32, 8, 1), (128, 32, 32, 8, 1), (128, 64, 32, 8, 1), (128, 16, 32, 4, 1),
        (64, 32, 64, 4, 1), (64, 16, 32, 4, 1), (32, 64, 32, 4, 1))  # fmt: skip
SOFTMAX = ((16, 32, 32, 4, 1), (16, 64, 32, 8, 1), (16, 64, 32, 4, 2), (16, 128, 32, 8, 2))


def project_choices(rows):
    small = [(None, None, k, warps) for k, warps in itertools.product((32, 64), (4, 8))]
    for m, n, k, warps in small if rows <= 1024 else SQUARE:
        sides = {} if m is None else {"rows": m, "columns": n}
        name = "small_tile" if rows <= 1024 else "large_tile"
        yield f"{m} x {n} x {k}, {warps} warps", [changed(projection, name, depth=k, warps=warps, **sides)]


def product_choices(rows):
    for (a, d, k, warps), stages in itertools.product(PRODUCT, (3, 4)):
        tile = changed(dots, "product_config", rows=a, width=d, depth=k, warps=warps, stages=stages)
        yield f"{a} x {d} x {k}, {warps} warps, {stages} stages", [tile]


def backward_choices(rows):
    for m, d, k, warps in (*SQUARE, *BACKWARD):
        yield f"{m} x {d} x {k}, {warps} warps", [changed(backward, "config", rows=m, width=d, depth=k, warps=warps)]


def loss_choices(module, *names, tiles=LOSS):
    def choices(rows):
        for name, (r, c, bits, warps, stages) in itertools.product(names, tiles):
            values = {"rows": r, "columns": c, "bits": bits, "warps": warps, "stages": stages}
            told = f"{name.lower()} {r} x {c} x {bits}, {warps} warps, {stages} stages"
            yield told, [tiles_of(module, name, **values)]

    return choices


def chosen_choices(module, function, like, tiles=LOSS):
    """Choices in place of what a function of the sizes gives."""

    def choices(rows):
        for r, c, bits, warps, stages in tiles:
            tile = like._replace(rows=r, columns=c, bits=bits, warps=warps, stages=stages)
            patches = [mock.patch.object(module, function, lambda *sizes, tile=tile: tile)]
            yield f"{function} {r} x {c} x {bits}, {warps} warps, {stages} stages", patches

    return choices


HALF = {"dtype": torch.bfloat16, "distill": 0.0}
# (kernel, choices, loss, rows, features, options of the problem)
SWEEPS = [
    ("pairs", chosen_choices(pairs, "config", pairs.LARGE, PAIRS), "dhn", 64, 2048, {}),
    ("pairs", chosen_choices(pairs, "config", pairs.LARGE, PAIRS), "dsh", 256, 2048, {}),
    ("pairs", chosen_choices(pairs, "config", pairs.LARGE, PAIRS), "dch", 64, 2048, {}),
    ("many pairs", chosen_choices(pairs, "config", pairs.LARGE, MANY), "dhn", 4096, 768, {"distill": 0.0}),
    ("many pairs", chosen_choices(pairs, "config", pairs.LARGE, MANY), "dsh", 4096, 768, {"distill": 0.0}),
    ("many pairs", chosen_choices(pairs, "config", pairs.LARGE, MANY), "dch", 4096, 768, {"distill": 0.0}),
    ("project", project_choices, "csq", 32768, 2048, {"distill": 0.0}),
    ("project", project_choices, "csq", 32768, 2048, HALF),
    ("product", product_choices, "csq", 32768, 2048, {"distill": 0.0}),
    ("product", product_choices, "csq", 32768, 2048, HALF),
    ("backward", backward_choices, "csq", 32768, 2048, {"distill": 0.0}),
    ("backward", backward_choices, "csq", 32768, 2048, HALF),
    ("softmax", loss_choices(softmax, "CONFIG", tiles=SOFTMAX), "shcir", 64, 2048, {}),
    ("triplets", loss_choices(triplets, "CONFIG"), "dtsh", 64, 2048, {}),
    ("norms", chosen_choices(distillation, "norms_tile", distillation.NORMS), "csq", 64, 2048, {}),
    ("norms", chosen_choices(distillation, "norms_tile", distillation.NORMS), "csq", 256, 2048, {}),
    ("gradient", loss_choices(distillation, "GRADIENT"), "csq", 64, 2048, {}),
    ("gradient", loss_choices(distillation, "GRADIENT"), "csq", 256, 2048, {}),
    ("norms", chosen_choices(distillation, "norms_tile", distillation.MANY_NORMS, MANY), "csq", 4096, 768, {}),
    (
        "gradient",
        chosen_choices(distillation, "gradient_tile", distillation.MANY_GRADIENT, MANY),
        "csq",
        4096,
        768,
        {},
    ),
    ("project", project_choices, "csq", 64, 2048, {}),
    ("backward", backward_choices, "csq", 64, 2048, {}),
    ("project", project_choices, "csq", 4096, 768, {"distill": 0.0}),
    ("product", product_choices, "csq", 4096, 768, {"distill": 0.0}),
    ("product", product_choices, "csq", 256, 2048, {}),
    ("project", project_choices, "csq", 256, 2048, {}),
]


def jobs(only):
    for kernel, choices, loss, rows, d, options in SWEEPS:
        if only and kernel not in only:
            continue
        for name, patches in [("as it is", []), *choices(rows)]:
            yield kernel, name, patches, loss, rows, d, options


def told(kernel, name, loss, rows, d, options) -> dict:
    text = {key: str(value).removeprefix("torch.") for key, value in options.items()}
    return {"kernel": kernel, "choice": name, "loss": loss, "n": rows, "d": d, **text}


def main() -> None:
    sweeps = list(dict.fromkeys(sweep[0] for sweep in SWEEPS))
    parser = arguments.parser("bench.step.tiles", __doc__)
    parser.add_argument("--only", type=arguments.some_of(sweeps), help=f"of {', '.join(sweeps)}")
    parser.add_argument("--warm", type=int, help="compile some choices alone")
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300, help="begins no choice after these")
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device")
    ends, expected, key = time.monotonic() + options.seconds, None, None
    for number, (kernel, name, patches, loss, rows, d, wanted) in enumerate(jobs(options.only)):
        if time.monotonic() > ends:
            break
        if options.warm is not None and number % options.of != options.warm:
            continue
        row = told(kernel, name, loss, rows, d, wanted)
        try:
            if key != (loss, rows, d, str(wanted)):
                key = (loss, rows, d, str(wanted))
                problem = Problem(loss, rows, d, **wanted)
                expected = None if options.warm is not None else problem.step(REFERENCE)()[1:]
            with ExitStack() as stack:
                for patch in patches:
                    stack.enter_context(patch)
                step = problem.step(OURS)
                found = step()[1:]
                if options.warm is not None:
                    continue
                row["error"] = relative_error(found, expected)
                if row["error"] <= (3e-2 if "dtype" in wanted else 1e-3):
                    row["ms"], row["runs"] = milliseconds(captured(step), budget_s=0.05)
                else:
                    row["note"] = "wrong gradients: not timed"
        except Exception as failure:
            row["note"] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"[:160]
        if options.warm is None:
            print("  ".join(f"{k}={v}" for k, v in row.items()), flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
