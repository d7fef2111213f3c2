"""The options of `nhl-fast advise`."""

from __future__ import annotations

from collections.abc import Callable


def add(command: Callable, size: Callable) -> None:
    """Add the command; `size` reads numbers such as 100M and 2GB."""
    sub = command(
        "advise",
        "the shortest length that meets your bounds, or stages for a search",
        "The shortest code length that meets a bound on mAP, memory or latency, from the mAP of every prefix;\n"
        "or, with --recall, stages (funnel=) that keep this share of the exact results, the fastest first.\n\n"
        "  nhl-fast advise runs/digits --items 100M --min-map 0.95 --max-memory 1GB --max-latency-ms 20\n"
        "  nhl-fast advise --codes codes.npy --recall 0.99 -k 10 --items 100M",
    )
    sub.add_argument("run", nargs="?", metavar="RUN", help="an evaluated run folder")
    sub.add_argument(
        "--items", type=size, help="items to serve, as in 2000000 or 100M (with --recall: default as many as codes)"
    )
    sub.add_argument("--min-map", type=float)
    sub.add_argument("--max-memory", type=size, help="for the codes, as in 2GB")
    sub.add_argument("--max-latency-ms", type=float, help="of one search (top 10), measured on this machine")
    sub.add_argument(
        "--tolerance", type=float, default=0.005, help="without --min-map: accepted distance to the best mAP"
    )
    sub.add_argument("--recall", type=float, help="propose stages that keep this share of the exact results")
    sub.add_argument("--codes", metavar="NPY", help="with --recall: packed codes to search, or a sample of them")
    sub.add_argument("--queries", metavar="NPY", help="with --codes: packed queries (default: codes held out)")
    sub.add_argument("-k", type=int, default=10, help="with --recall: how many neighbours (default 10)")
