"""Blocks of times on a card: steps of large batches, searches that look twice, measures of an evaluation."""

from __future__ import annotations

import csv

from bench.common.record import RESULTS, markdown
from bench.readme.speed import measures_table, stored

CALL = "2026-11-28-h200"


def rows_of(name: str) -> list[dict]:
    with open(RESULTS / "gpu" / CALL / f"{name}.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def gpu_many() -> str:
    """Steps of 4,096 rows, with distillation."""
    found = {
        (r["case"], r["contender"], r["when"], r["graph"] == "True"): float(r["ms"]) for r in rows_of("steps_4096")
    }
    lines = []
    for loss in dict.fromkeys(loss for loss, *_ in found):
        compiled = found.get((loss, "reference, torch.compile", "after", False))
        if compiled is None:
            continue
        ours = (("before", False), ("after", False), ("after", True))
        before, after, graph = (found[(loss, "nhl_fast triton", *which)] for which in ours)
        numbers = found[loss, "reference", "before", False], compiled, before, after
        lines.append([loss, *(f"{ms:.2f}" for ms in numbers), f"{compiled / after:.2f}", f"{graph:.2f}"])
    head = ["loss", "PyTorch, eager, ms", "torch.compile, ms", "nhl_fast before, ms", "nhl_fast, ms"]
    return markdown([*head, "times torch.compile", "CUDA graph, ms"], lines)


def gpu_misses() -> str:
    """What a sample with too few neighbours in it cost, before and after."""
    before = {(r["bits"], r["n"], r["queries"], r["k"]): r for r in rows_of("misses_before")}
    lines = []
    for row in rows_of("misses_cuda"):
        case = tuple(row[key] for key in ("bits", "n", "queries", "k"))
        if int(before[case]["looked_twice"]) == 0:
            continue
        told = [
            [f"{r['looked_twice']} of {r['sets']}", *(f"{float(r[key]):.2f}" for key in ("median_ms", "slowest_ms"))]
            for r in (before[case], row)
        ]
        lines.append([f"{int(case[1]):,} x {case[0]}", f"{int(case[2]):,}", f"{int(case[3]):,}", *told[0], *told[1]])
    both = [
        f"{what} {when}" for when in ("before", "now") for what in ("looked twice", "median, ms,", "slowest, ms,")
    ]
    return markdown(["codes", "queries", "k", *both], lines)


def gpu_measures() -> str:
    """What NDCG and the rules of ties cost on a card."""
    return measures_table(stored(f"gpu/{CALL}/measures_cuda"), 1)


BLOCKS = {make.__name__: make for make in (gpu_many, gpu_misses, gpu_measures)}
