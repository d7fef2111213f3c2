"""Which code length to serve: the shortest that meets a bound on quality, memory or latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core import check
from .codes import num_bytes
from .hamming import search


@dataclass(frozen=True)
class Advice:
    """The chosen length, and what it gives.

    Attributes:
        bits: the code length; None where no length meets every bound.
        map: its mean average precision.
        memory_bytes: of the database's codes at that length.
        latency_seconds: of one search (None where no latency was measured).
        reason: why this length, or which bound fails.
    """

    bits: int | None
    map: float | None
    memory_bytes: int | None
    latency_seconds: float | None
    reason: str


def measure_latency(
    lengths: Sequence[int], num_items: int, k: int = 10, repeats: int = 5, sample: int = 2_000_000, seed: int = 0
) -> dict[int, float]:
    """Median seconds of one search (one query, top k) at each length, on this machine, over random codes.

    Above `sample` items the time of `sample` items is scaled up: a scan costs in proportion to them.
    """
    num_items = check.positive_int(num_items, "num_items")
    n = min(num_items, sample)
    k = min(k, n)
    latencies = {}
    for b in check.code_lengths(lengths, "lengths"):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 256, (n, num_bytes(b)), dtype=torch.uint8, generator=generator)
        query, times = codes[:1].clone(), []
        search(query, codes, k, length=b)
        for _ in range(repeats):
            started = time.perf_counter()
            search(query, codes, k, length=b)
            times.append(time.perf_counter() - started)
        latencies[b] = statistics.median(times) * (num_items / n)
    return latencies


def advise(
    prefix_map: Mapping[int, float],
    num_items: int,
    *,
    min_map: float | None = None,
    max_bytes: float | None = None,
    max_latency: float | None = None,
    latencies: Mapping[int, float] | None = None,
    tolerance: float = 0.005,
) -> Advice:
    """The shortest code length that meets every bound.

    Without `min_map`, the shortest length whose mAP is within `tolerance` of the best one that fits the memory
    and the latency.

    Args:
        prefix_map: {bits: mAP} of every prefix that may be served (an evaluation of 1..L in one pass).
        num_items: size of the database to serve.
        min_map: the least mean average precision.
        max_bytes: the most memory for the codes.
        max_latency: the most seconds for one search; needs `latencies` {bits: seconds}.
        tolerance: see above, in mAP.
    """
    if not prefix_map:
        raise ValueError("prefix_map: expected the mAP of at least one length, got none")
    num_items = check.positive_int(num_items, "num_items")
    for name, bound in (("min_map", min_map), ("max_bytes", max_bytes), ("max_latency", max_latency)):
        if bound is not None and (not isinstance(bound, (int, float)) or not math.isfinite(bound) or bound <= 0):
            raise ValueError(f"{name}: expected a positive number, got {bound!r}")
    check.number(tolerance, "tolerance")
    if min_map is not None and min_map > 1:
        raise ValueError(f"min_map: expected at most 1, got {min_map}")
    if max_latency is not None and not latencies:
        raise ValueError("latencies: a latency bound needs measured latencies {bits: seconds}")
    latencies = {} if latencies is None else latencies

    def memory(b):
        return num_items * num_bytes(b)

    def given(b, reason):
        return Advice(b, prefix_map[b], memory(b), latencies.get(b), reason)

    lengths = sorted(prefix_map)
    fitting = [b for b in lengths if max_bytes is None or memory(b) <= max_bytes]
    if not fitting:
        need = memory(lengths[0])
        return Advice(None, None, None, None, f"even {lengths[0]} bits take {need:,} bytes, over {max_bytes:,.0f}")
    fast = [b for b in fitting if max_latency is None or latencies.get(b, math.inf) <= max_latency]
    if not fast:
        quickest = min(latencies.values())
        return Advice(None, None, None, None, f"the quickest search takes {quickest:.4g} s, over {max_latency:.4g} s")
    best = max(fast, key=lambda b: prefix_map[b])
    if min_map is not None:
        good = [b for b in fast if prefix_map[b] >= min_map]
        if not good:
            reason = (
                f"the best length within the bounds, {best} bits, has mAP {prefix_map[best]:.4f}, under {min_map}"
            )
            return Advice(None, None, None, None, reason)
        return given(good[0], f"the shortest of {len(fast)} lengths within the bounds with mAP of at least {min_map}")
    good = [b for b in fast if prefix_map[b] >= prefix_map[best] - tolerance]
    return given(
        good[0],
        f"the shortest within {tolerance:g} of the best mAP in the bounds ({prefix_map[best]:.4f}, {best} bits)",
    )
