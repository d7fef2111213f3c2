"""What `nhl-fast advise --recall` does: stages for a search of codes from a file or of a run."""

from __future__ import annotations

import numpy as np

from ..core.files import existing_file
from ..index.funnel.advise import FunnelAdvice, advise_funnel
from ..text.table import format_table
from ..training.arrays import load_array
from ..training.run_folder import RunFolder


def advise(args) -> tuple[dict, str]:
    """What is said as JSON and as text."""
    codes, queries = _codes(args)
    if not 0 < args.recall < 1:
        raise ValueError(f"--recall: expected a share above 0 and below 1, got {args.recall}")
    items = len(codes) if args.items is None else int(args.items)
    if items < len(codes):
        raise ValueError(f"--items: expected at least {len(codes)}, the number of codes, got {items}")
    found = advise_funnel(codes, args.recall, args.k, queries=queries, items=items)
    said = {"codes": len(codes), "items": items, "k": args.k, "recall": args.recall}
    said["funnels"] = [vars(advice) for advice in found]
    best = found[0].funnel
    first = f"funnel={best}" if best else "no funnel: the exact search is the fastest"
    title = f"{items:,} items, the {args.k} nearest, recall of at least {args.recall:g}:"
    return said, f"{first}\n\n{title}\n{format_table([_row(advice) for advice in found], 3)}"


def _row(advice: FunnelAdvice) -> dict:
    return {
        "funnel": str(advice.funnel) if advice.funnel else "none",
        "recall": advice.recall,
        "ms a query": 1000 * advice.seconds,
        "times the scan": advice.speedup,
    }


def _codes(args):
    """(codes, queries or None)."""
    if (args.run is None) == (args.codes is None):
        raise ValueError("--recall: give either a run folder or --codes")
    if args.run is None:
        existing_file(args.codes, "--codes")
        try:
            codes = np.load(args.codes, mmap_mode="r", allow_pickle=False)
        except ValueError:
            codes = load_array(args.codes, "--codes")  # says what is wrong with it
        return codes, None if args.queries is None else load_array(args.queries, "--queries")
    if args.queries is not None:
        raise ValueError("--queries: a run has queries of its own")
    folder = RunFolder(args.run)
    files = [folder.codes(split) for split in ("database", "query")]
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{args.run} holds no codes: run 'nhl-fast evaluate {args.run}' first")
    return tuple(load_array(file, "run") for file in files)
