"""Which stages a search should have for a wanted recall: measured on a sample of the codes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core import check
from ...retrieval.codes import check_packed
from ...retrieval.hamming import search
from ..nested_index import NestedIndex

Funnel = tuple[tuple[int, int], ...]

_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# More candidates than this part of the items, or than so many, are no funnel.
_MOST_PART, _MOST = 0.05, 16384
_TIMED, _ROUNDS = 8, 5


@dataclass(frozen=True)
class FunnelAdvice:
    """Stages and what they give.

    Attributes:
        funnel: for `search(..., funnel=)`; () is the exact search.
        recall: share of its results that are as near as those of the exact search, on queries that had no part in
            the choice.
        seconds: of one query on this machine, the sample's median times the items over those of the sample.
        speedup: seconds of the exact search over these.
    """

    funnel: Funnel
    recall: float
    seconds: float
    speedup: float


@check.memory
@torch.no_grad()
def advise_funnel(
    codes,
    recall: float = 0.99,
    k: int = 10,
    *,
    queries=None,
    items: int | None = None,
    num_queries: int = 200,
    sample: int = 1_000_000,
    seed: int = 0,
) -> list[FunnelAdvice]:
    """Funnels of one and two stages that keep a share of the exact top k, the fastest first; the last is exact.

    Prefixes of 16 to 512 bits are tried. Half of the queries say how many candidates a prefix needs, each funnel's
    recall is measured on the other half, and what misses the wanted one is left out. Candidates of a sample are
    scaled up to the items: enough, since the k nearest of all items are nearer than those of a sample.

    Args:
        codes: (n, bytes) packed uint8 rows, tensor or NumPy array on the CPU; those to be searched or a part of them.
        recall: the least share, above 0 and below 1.
        k: neighbours a query.
        queries: (Q, bytes) packed rows, at least 2; None holds out some of the codes.
        items: of the database that the funnel is for; None for n.
        num_queries: how many are held out where there are no queries.
        sample: most rows that are measured on, drawn at random.
        seed: of the draws.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    codes = check_packed(codes, "codes")
    if codes.device.type != "cpu":
        raise ValueError(f"codes: expected rows in main memory, got them on {codes.device}")
    check.number(recall, "recall", positive=True)
    if recall >= 1:
        raise ValueError(f"recall: expected less than 1 (a search without a funnel is exact), got {recall}")
    k = check.positive_int(k, "k")
    items = len(codes) if items is None else check.positive_int(items, "items", minimum=max(1, len(codes)))
    num_queries = check.positive_int(num_queries, "num_queries", minimum=2)
    sample = check.positive_int(sample, "sample")
    seed = check.positive_int(seed, "seed", minimum=0)
    if queries is not None:
        queries = check_packed(queries, "queries")
        if len(queries) < 2 or queries.shape[1] != codes.shape[1] or queries.device != codes.device:
            like = f"(2 or more, {codes.shape[1]}), as codes, on the CPU"
            raise ValueError(f"queries: expected rows of shape {like}, got {check.describe(queries)}")
    queries, rows = _drawn(codes, queries, num_queries, sample, k, seed)
    return _measured(queries, rows, recall, k, items / len(rows))


def _drawn(codes, queries, num_queries: int, sample: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries, rows to search), both in an order by chance or ascending."""
    generator = np.random.default_rng(seed)
    held = num_queries if queries is None else 0
    taken = min(len(codes), sample + held)
    if held >= taken:
        raise ValueError(f"num_queries: expected fewer than the {taken} rows that there are, got {held}")
    if taken < held + k:
        raise ValueError(f"k: expected at most {max(0, taken - held)}, the rows that are measured on, got {k}")
    if taken < len(codes):
        codes = codes[torch.from_numpy(np.sort(generator.choice(len(codes), taken, replace=False, shuffle=False)))]
    if queries is not None:
        return queries, codes
    order = torch.from_numpy(generator.permutation(taken))
    return codes[order[:held]], codes[order[held:].sort().values]


def _measured(queries, rows, recall: float, k: int, scale: float) -> list[FunnelAdvice]:
    index = NestedIndex(8 * rows.shape[1])
    index.add(rows)
    chosen, checked = queries[::2], queries[1::2]
    furthest = index.search(checked, k)[0][:, -1:]
    good: dict[Funnel, float] = {(): 1.0}
    for funnel in _funnels(_needed(chosen, rows, k, recall), k):
        if any(_covers(funnel, other) for other in good):
            continue  # fewer candidates of the same prefixes are enough
        share = float((index.search(checked, k, funnel=funnel)[0] <= furthest).double().mean())
        if share >= recall:
            good[funnel] = share
    seconds = _seconds(index, checked[:_TIMED], k, list(good))
    exact = seconds[()]
    found = [
        FunnelAdvice(_scaled(funnel, scale), share, scale * seconds[funnel], exact / seconds[funnel])
        for funnel, share in good.items()
        if seconds[funnel] <= exact
    ]
    return sorted(found, key=lambda advice: (advice.seconds, advice.funnel))


def _needed(queries, rows, k: int, recall: float) -> dict[int, tuple[int, int]]:
    """{bits: candidates that hold the share `recall` of the k nearest, and the share halfway to all of them}."""
    most = min(len(rows), max(k, min(_MOST, int(_MOST_PART * len(rows)))))
    wanted = search(queries, rows, k)[1]
    needed = {}
    for bits in (b for b in _LENGTHS if b < 8 * rows.shape[1]):
        ids, order = search(queries, rows, most, bits)[1].sort(dim=1)
        place = torch.searchsorted(ids, wanted).clamp(max=most - 1)
        places = torch.where(ids.gather(1, place) == wanted, order.gather(1, place), most).flatten().sort().values
        shares = recall, (1 + recall) / 2
        counts = tuple(int(places[math.ceil(share * len(places)) - 1]) + 1 for share in shares)
        if counts[0] <= most:
            needed[bits] = counts
    return needed


def _funnels(needed: dict[int, tuple[int, int]], k: int) -> list[Funnel]:
    """Of one stage, few candidates first, and of two stages that lose half as much each."""
    one = [((bits, _rounded(count, k)),) for i in (0, 1) for bits, count in ((b, c[i]) for b, c in needed.items())]
    two = [
        ((a, _rounded(needed[a][1], k)), (b, _rounded(needed[b][1], k)))
        for a, b in itertools.combinations(needed, 2)
        if 4 * needed[b][1] <= needed[a][1]
    ]
    return [funnel for funnel in dict.fromkeys(one + two) if funnel[0][1] <= _MOST]


def _covers(funnel: Funnel, other: Funnel) -> bool:
    """Whether a funnel has the prefixes of another one and as many candidates at least."""
    same = [bits for bits, _ in funnel] == [bits for bits, _ in other]
    return same and all(mine >= theirs for (_, mine), (_, theirs) in zip(funnel, other))


def _rounded(count: int, k: int) -> int:
    """Upwards, to two digits; at least k."""
    step = 10 ** max(0, len(str(count)) - 2)
    return max(k, -(-count // step) * step)


def _scaled(funnel: Funnel, scale: float) -> Funnel:
    return tuple((bits, math.ceil(count * scale)) for bits, count in funnel)


def _seconds(index: NestedIndex, queries, k: int, funnels: Sequence[Funnel]) -> dict[Funnel, float]:
    """Medians of single queries, in rounds that all funnels take part in."""
    times: dict[Funnel, list[float]] = {funnel: [] for funnel in funnels}
    for number in range(_ROUNDS + 1):
        for funnel, taken in times.items():
            for query in queries:
                started = time.perf_counter()
                index.search(query, k, funnel=funnel or None)
                if number:  # the first round warms up
                    taken.append(time.perf_counter() - started)
    return {funnel: float(np.median(taken)) for funnel, taken in times.items()}
