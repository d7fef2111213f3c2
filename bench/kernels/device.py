"""Every kernel's time on the device beside its floor and plain PyTorch's time; bench.gpu runs this.

One row a kernel and size: `ms` from replays of a CUDA graph, `bytes_ms` (its bytes over the measured copy rate) and
`operations_ms` (its operations over the measured matrix rate), `of_floor` the larger of the two over `ms`, and `gap`,
the place for what the rest is made of. Rows of the case `tiles` try other tile sizes for the pairs with the bank.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from bench.common import arguments
from bench.common.ceilings import against_floor
from bench.gpu.device import REHEARSAL, alive, captured, milliseconds, relative_error
from bench.gpu.jobs import work
from bench.kernels.cases import CASES, wanted

pairs, tiles = (import_module(f"nhl_fast.kernels.{name}") for name in ("pairs", "tiles"))  # cases found them

# rows, columns, bits, width, warps of a program's tile
TILES = (
    (32, 16, 16, 64, 4), (32, 32, 16, 64, 8), (64, 16, 16, 64, 8), (16, 16, 16, 64, 4), (32, 64, 16, 128, 8),
    (16, 32, 16, 64, 4),
)  # fmt: skip


def plain_time(function, small: bool) -> tuple[float, bool]:
    """(milliseconds, whether a CUDA graph was replayed) of plain PyTorch, which cannot always be captured."""
    if small:
        try:
            return milliseconds(captured(function))[0], True
        except Exception:
            torch.cuda.synchronize()
    return milliseconds(function)[0], False


def kernel(name, n, d, dtype, rates):
    """The row of one kernel at one size."""
    base = {"part": "kernels", "case": name, "n": n, "d": d, "dtype": str(dtype).removeprefix("torch.")}
    made = CASES[name](n, d, dtype)
    try:
        error = relative_error(made.fused(), made.plain())
    except torch.cuda.OutOfMemoryError:  # of plain PyTorch, which keeps what our kernels do not
        torch.cuda.empty_cache()
        error = None
    if error is not None and not error <= made.tolerance:
        yield {**base, "error": error, "note": "wrong result: not timed"}
        return
    ms, runs = milliseconds(captured(made.fused))
    torch_ms, graphed = plain_time(made.plain, n <= 256) if error is not None else (None, None)
    row = {**base, "ms": ms, "runs": runs, "torch_ms": torch_ms, "torch_graph": graphed, "error": error}
    row |= {"bytes": made.floor[0], "operations": made.floor[1], **against_floor(made.floor, made.unit, rates)}
    bounds = {key: row[f"{key}_ms"] for key in ("bytes", "operations") if row[f"{key}_ms"] is not None}
    if bounds:
        row["bound"] = max(bounds, key=bounds.get)
        row["of_floor"] = round(bounds[row["bound"]] / ms, 3)
    yield {**row, "gap": made.gap}


def tile(name, n, config):
    """The row of one tile size of the pairs."""
    before, chosen = pairs.config, tiles.Tiles(*config, stages=1)
    pairs.config = lambda *of: chosen
    try:
        for row in kernel(name, n, 1, torch.float32, {}):
            kept = ("part", "n", "dtype", "ms", "runs", "error", "note")
            yield {"case": "tiles", "kernel": name, "tile": " ".join(map(str, config))} | {
                key: row[key] for key in kept if key in row
            }
    finally:
        pairs.config = before


def jobs(rates: dict, names=None) -> dict:
    """{key: job} of all kernels, then of the tile sizes."""
    found = {}
    for name, n, d, dtype in wanted(names):
        found[f"kernel {name} {n}x{d} {str(dtype)[6:]}"] = partial(kernel, name, n, d, dtype, rates)
    sizes = (16,) if REHEARSAL else (64, 256)
    for n in sizes if names is None else ():
        for name in ("dhn", "dsh", "dch"):
            for config in TILES[:1] if REHEARSAL else TILES:
                found[f"tiles {name} {n} {' '.join(map(str, config))}"] = partial(tile, name, n, config)
    return found


def main() -> int:
    parser = arguments.parser("bench.kernels.device", __doc__)
    parser.add_argument("--rows", type=Path, required=True, help="file of JSON lines to go on with")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rates", default="{}", help="measured rates as JSON (copy_gb_s, matmul_fp32_tflop_s, ..)")
    parser.add_argument("--kernels", type=arguments.some_of(CASES), help=f"of {', '.join(CASES)}")
    options = parser.parse_args()
    todo = jobs(json.loads(options.rates), options.kernels)
    if not REHEARSAL and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device (NHL_FAST_REHEARSAL=1 rehearses on a CPU)")
    return work(options.rows, todo, options.seconds, alive)


if __name__ == "__main__":
    sys.exit(main())
