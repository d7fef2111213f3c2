"""Every Triton kernel at its sizes of use, one table a kernel: time, floor, ratio, and plain PyTorch's time.

    python -m bench.kernels [--only csq,backward] [--seconds 120] [--json FILE]

A row is timed as a CUDA graph, after its result agreed with plain PyTorch's. The floor is the larger of the bytes
that must move over this card's copy rate and the operations over its matrix rate, both measured first; see floors.py.
On a machine without a CUDA device the kernels run in Triton's interpreter at tiny sizes: that shows that the
benchmark works, and its times are no results.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["NHL_FAST_REHEARSAL"] = "1"

from bench.common import arguments
from bench.common.ceilings import measured_rates
from bench.common.record import environment
from bench.gpu.device import DEVICE
from bench.kernels import device
from bench.kernels.cases import CASES, wanted

NO_RESULT = "no results: the kernels were interpreted on a CPU, at tiny sizes"


def line(row: dict) -> str:
    """One row of a kernel's table."""
    size = f"{row['n']:>6} x {row['d']:<5}{row['dtype']:<10}"
    if "note" in row:
        return f"{size}{row['note']}"
    floor = max((row[key] for key in ("bytes_ms", "operations_ms") if row.get(key) is not None), default=None)
    told = f"{size}{1000 * row['ms']:>11.1f}"
    told += f"{1000 * floor:>11.1f}{row['ms'] / floor:>9.1f}" if floor else f"{'':>11}{'':>9}"
    if row.get("torch_ms"):
        told += f"{1000 * row['torch_ms']:>12.1f}{row['torch_ms'] / row['ms']:>9.1f}"
    return told


HEAD = f"{'n x d':>14}{'dtype':>12}{'us':>8}{'floor us':>11}{'times':>9}{'PyTorch us':>12}{'faster':>9}"


def main() -> int:
    parser = arguments.parser("bench.kernels", __doc__)
    parser.add_argument("--only", type=arguments.some_of(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=300, help="begins no case after these")
    parser.add_argument("--json", type=Path, help="where to write the rows, too")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}" if DEVICE == "cuda" else NO_RESULT)
    rates = {key: rate for key, rate, *_ in measured_rates()} if DEVICE == "cuda" else {}
    for name, rate in rates.items():
        print(f"    {name} {rate}")
    ends, rows, missed = time.monotonic() + options.seconds, [], 0
    for name in CASES:
        mine = [case for case in wanted(options.only) if case[0] == name]
        if mine:
            print(f"\n{name}\n{HEAD}", flush=True)
        for _, n, d, dtype in mine:
            if time.monotonic() > ends:
                missed += 1
                continue
            for row in device.kernel(name, n, d, dtype, rates):
                rows.append(row)
                print(line(row), flush=True)
    if missed:
        print(f"\n{missed} cases were not reached in {options.seconds:.0f} s")
    if DEVICE != "cuda":
        print(f"\n{NO_RESULT}")
    if options.json:
        partial = options.json.with_name(f"{options.json.name}.{os.getpid()}.tmp")
        partial.write_text(json.dumps({"environment": environment(), "rates": rates, "rows": rows}, indent=1) + "\n")
        os.replace(partial, options.json)
    return int(any("note" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
