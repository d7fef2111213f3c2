"""Exact search by buckets of prefixes is the flat search to the last id, whatever the codes and the engine."""

import numpy as np
import oracle
import pytest
import torch
from native_cases import AVAILABLE, DETAIL, brute_topk, each_isa, levels, one_and_two_threads  # noqa: F401

import nhl_fast as nhl
from nhl_fast import native
from nhl_fast.core import backend as backends

needs_native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


def clustered(n, num_bytes, seed, centers=30, flips=0.1, start=0):
    """Codes around few centres: supervised codes."""
    generator = np.random.default_rng(seed)
    points = np.random.default_rng(start).integers(0, 2, (centers, 8 * num_bytes), dtype=np.uint8)
    noise = generator.random((n, 8 * num_bytes)) < flips
    return np.packbits(points[generator.integers(0, centers, n)] ^ noise, axis=1)


def equal(found, right):
    return all(map(torch.equal, found, right))


KINDS = {
    "clustered": {},
    "collapsed": {"centers": 5, "flips": 0.0},  # ties by the thousand, which ids decide
    "nearly collapsed": {"centers": 3, "flips": 0.01},
    "random": {"centers": 4, "flips": 0.5},
}


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bytes", [2, 3, 8, 13, 16, 32])
def test_the_flat_search_to_the_last_id(isa, threads, kind, num_bytes):
    codes, queries = (clustered(n, num_bytes, seed, **KINDS[kind]) for n, seed in ((9000, 1), (3, 2)))
    buckets = nhl.PrefixBuckets(codes)
    assert buckets.nbytes > codes.nbytes
    queries[2] = codes[8000]
    for length in (None, 8 * num_bytes - 3, 7):
        for k in (1, 10, 35):
            right = nhl.search(queries, codes, k, length)
            assert equal(buckets.search(queries, k, length), right)
            for query, *row in zip(queries, *right):
                assert equal(buckets.search(query, k, length), row)


@needs_native
@pytest.mark.parametrize("prefix", [0, 1, 5, 8, 9, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_against_brute_force(isa, threads, prefix, kind):
    """Few items, many empty buckets, any k: what `PrefixBuckets` leaves to the scan, too."""
    for n in (1, 63, 64, 300):
        codes, queries = (clustered(m, 2, seed, **KINDS[kind]) for m, seed in ((n, 1), (5, 2)))
        first = (codes[:, 0].astype(int) << 8 | codes[:, 1]) >> (16 - prefix)
        ids = np.argsort(first, kind="stable")
        rows = np.full((n + 64, 4), 255, np.uint8)
        rows[:n, :2] = codes[ids]
        starts = np.concatenate([[0], np.bincount(first, minlength=1 << prefix).cumsum()])
        parts = [torch.from_numpy(part) for part in (rows, ids.astype(np.int32), starts)]
        for length in {max(1, prefix), 13, 16}:
            distances = oracle.distances(queries, codes, length)
            for k in (1, 7, n, n + 3):
                right = brute_topk(distances, k)
                found = native.topk_buckets(torch.from_numpy(queries), *parts, k, length)
                assert np.array_equal(found[0].numpy(), right[0])
                assert np.array_equal(found[1].numpy(), right[1])


@needs_native
def test_levels_that_are_shared_among_threads(threads):
    """Items enough in one level, and in a sweep, for threads of their own."""
    for options in ({"centers": 2, "flips": 0.003}, {"centers": 4000, "flips": 0.5}):
        codes, queries = (clustered(n, 8, seed, **options) for n, seed in ((300_000, 1), (4, 2)))
        buckets = nhl.PrefixBuckets(codes)
        for k in (1, 10, 900):
            for query in queries:
                assert equal(buckets.search(query, k), nhl.search(query, codes, k))


def test_what_the_scan_does_better():
    codes = clustered(9000, 8, 1)
    buckets, many, one = nhl.PrefixBuckets(codes), clustered(40, 8, 2), clustered(1, 8, 3)[0]
    for query, k, length in ((many, 10, None), (one, 200, None), (one, 10, 2), (many[:0], 10, None)):
        assert equal(buckets.search(query, k, length), nhl.search(query, codes, k, length))
    long = clustered(3000, 40, 1)
    assert nhl.PrefixBuckets(long).nbytes == 0
    assert equal(nhl.PrefixBuckets(long).search(long[7], 3), nhl.search(long[7], long, 3))
    few = nhl.PrefixBuckets(codes[:100])
    assert few.nbytes == 0
    assert equal(few.search(one, 120, beyond="pad"), nhl.search(one, codes[:100], 120, beyond="pad"))
    assert isinstance(buckets.search(one, 3, output="numpy")[0], np.ndarray)


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: False)
    codes = clustered(3000, 3, 1)
    buckets = nhl.PrefixBuckets(codes)
    assert (len(buckets), buckets.nbytes) == (3000, 0)
    assert buckets.visited(codes[:3], 5) == 1.0
    assert equal(buckets.search(codes[3], 5), nhl.search(codes[3], codes, 5))


@needs_native
def test_visited_is_the_share_of_the_buckets_that_the_bound_leaves():
    codes, queries = clustered(9000, 4, 1), clustered(6, 4, 2)
    buckets = nhl.PrefixBuckets(codes)
    bits = 4  # 9,000 items in buckets of 1,024
    furthest = nhl.search(queries, codes, 10)[0][:, -1].numpy()
    right = np.mean([(oracle.distances(q[None], codes, bits)[0] <= d).mean() for q, d in zip(queries, furthest)])
    assert buckets.visited(queries, 10) == pytest.approx(right, rel=1e-12)
    assert buckets.visited(queries, 10, length=2) == 1.0


@needs_native
def test_what_the_operator_cannot_read_is_refused():
    q = torch.zeros(1, 4, dtype=torch.uint8)
    rows, ids, starts = torch.zeros(74, 4, dtype=torch.uint8), torch.arange(10).int(), torch.tensor([0, 4, 10])
    good = [q, rows, ids, starts, 3, 8]
    assert native.topk_buckets(*good)[0].tolist() == [[0, 0, 0]]
    for place, value in (
        (1, rows[:73]), (1, torch.zeros(74, 5, dtype=torch.uint8)), (2, ids.long()), (3, starts.int()),
        (3, torch.tensor([0, 4, 9])), (3, torch.tensor([1, 4, 10])), (3, torch.tensor([0, 11, 10])),
        (3, torch.tensor([0, 1, 4, 10])), (4, -1), (5, 0), (5, 33), (0, q.float()),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            native.topk_buckets(*good[:place], value, *good[place + 1 :])


def test_bad_input():
    codes = clustered(2000, 4, 1)
    with pytest.raises(TypeError, match="database: expected packed uint8"):
        nhl.PrefixBuckets(codes.astype(np.int32))
    buckets = nhl.PrefixBuckets(codes)
    for arguments, message in (
        ((codes[:2, :2], 3), "database: expected rows of 2 bytes"),
        ((codes[0], 0), "k: expected an integer of at least 1"),
        ((codes[0], 2001), "k: expected at most n = 2000"),
        ((codes[0], 3, 33), "length: expected at most 32"),
    ):
        with pytest.raises(ValueError, match=message):
            buckets.search(*arguments)
    with pytest.raises(ValueError, match="output: expected one of"):
        buckets.search(codes[0], 3, output="list")
    with pytest.raises(ValueError, match="k: expected an integer of at most 2000"):
        buckets.visited(codes[:1], 2001)
    with pytest.raises(ValueError, match="queries: expected at least one row"):
        buckets.visited(codes[:0], 2)
