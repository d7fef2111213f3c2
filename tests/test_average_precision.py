"""Average precision under every tie rule against exact enumeration."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import CLOSE, DENOMINATORS, every_backend, expected_ap, problems

from nhl_fast.retrieval import tie_groups
from nhl_fast.retrieval.codes import pack_codes
from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.retrieval.ties import RULES, TieRule


@every_backend
@settings(max_examples=150, deadline=None)
@given(
    problems(14),
    st.sampled_from(["id", "best", "worst"]),
    st.sampled_from(DENOMINATORS),
    st.none() | st.integers(1, 17),
    st.sampled_from([1, 700, 2**28]),
)
def test_average_precision_of_fixed_orders(backend, case, ties, denominator, topk, chunk_bytes):
    data, lengths = case
    result = evaluate_retrieval(
        *data, lengths, topk, ties, denominator=denominator, chunk_bytes=chunk_bytes, backend=backend
    )
    assert result.average_precision.dtype == torch.float64
    assert result.average_precision.shape == (len(lengths), len(data[0]))
    cutoff = len(data[1]) if topk is None else topk
    for j, b in enumerate(lengths):
        ours = result.average_precision[j].tolist()
        assert ours == pytest.approx(expected_ap(data, b, cutoff, ties, denominator), **CLOSE)
        assert result.mean_average_precision[b] == pytest.approx(sum(ours) / len(ours), **CLOSE)


@every_backend
@settings(max_examples=100, deadline=None)
@given(problems(6), st.sampled_from(DENOMINATORS), st.none() | st.integers(1, 8))
def test_expected_average_precision_by_enumeration(backend, case, denominator, topk):
    data, lengths = case
    result = evaluate_retrieval(*data, lengths, topk, "expected", denominator=denominator, backend=backend)
    cutoff = len(data[1]) if topk is None else topk
    for j, b in enumerate(lengths):
        ours = result.average_precision[j].tolist()
        assert ours == pytest.approx(expected_ap(data, b, cutoff, "expected", denominator), **CLOSE)


def middle(s, t, c):
    return s + (c - t).div(2, rounding_mode="floor"), t


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(14), st.sampled_from(DENOMINATORS), st.none() | st.integers(1, 17))
def test_a_new_rule_is_its_row(backend, case, denominator, topk):
    """A rule that puts the relevant items into the middle of their group, against the same order written out."""
    data, lengths = case
    RULES["middle"] = TieRule("middle", "relevant items in the middle", middle)
    try:
        result = evaluate_retrieval(*data, lengths, topk, "middle", denominator=denominator, backend=backend)
        curves = [result.pr_curve(b)[0] for b in lengths]
    finally:
        del RULES["middle"]
    cutoff = len(data[1]) if topk is None else topk
    for j, b in enumerate(lengths):
        orders = [in_the_middle(*row) for row in zip(oracle.distances(*data[:2], b), oracle.relevance(*data[2:]))]
        exact = [float(oracle.average_precision(order, cutoff=cutoff, denominator=denominator)) for order in orders]
        assert result.average_precision[j].tolist() == pytest.approx(exact, **CLOSE)
        precision = np.cumsum(orders, 1).mean(0) / np.arange(1, len(data[1]) + 1)
        assert curves[j] == pytest.approx(precision, **CLOSE)


def in_the_middle(distances, relevant):
    """Relevance along the ranking whose tie groups have their relevant items in the middle."""
    order = []
    for distance in sorted(set(distances)):
        group = [bool(r) for d, r in zip(distances, relevant) if d == distance]
        before = (len(group) - sum(group)) // 2
        order += [False] * before + [True] * sum(group) + [False] * (len(group) - sum(group) - before)
    return order


def histogram_of(groups):
    """(1, len(groups), 2) int32 histogram of groups (items, relevant)."""
    return torch.tensor([[(items - relevant, relevant) for items, relevant in groups]], dtype=torch.int32)


groups_strategy = st.lists(
    st.integers(0, 14).flatmap(lambda items: st.tuples(st.just(items), st.integers(0, items))),
    min_size=1,
    max_size=4,
).filter(lambda groups: any(items for items, _ in groups))


@settings(max_examples=100, deadline=None)
@given(groups_strategy, st.integers(1, 60), st.sampled_from(DENOMINATORS))
def test_expected_average_precision_of_larger_groups(groups, cutoff, denominator):
    # The walk over ranks agrees with enumeration (below), and reaches groups that cannot be enumerated.
    cutoff = min(cutoff, sum(items for items, _ in groups))
    expected = float(oracle.expected_average_precision(groups, cutoff, denominator))
    ours = tie_groups.average_precision(histogram_of(groups), cutoff, RULES["expected"], denominator)
    assert ours.tolist() == pytest.approx([expected], **CLOSE)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), st.integers(1, 6))
def test_the_oracles_agree(items, cutoff):
    row, relevant = [d for d, _ in items], [r for _, r in items]
    groups = [(row.count(d), sum(r for e, r in items if e == d)) for d in range(4)]
    for denominator in DENOMINATORS:
        measure = partial(oracle.average_precision, cutoff=cutoff, denominator=denominator)
        by_orders = oracle.over_orders(row, relevant, "expected", measure)
        assert oracle.expected_average_precision(groups, cutoff, denominator) == by_orders


def test_hand_worked():
    # Distances 0 1 1 2 with relevance 0 1 0 1: the tied pair is (1, 0) by id.
    q, d = pack_codes(np.zeros((1, 2), bool)), pack_codes(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool))
    data = (q, d, np.array([7]), np.array([0, 7, 0, 7]))
    worked = {
        "id": (Fraction(1, 2) + Fraction(1, 2)) / 2,
        "best": (Fraction(1, 2) + Fraction(1, 2)) / 2,
        "worst": (Fraction(1, 3) + Fraction(1, 2)) / 2,
        "expected": (Fraction(5, 12) + Fraction(1, 2)) / 2,
    }
    for ties, value in worked.items():
        result = evaluate_retrieval(*data, lengths=(2,), ties=ties)
        assert result.mean_average_precision[2] == pytest.approx(float(value), **CLOSE)
    # Cut at 2, inside the tie: half of the orders find one relevant item at rank 2, the others none.
    for denominator, value in {"retrieved": 1 / 4, "relevant": 1 / 8, "min": 1 / 8}.items():
        result = evaluate_retrieval(*data, lengths=(2,), topk=2, ties="expected", denominator=denominator)
        assert result.mean_average_precision[2] == pytest.approx(value, **CLOSE)


def test_expected_with_huge_groups():
    # One group of n items, t relevant: a long sum with a closed form to compare in exact arithmetic.
    n, t, cutoff = 20_000, 2_000, 1_000
    slope = Fraction(t - 1, n - 1)
    total = math.fsum(float((1 + (i - 1) * slope) / i) for i in range(1, cutoff + 1)) * t / n
    histogram = histogram_of([(0, 0), (n, t), (0, 0)])
    for denominator, divisor in (("relevant", t), ("min", cutoff)):
        ours = tie_groups.average_precision(histogram, cutoff, RULES["expected"], denominator)
        assert ours.item() == pytest.approx(total / divisor, rel=1e-12)
    # Over the items retrieved: summed over the hypergeometric law in exact integers.
    ways = [math.comb(t, x) * math.comb(n - t, cutoff - x) for x in range(cutoff + 1)]
    whole = math.comb(n, cutoff)
    harmonic = math.fsum(1 / i for i in range(1, cutoff + 1))
    value = 0.0
    for x in range(1, cutoff + 1):
        rho = (x - 1) / (cutoff - 1)
        value += float(Fraction(ways[x], whole)) * (rho * cutoff + (1 - rho) * harmonic) / cutoff
    ours = tie_groups.average_precision(histogram, cutoff, RULES["expected"], "retrieved")
    assert ours.item() == pytest.approx(value, rel=1e-11)


@settings(deadline=None)
@given(st.integers(0, 10**7), st.integers(0, 300))
def test_harmonic_span(s, w):
    ours = tie_groups.harmonic_span(*torch.tensor([[s], [w]], dtype=torch.float64)).item()
    assert ours == pytest.approx(math.fsum(1 / (s + i) for i in range(1, w + 1)), rel=1e-13, abs=0)
