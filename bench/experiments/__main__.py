"""Run experiments: `python -m bench.experiments [NAME ...] [--quick]` from the top of the repository."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Set before PyTorch starts: two runs side by side, a thread each, are faster than one run with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import datasets, engine, floats, present, timing

CACHE = Path("runs") / "experiments"


def main(argv=None) -> int:
    known = engine.names()
    parser = argparse.ArgumentParser(prog="python -m bench.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and cells; nothing is written")
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="digits, features, a set beside them (words100, ...) or an .npz of features and labels, with the "
        "experiment's numbers of queries and training rows; default: what the experiment names, where it is found",
    )
    for name in ("queries", "train"):
        parser.add_argument(f"--{name}-per-class", type=int, metavar="N", help=f"{name} rows a class, with --data")
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
    counts = {f"{name}_per_class": getattr(args, f"{name}_per_class") for name in ("queries", "train")}
    counts = {name: count for name, count in counts.items() if count is not None}
    if counts and (args.data in (None, "digits", "features") or min(counts.values()) < 1):
        parser.error(f"{', '.join(counts)}: expected numbers of at least 1, and --data with a name or a file")
    if not args.data and data == "digits":
        print(f"data: digits ({datasets.FEATURES.name} is not there; NHL_FAST_FEATURES names another file)")
    started = time.perf_counter()
    for name in args.names or known:
        config = engine.load(name, args.quick)
        other = None if data == "features" else data
        if config["data"].get("name") == "pictures" and other is None and "NHL_FAST_CIFAR10" not in os.environ:
            print(f"{name}: left out, its pictures are not there (NHL_FAST_CIFAR10 names their folder)")
            continue
        if config.get("kind") == "time":
            document = timing.run(config, other)
        elif config.get("kind") == "floats":
            document = floats.run(config, other)
        else:
            wanted = engine.expand(config, other, counts)
            records = engine.run_all(wanted, args.cache, args.processes, name)
            document = {**engine.describe(config, wanted), **present.rows(config, wanted, records)}
        present.show(name, document)
        if args.write:
            present.write(name, config, document)
    print(f"\n{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
