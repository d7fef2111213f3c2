"""Few queries, whose database rows are read as they lie, and large k, whose limit is guessed: both bit for bit."""

import numpy as np
import oracle
import pytest
import torch
from native_cases import (  # noqa: F401
    AVAILABLE,
    DETAIL,
    assert_topk,
    brute_topk,
    each_isa,
    make_rows,
    one_and_two_threads,
)

from nhl_fast import native

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

IN_PLACE = (4, 8, 16, 32)  # bytes from row to row


def rows_at(rows, stride, offset=0):
    """The same rows, `stride` bytes apart in memory that ends with the last one's last byte, 0xff between them."""
    n, width = rows.shape
    memory = torch.full((offset + (n - 1) * stride + width,), 255, dtype=torch.uint8)
    view = memory[offset:].as_strided((n, width), (stride, 1))
    view.copy_(torch.from_numpy(rows))
    return view


def same(found, expected):
    assert np.array_equal(found[0].numpy(), expected[0])
    assert np.array_equal(found[1].numpy(), expected[1])


@pytest.mark.parametrize("num_bytes", IN_PLACE)
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 129, 300, 4097])
def test_sizes_around_a_vector(isa, threads, n, num_bytes):
    database = make_rows(n, num_bytes, "ties")
    for num_queries in (1, 2, 3, 4, 5):
        queries = make_rows(num_queries, num_bytes, seed=3)
        queries[0] = database[-1]
        for k in sorted({1, min(10, n), n, n + 3}):
            assert_topk(queries, database, k, 8 * num_bytes)


@pytest.mark.parametrize("stride", IN_PLACE)
@pytest.mark.parametrize(("num_queries", "n"), [(1, 320), (1, 321), (3, 383), (4, 320)])
def test_every_prefix_of_every_stride(isa, stride, num_queries, n):
    queries, database = make_rows(num_queries, stride, seed=3), make_rows(n, stride)
    rows, whole = rows_at(database, stride, offset=3), torch.from_numpy(queries)
    for length in {1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200, 255, 256} & set(
        range(8 * stride + 1)
    ):
        expected = brute_topk(oracle.distances(queries, database, length), 40)
        used = (length + 7) // 8
        same(native.topk(whole, rows, 40, length), expected)
        same(native.topk(whole[:, :used], rows[:, :used], 40, length), expected)
        # Here memory ends with the last row's last byte.
        same(native.topk(whole[:, :used], rows_at(database[:, :used], stride), 40, length), expected)


@pytest.mark.parametrize("num_queries", [1, 2, 3])
def test_rows_that_overlap_or_repeat(isa, num_queries):
    memory = torch.from_numpy(make_rows(1, 2000)[0])
    queries = make_rows(num_queries, 16, seed=3)
    for stride in (0, 1, 4, 8, 16, 17, 24, 32, 40):
        database = memory.as_strided((45, 16), (stride, 1))
        for length in (32, 100, 128):
            expected = brute_topk(oracle.distances(queries, database.numpy(), length), 45)
            same(native.topk(torch.from_numpy(queries), database, 45, length), expected)


@pytest.mark.parametrize("num_bytes", IN_PLACE)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_filter_and_base(isa, threads, num_bytes, share):
    for n in (64, 1000, 4500):
        database = make_rows(n, num_bytes, "ties")
        allow = np.random.default_rng(n).random(n) < share
        for num_queries in (1, 2, 4):
            for k in (1, 20, n):
                queries = make_rows(num_queries, num_bytes, seed=3)
                assert_topk(queries, database, k, 8 * num_bytes - 3, allow, base=2**40)


@pytest.mark.parametrize("num_queries", [0, 1, 3])
def test_nothing_to_find(isa, num_queries):
    queries, database = torch.from_numpy(make_rows(num_queries, 16, seed=3)), torch.from_numpy(make_rows(100, 16))
    for n, k in ((0, 0), (0, 5), (100, 0)):
        distances, ids = native.topk(queries, database[:n], k, 128)
        assert distances.shape == ids.shape == (num_queries, k)
        assert (distances == -1).all()
        assert (ids == -1).all()
    offsets, distances, ids = native.radius(queries, database[:0], 128, 128)
    assert offsets.tolist() == [0] * (num_queries + 1)
    assert len(distances) == len(ids) == 0


@pytest.mark.parametrize("stride", IN_PLACE)
@pytest.mark.parametrize("num_queries", [1, 2, 4])
def test_radius(isa, threads, stride, num_queries):
    queries, database = make_rows(num_queries, stride, seed=3), make_rows(2001, stride, "ties")
    length = 8 * stride - 5
    distances = oracle.distances(queries, database, length)
    allow = np.random.default_rng(0).random(2001) < 0.5
    for mask in (None, allow):
        for radius in (0, length // 3, length // 2, length):
            asked = None if mask is None else torch.from_numpy(mask)
            offsets, found, ids = native.radius(
                torch.from_numpy(queries), torch.from_numpy(database), radius, length, asked
            )
            for q, row in enumerate(distances):
                expected = np.argsort(row, kind="stable")
                expected = expected[(row[expected] <= radius) & (True if mask is None else mask[expected])]
                own = slice(int(offsets[q]), int(offsets[q + 1]))
                assert np.array_equal(ids[own].numpy(), expected)
                assert np.array_equal(found[own].numpy(), row[expected])


@pytest.mark.parametrize("num_queries", [1, 2])
def test_one_query_in_several_runs(isa, threads, num_queries):
    # Beyond half a megabyte of rows a thread, a query's items are shared out.
    queries, database = make_rows(num_queries, 32, seed=3), make_rows(70_001, 32)
    database[::7] = database[0]
    expected = oracle.distances(queries, database, 250)
    for k in (1, 10, 255, 256, 11_000):
        found = native.topk(torch.from_numpy(queries), torch.from_numpy(database), k, 250)
        same(found, brute_topk(expected, k))


class TestGuessedLimit:
    """From 256 neighbours of 65,536 items on, the first limit is a guess from 64 pieces of 64 items."""

    n, k = 100_000, 5000

    def check(self, queries, database, k=None, allow=None):
        k = k or self.k
        asked = None if allow is None else torch.from_numpy(allow)
        found = native.topk(torch.from_numpy(queries), torch.from_numpy(database), k, 8 * database.shape[1], asked)
        for q in range(len(queries)):
            expected = brute_topk(oracle.distances(queries[q : q + 1], database, 8 * database.shape[1]), k, allow)
            assert np.array_equal(found[0][q].numpy(), expected[0, 0])
            assert np.array_equal(found[1][q].numpy(), expected[1, 0])

    def sampled(self):
        """Which items the guess looks at."""
        step = self.n // 64
        return np.concatenate([np.arange(64) + i * step for i in range(64)])

    @pytest.mark.parametrize("kind", ["random", "ties", "equal", "sorted"])
    def test_random_and_sorted(self, isa, threads, kind):
        database = make_rows(self.n, 4, kind)
        for num_queries in (1, 5):
            queries = make_rows(num_queries, 4, seed=3)
            queries[0] = 0
            for k in (256, 1000, 6250):
                self.check(queries, database, k)

    @pytest.mark.parametrize("num_queries", [1, 6])
    def test_a_guess_that_misses(self, isa, threads, num_queries):
        # The sample is all that lies near the first query: it promises 100,000 such items, and there are 4,096.
        queries, database = make_rows(num_queries, 8, seed=3), make_rows(self.n, 8)
        for i in {0, num_queries // 2, num_queries - 1}:
            queries[i] = queries[0]
            queries[i, 7] ^= i
        database[self.sampled()] = queries[0]
        self.check(queries, database)

    def test_a_filter_that_leaves_less_than_k(self, isa, threads):
        queries, database = make_rows(2, 8, seed=3), make_rows(self.n, 8)
        for left in (0, 1, 300, 4999):
            allow = np.zeros(self.n, dtype=bool)
            allow[np.random.default_rng(left).permutation(self.n)[:left]] = True
            self.check(queries, database, allow=allow)
        allow = np.zeros(self.n, dtype=bool)
        allow[self.sampled()] = True
        self.check(queries, database, allow=allow)
