"""Everything that only a GPU can say, in one command and under ten minutes; run again, it goes on where it stopped.

    python -m bench.gpu.check [--parts build,steps] [--budget 540] [--losses csq,dsh] [--out DIR] [--fresh]

build          compiles the native libraries for this card (NHL_FAST_CUDA=1) in the checkout
ceilings       this card's copy bandwidth and matrix rates
tests_device   the CUDA library's tests on the card: every length, radius, masks, evaluation, packing
warm           compiles the kernels of all steps, a process a loss
steps          per loss and size: our step (eager and a CUDA graph), the reference (eager, a graph, torch.compile) and
               the literal procedure, with bytes and operations a second and peak memory
tests_kernels  the kernels' tests, with the kernels really compiled
kernels        every kernel beside its floor and PyTorch, and tile sizes of the pairs with the bank
hamming        search and evaluation on the device beside PyTorch's, as bench.search.hamming --device cuda
tests_rest     all other tests

Results go to $OUT if it is set, else to --out or bench/results: gpu_check.json, gpu_check.csv and gpu_check.log,
rewritten after every part. What was done is kept in build/gpu_check, until sources, PyTorch or the card change.
Nothing is timed whose result is wrong. Exit code 0: all done; 1: a part failed or is left over; 2: no CUDA device.
NHL_FAST_REHEARSAL=1 goes through all of it on a CPU at tiny sizes, and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

import torch

from bench.common.record import RESULTS
from bench.gpu.device import REHEARSAL
from bench.gpu.parts import PARTS, Incomplete
from bench.gpu.report import Report

# Shares of the time; what a part does not use goes to those after it.
SHARES = {
    "build": 0.12, "ceilings": 0.02, "tests_device": 0.08, "warm": 0.12, "steps": 0.3, "tests_kernels": 0.13,
    "kernels": 0.08, "hamming": 0.14, "tests_rest": 0.01,
}  # fmt: skip
STATE = RESULTS.parents[1] / "build" / ("gpu_rehearsal" if REHEARSAL else "gpu_check")
OUT = STATE / "out" if REHEARSAL else RESULTS


def check(report: Report, names: list[str], options) -> bool:
    """Run the parts that are not done, in their order; whether all of `names` are done now."""
    todo = [name for name in PARTS if name in names and report.parts.get(name, {}).get("state") != "done"]
    for name in (n for n in PARTS if n in names and n not in todo):
        print(f"== {name}: done before", flush=True)
    ends, left = time.monotonic() + options.budget, sum(SHARES[name] for name in todo)
    for name in todo:
        allowed = max((ends - time.monotonic()) * SHARES[name] / left, 0)
        left -= SHARES[name]
        started = time.monotonic()
        print(f"== {name} ({allowed:.0f} s)", flush=True)
        try:
            note, state = PARTS[name](report, allowed, options), "done"
        except Incomplete as error:
            note, state = str(error), "incomplete"
        except RuntimeError as error:
            note, state = str(error), "failed"
        except Exception:
            note, state = traceback.format_exc(), "failed"
        seconds = round(time.monotonic() - started, 1)
        report.parts[name] = {"state": state, "seconds": seconds, "note": note[-6000:]}
        print(f"{note[-3000:]}\n{name}: {state} in {seconds} s", flush=True)
        report.save()
    return all(report.parts.get(name, {}).get("state") == "done" for name in names)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--losses", default="", help="for the part steps; all ten if empty")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go unless $OUT is set")
    parser.add_argument("--state", type=Path, default=STATE, help="the folder of what is gone on with")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    options = parser.parse_args(arguments)
    from nhl_fast.losses import REGISTRY

    for name, given, known in (("--parts", options.parts, PARTS), ("--losses", options.losses, REGISTRY)):
        if unknown := sorted(set(filter(None, given.split(","))) - set(known)):
            parser.error(f"{name}: unknown {', '.join(unknown)}; it takes {', '.join(known)}")
    if options.budget <= 0:
        parser.error(f"--budget: expected a positive number of seconds, got {options.budget}")
    if not torch.cuda.is_available() and not REHEARSAL:
        print(
            "bench.gpu.check: PyTorch sees no CUDA device, and every number here needs one. On a CPU the kernels are "
            "tested by `pytest tests/triton` in Triton's interpreter; NHL_FAST_REHEARSAL=1 rehearses this script.",
            file=sys.stderr,
        )
        return 2
    report = Report(options.state, Path(os.environ["OUT"]) if os.environ.get("OUT") else options.out, options.fresh)
    names = [name for name in PARTS if name in options.parts.split(",")]
    done = check(report, names, options)
    print(f"results: {report.out / 'gpu_check.json'}")
    if not done:
        left = [name for name in names if report.parts.get(name, {}).get("state") != "done"]
        print(f"failed or left over: {', '.join(left)}; the same command goes on with them")
    return int(not done)


if __name__ == "__main__":
    sys.exit(main())
