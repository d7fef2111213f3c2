"""Ranking metrics under ties, in closed form from a histogram over distances.

Items at the same distance form a tie group: c items, t of them relevant, after s items with h relevant. A
`TieRule` says at which ranks its relevant items stand; an expected one averages over all orders (McSherry and
Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR
2008; here extended to a cut at K inside a group). Each rule needs only sums of (alpha + beta i) / (s + i).
"""

from __future__ import annotations

import torch

from .ties import TieRule

DENOMINATORS = ("retrieved", "relevant", "min")

# Below this the harmonic numbers come from a table, above it from their asymptotic series.
_TABLE = 64


def harmonic_span(s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """sum over i = 1..w of 1 / (s + i), for float64 tensors of integers s, w >= 0.

    A difference of harmonic numbers would lose digits where w is small beside s; the logarithm of the ratio
    does not: H(x) = gamma + log y + 1/(24 y^2) - 7/(960 y^4) + 31/(8064 y^6) - ..., y = x + 1/2.
    """
    table = torch.arange(_TABLE + 1, dtype=torch.float64)
    table[1:] = table[1:].reciprocal().cumsum(0)
    low, high = s.clamp(max=_TABLE).long(), (s + w).clamp(max=_TABLE).long()
    start = s.clamp(min=_TABLE)
    width = (s + w).clamp(min=_TABLE) - start
    a, b = (start + 0.5) ** -2, (start + width + 0.5) ** -2

    def tail(z: torch.Tensor) -> torch.Tensor:
        return z * (1 / 24 - z * (7 / 960 - z * (31 / 8064)))

    return (table[high] - table[low]) + (torch.log1p(width / (start + 0.5)) + (tail(b) - tail(a)))


def _ratio_sum(alpha, beta, s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """sum over i = 1..w of (alpha + beta i) / (s + i)."""
    return beta * w + (alpha - beta * s) * harmonic_span(s, w)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b.clamp(min=1), 0.0)


def _uniform(s, h, t, c, w) -> torch.Tensor:
    """Expected sum of precision at the relevant items among the first w of a group in random order.

    Place i holds a relevant item with probability t / c, and then expects (i - 1)(t - 1) / (c - 1) before it.
    """
    slope = torch.where(c > 1, (t - 1) / (c - 1).clamp(min=1), 0.0)
    return _ratio(t, c) * _ratio_sum(h + 1 - slope, slope, s, w)


def average_precision(histogram: torch.Tensor, cutoff: int, rule: TieRule, denominator: str) -> torch.Tensor:
    """AP@K of each query under a tie rule.

    Args:
        histogram: (Q, b + 1, 2) int32, [q, d, 1] the relevant and [q, d, 0] the other items at distance d.
        cutoff: K, at least 1.
        rule: one with `places`.
        denominator: "retrieved", the relevant items found in the first K; "relevant", all of them; "min", the
            smaller of K and all of them.

    Returns:
        (Q,) float64; 0 for a query whose denominator is 0.
    """
    s, h, t, c = _groups(histogram)
    start, places = rule.places(s, t, c)
    taken = torch.minimum((cutoff - start).clamp(min=0), places)
    if rule.expected:
        sums = _uniform(start, h, t, places, taken)
        if denominator == "retrieved":
            return _expected_over_retrieved(start, h, t, places, taken, sums)
    else:
        sums = _ratio_sum(h, 1.0, start, taken)
    total = t.sum(1)
    divisor = {"retrieved": taken.sum(1), "relevant": total, "min": total.clamp(max=cutoff)}[denominator]
    return _ratio(sums.sum(1), divisor)


def _groups(histogram: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(s, h, t, c) of every group, (Q, b + 1) float64: items and relevant items before, relevant, items."""
    t = histogram[..., 1].double()
    c = histogram.sum(-1).double()
    return c.cumsum(1) - c, t.cumsum(1) - t, t, c


def _expected_over_retrieved(s, h, t, c, taken, sums) -> torch.Tensor:
    """E[precision sum / relevant items retrieved], where the cut may fall inside a group.

    The groups before the cut one are independent of it and retrieve a fixed number H. In the cut group the
    number x of relevant items among the w taken is hypergeometric, and given x they stand in uniformly random
    order: E = sum over x of P(x) (E[sum before] + E[sum in the cut group | x]) / (H + x).
    """
    cut = (taken > 0) & (taken < c)
    before = torch.where(cut, 0.0, sums).sum(1)
    retrieved = torch.where((taken > 0) & ~cut, t, 0.0).sum(1)
    result = _ratio(before, retrieved)
    row, group = cut.nonzero(as_tuple=True)  # at most one group a row
    if len(row) == 0:
        return result
    s, t, c, w = (v[row, group, None] for v in (s, t, c, taken))
    before, h = before[row, None], retrieved[row, None]
    least = (w - (c - t)).clamp(min=0)
    most = torch.minimum(w, t)
    x = least + torch.arange(int((most - least).max()) + 1, dtype=torch.float64)
    # P(x + 1) / P(x), from the counts of arrangements; log-sums stay accurate where factorials would not.
    step = (t - x) * (w - x) / ((x + 1) * (c - t - w + x + 1))
    logits = torch.where(x[:, :-1] < most, step[:, :-1], 1.0).log().cumsum(1)
    logits = torch.cat([torch.zeros_like(least), logits], dim=1)
    chance = torch.where(x <= most, logits, -torch.inf).softmax(1)
    value = _ratio(before + _uniform(s, h, x, w, w), h + x)
    result[row] = (chance * torch.where(x <= most, value, 0.0)).sum(1)
    return result


def rank_density(histogram: torch.Tensor, rule: TieRule) -> tuple[torch.Tensor, torch.Tensor]:
    """How many queries have a relevant item at each rank by a tie rule (a mean number for an expected one).

    Args:
        histogram: (Q, b + 1, 2) int32, as for `average_precision`; every query has the same n items.
        rule: one with `places`.

    Returns:
        (hits, recall): (n,) float64, rank r in entry r - 1; in `recall` a query weighs 1 / (its relevant items).
    """
    n = int(histogram[0].sum())
    s, _, t, c = _groups(histogram)
    start, places = rule.places(s, t, c)
    density = _ratio(t, places)
    results = []
    for weight in (density, density * _ratio(torch.ones(()), t.sum(1, keepdim=True))):
        steps = torch.zeros(n + 1, dtype=torch.float64)
        steps.index_add_(0, start.long().flatten(), weight.flatten())
        steps.index_add_(0, (start + places).long().flatten(), -weight.flatten())
        results.append(steps.cumsum(0)[:n])
    return tuple(results)


def discounts(count: int) -> torch.Tensor:
    """1 / log2(rank + 1) of the ranks 1 to `count`, float64."""
    return torch.log2(torch.arange(2, count + 2, dtype=torch.float64)).reciprocal_()


def discounted_gain(histogram: torch.Tensor, end: int, rule: TieRule) -> torch.Tensor:
    """DCG of the first `end` ranks, (Q,) float64: the sum of 1 / log2(rank + 1) over those with a relevant item.

    Under an expected rule its exact mean: each of a group's places holds a relevant item with the same chance.

    Args:
        histogram: (Q, b + 1, 2), as for `average_precision`.
        end: at least 1.
        rule: one with `places`.
    """
    s, _, t, c = _groups(histogram)
    start, places = rule.places(s, t, c)
    sums = torch.nn.functional.pad(discounts(end).cumsum(0), (1, 0))
    first, last = (rank.clamp(max=end).long() for rank in (start, start + places))
    return (_ratio(t, places) * (sums[last] - sums[first])).sum(1)


def normalized_gain(gain: torch.Tensor, relevant: torch.Tensor, end: int) -> torch.Tensor:
    """NDCG, at most 1: the gain over that of a ranking whose relevant items come first; 0 where there are none."""
    best = torch.nn.functional.pad(discounts(end).cumsum(0), (1, 0))[relevant.clamp(max=end)]
    return _ratio(gain, best).clamp_(max=1)
