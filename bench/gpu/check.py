"""Everything that only a GPU can say, in two calls of 300 and 470 s; run again, a call goes on where it stopped.

    python -m bench.gpu first
    python -m bench.gpu second          # what the first left over, and the rest
    python -m bench.gpu [second] [--parts build,steps] [--budget 540] [--losses csq,dsh] [--out DIR] [--fresh]

build          compiles the native libraries for this card (NHL_FAST_CUDA=1) in the checkout
rates          how fast the card counts bits, by each of its units
ceilings       this card's copy bandwidth and matrix rates
tests_device   the CUDA library's tests on the card: every length, radius, masks, evaluation, packing
warm           compiles the kernels of all steps, a process a loss
tests_kernels  the kernels' tests, with the kernels really compiled, and those of CUDA graphs
steps          per loss and size: our step (eager and a CUDA graph), the reference (eager, a graph) and the literal
               procedure, then torch.compile, with bytes and operations a second and peak memory
scan           top-k search by each unit, the operator alone
hamming        search and evaluation beside PyTorch and faiss, as bench.search.hamming --device cuda
placed         search of an index on the card: resident, streamed, and half of each
kernels        every kernel beside its floor and PyTorch, and tile sizes of the pairs with the bank
profile        where the time of a step and of a search goes
warm_tiles     compiles what the next part times
tiles          whole steps with other tile sizes
tests_rest     all other tests

calls.py has the order and the seconds of each. Results go to $OUT if it is set, else to --out or bench/results:
gpu_check.md (to read), .json, .csv and .log, rewritten after every part. What was done is kept in build/gpu_check,
until sources, PyTorch or the card change. Nothing is timed whose result is wrong. Exit code 0: all done; 1: a part
failed or is left over; 2: no CUDA device. NHL_FAST_REHEARSAL=1 goes through it on a CPU at tiny sizes, and measures
nothing.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import torch

from bench.common import arguments
from bench.common.losses import NAMES
from bench.common.record import RESULTS
from bench.gpu.calls import CALLS
from bench.gpu.device import REHEARSAL
from bench.gpu.parts import PARTS, Incomplete
from bench.gpu.report import Report

STATE = RESULTS.parents[1] / "build" / ("gpu_rehearsal" if REHEARSAL else "gpu_check")
OUT = STATE / "out" if REHEARSAL else RESULTS


def check(report: Report, plan, options) -> bool:
    """Run the parts of a plan (see calls.py) that are not done, in their order; whether all are done then.

    A part has its share of the time that is left: what one does not use goes to those after it.
    """
    done = {name for name, part in report.parts.items() if part["state"] == "done" and not PARTS[name].again}
    for name in dict.fromkeys(name for name, _ in plan if name in done):
        print(f"== {name}: done before", flush=True)
    todo, begun = [(name, share) for name, share in plan if name not in done], {}
    ends, left = time.monotonic() + options.budget, sum(share or 0 for _, share in todo)
    try:
        for name, share in todo:
            if share is None:
                print(f"== {name} begins", flush=True)
                begun[name] = PARTS[name].begin(report, options)
                continue
            allowed = max((ends - time.monotonic()) * share / left, 0)
            left -= share
            turn(report, name, allowed, options, begun.pop(name, None))
    finally:
        for processes in filter(None, begun.values()):
            processes.end()
    return not left_over(report, plan)


def turn(report: Report, name: str, allowed: float, options, begun) -> None:
    """One part's turn; what it says goes into the report."""
    started = time.monotonic()
    print(f"== {name} ({allowed:.0f} s)", flush=True)
    try:
        note, state = PARTS[name].run(report, allowed, options, begun), "done"
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


def left_over(report: Report, plan) -> list[str]:
    names = dict.fromkeys(name for name, _ in plan)
    return [name for name in names if report.parts.get(name, {}).get("state") != "done"]


def main(argv=None) -> int:
    parser = arguments.parser("bench.gpu", __doc__)
    parser.add_argument(
        "call", choices=CALLS, nargs="?", default="second", help="default: second, which has all parts"
    )
    parser.add_argument("--parts", type=arguments.some_of(PARTS), default=[*PARTS], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, help="seconds in all; default: the call's")
    parser.add_argument("--losses", type=arguments.some_of(NAMES), default=[*NAMES], help="for warm and steps")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go unless $OUT is set")
    parser.add_argument("--state", type=Path, default=STATE, help="the folder of what is gone on with")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    options = parser.parse_args(argv)
    if options.budget is None:
        options.budget = CALLS[options.call].seconds
    if not options.budget > 0:
        parser.error(f"--budget: expected a positive number of seconds, got {options.budget}")
    plan = [(name, share) for name, share in CALLS[options.call].plan if name in options.parts]
    if not plan:
        parser.error(f"--parts: the {options.call} call has none of {', '.join(options.parts)}")
    if not torch.cuda.is_available() and not REHEARSAL:
        print(
            "bench.gpu: PyTorch sees no CUDA device, and every number here needs one. On a CPU the kernels are "
            "tested by `pytest tests/triton` in Triton's interpreter; NHL_FAST_REHEARSAL=1 rehearses this.",
            file=sys.stderr,
        )
        return 2
    out = Path(os.environ.get("OUT") or options.out)
    report = Report(options.state.resolve(), out.resolve(), options.fresh)
    done = check(report, plan, options)
    print(f"results: {report.out / 'gpu_check.md'}")
    if not done:
        print(f"failed or left over: {', '.join(left_over(report, plan))}; the same command goes on with them")
    return int(not done)
