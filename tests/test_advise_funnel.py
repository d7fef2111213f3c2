"""Stages proposed for a wanted recall: what they promise holds on the sample, and what misses it is left out."""

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.index.funnel import advise


def clustered(n, bits, seed, flips=0.1, centers=40):
    """Packed codes around few centres: what codes learned from labels look like."""
    generator = np.random.default_rng(seed)
    points = np.random.default_rng(0).integers(0, 2, (centers, bits), dtype=np.uint8)
    return np.packbits(points[generator.integers(0, centers, n)] ^ (generator.random((n, bits)) < flips), axis=1)


CODES, QUERIES = clustered(3000, 128, 1), clustered(60, 128, 2)


@pytest.fixture
def free(monkeypatch):
    """Every funnel takes as long as its first prefix has bits, the exact search as long as any."""
    seconds = {}

    def measured(index, queries, k, funnels):
        seconds.update({funnel: float(funnel[0][0]) if funnel else 1e6 for funnel in funnels})
        return seconds

    monkeypatch.setattr(advise, "_seconds", measured)


def as_near(queries, codes, k, funnel):
    furthest = nhl.search(queries, codes, k)[0][:, -1:]
    return float((nhl.search(queries, codes, k, funnel=funnel)[0] <= furthest).double().mean())


@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
def test_every_funnel_has_the_recall_on_queries_it_was_not_chosen_with(recall, free):
    found = nhl.advise_funnel(CODES, recall, 10, queries=QUERIES)
    assert len(found) > 1
    for advice in found[:-1]:
        assert advice.recall == pytest.approx(as_near(QUERIES[1::2], CODES, 10, advice.funnel), abs=1e-12)
        assert advice.recall >= recall
        assert all(count >= 10 for _, count in advice.funnel)
    assert {len(advice.funnel) for advice in found} >= {0, 1}


def test_the_fastest_comes_first_and_the_exact_search_last(free):
    found = nhl.advise_funnel(CODES, 0.9, 10, queries=QUERIES)
    assert [a.seconds for a in found] == sorted(a.seconds for a in found)
    assert (found[-1].funnel, found[-1].recall, found[-1].speedup) == ((), 1.0, 1.0)
    assert [a.speedup for a in found] == pytest.approx([1e6 / a.seconds for a in found])


def test_a_higher_recall_needs_no_fewer_candidates(free):
    def least(recall):
        found = nhl.advise_funnel(CODES, recall, 10, queries=QUERIES)
        counts = {}
        for funnel in (a.funnel for a in found if len(a.funnel) == 1):
            counts.setdefault(funnel[0][0], funnel[0][1])
        return counts

    low, high = least(0.6), least(0.95)
    assert low.keys() >= high.keys()
    assert high
    assert all(low[bits] <= count for bits, count in high.items())


def test_candidates_and_times_are_scaled_up_to_the_items(free):
    here = nhl.advise_funnel(CODES, 0.9, 10, queries=QUERIES)
    large = nhl.advise_funnel(CODES, 0.9, 10, queries=QUERIES, items=30_000)
    assert [a.funnel for a in large] == [tuple((b, 10 * c) for b, c in a.funnel) for a in here]
    assert [a.seconds for a in large] == pytest.approx([10 * a.seconds for a in here])


def test_a_sample_of_the_codes_is_enough(free):
    found = nhl.advise_funnel(torch.from_numpy(CODES), 0.9, 5, sample=1000, num_queries=50, seed=3)
    again = nhl.advise_funnel(CODES, 0.9, 5, sample=1000, num_queries=50, seed=3)
    assert found == again
    fresh = clustered(200, 128, 9)
    assert len(found) > 1
    for advice in found[:-1]:
        assert as_near(fresh, CODES, 5, advice.funnel) >= 0.85  # 200 queries: the share is known to about 0.02


def test_no_funnel_where_short_prefixes_say_nothing():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (2000, 4), dtype=np.uint8)
    found = nhl.advise_funnel(codes, 0.99, 10, num_queries=40)
    assert [a.funnel for a in found] == [()]


def test_times_are_measured():
    found = nhl.advise_funnel(CODES, 0.9, 10, queries=QUERIES)
    assert found[-1].funnel == ()
    assert all(0 < a.seconds <= found[-1].seconds for a in found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codes": CODES.astype(np.int32)}, "codes: expected packed uint8"),
        ({"recall": 0}, "recall: expected a finite number above 0"),
        ({"recall": 1}, "recall: expected less than 1"),
        ({"recall": "0.9"}, "recall: expected a number"),
        ({"k": 0}, "k: expected an integer of at least 1"),
        ({"k": 3001}, "k: expected at most 3000"),
        ({"k": 2901, "queries": None, "num_queries": 100}, "k: expected at most 2900"),
        ({"queries": QUERIES[:1]}, "queries: expected rows of shape"),
        ({"queries": QUERIES[:, :8]}, "queries: expected rows of shape"),
        ({"items": 2999}, "items: expected an integer of at least 3000"),
        ({"num_queries": 1}, "num_queries: expected an integer of at least 2"),
        ({"sample": 0}, "sample: expected an integer of at least 1"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
    ],
)
def test_bad_input(changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nhl.advise_funnel(**{"codes": CODES, "queries": QUERIES, **changed})
