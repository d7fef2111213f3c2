"""Run experiments: `python -m bench.experiments [NAME ...] [--quick]` from the top of the repository."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Set before PyTorch starts: two runs side by side, a thread each, are faster than one run with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import datasets, engine, present, timing

CACHE = Path("runs") / "experiments"


def main(argv=None) -> int:
    known = engine.names()
    parser = argparse.ArgumentParser(prog="python -m bench.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and cells; nothing is written")
    parser.add_argument("--data", choices=("features", "digits"), help="default: features where their file is found")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where finished runs are kept (default {CACHE})")
    parser.add_argument("--write", action="store_true", help="write tables and plots to bench/results/experiments")
    args = parser.parse_args(argv)
    wrong = sorted(set(args.names) - set(known))
    if wrong:
        parser.error(f"unknown experiment {', '.join(wrong)}; known are {', '.join(known)}")
    if args.quick and args.write:
        parser.error("--write: a quick run is no result")
    data = args.data or datasets.default_name()
    if data == "digits":
        print(f"data: digits ({datasets.FEATURES.name} is not there; NHL_FAST_FEATURES names another file)")
    started = time.perf_counter()
    for name in args.names or known:
        config = engine.load(name, args.quick)
        if config.get("kind") == "time":
            document = timing.run(config, None if data == "features" else data)
        else:
            wanted = engine.expand(config, None if data == "features" else data)
            records = engine.run_all(wanted, args.cache, args.processes, name)
            document = {**engine.describe(config, wanted), **present.rows(config, wanted, records)}
        present.show(name, document)
        if args.write:
            present.write(name, config, document)
    print(f"\n{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
