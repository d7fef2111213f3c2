"""Evaluation by bit-sliced counting: sizes around a block, lengths around a plane, labels few and many, chunks."""

import numpy as np
import oracle
import pytest
import torch
from native_cases import AVAILABLE, DETAIL, each_isa, levels, make_rows, one_and_two_threads  # noqa: F401

from nhl_fast import native
from nhl_fast.retrieval import ranking

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

NESTED = (5, 12, 48, 100, 1024)
# The chance that a query, and an item, has class 0 (else 1), and what that makes of the relevant items.
SHARES = {"half": (0.5, 0.5), "most": (1.0, 0.9), "few": (1.0, 0.02), "all": (1.0, 1.0), "none": (1.0, 0.0)}


def draw_labels(num_queries, n, share, seed=0):
    generator = np.random.default_rng(seed)
    return [torch.from_numpy((generator.random(m) >= p).astype(np.int64)) for m, p in zip((num_queries, n), share)]


def check(queries, database, labels, lengths, cutoff):
    """Against the reference; returns the native result."""
    arguments = (torch.from_numpy(queries), torch.from_numpy(database), *labels, lengths)
    histograms, sums = ranking.collect(*arguments, cutoff, 2**28)
    found, precision, retrieved, hits, recall = native.evaluate(*arguments, cutoff)
    for a, b, c in zip(found, histograms, native.histograms(*arguments)):
        assert torch.equal(a, b)
        assert torch.equal(c, b)
    assert torch.equal(retrieved, sums.retrieved)
    assert torch.equal(hits, sums.hits)
    torch.testing.assert_close(precision, sums.precision, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(recall, sums.recall, rtol=1e-12, atol=1e-13)
    return precision, retrieved, hits, recall


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1025])
@pytest.mark.parametrize("share", SHARES)
def test_sizes_around_a_block(isa, n, share):
    queries, database = make_rows(6, 128, seed=3), make_rows(n, 128, "ties")
    queries[0], queries[1] = database[-1], ~database[0]
    labels = draw_labels(6, n, SHARES[share])
    for cutoff in {1, max(1, n // 3), n}:
        check(queries, database, labels, NESTED, cutoff)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 15, 16, 17, 24, 25, 56, 57, 64, 65, 255, 256, 257, 2047, 2048])
def test_lengths_around_a_plane(isa, length):
    num_bytes = (length + 7) // 8
    queries, database = make_rows(70, num_bytes, seed=3), make_rows(300, num_bytes)
    queries[0], queries[1] = database[7], ~database[7]
    lengths = sorted({max(1, length // 2), length})
    check(queries, database, draw_labels(70, 300, SHARES["half"]), lengths, 100)
    check(queries[:2], database, draw_labels(2, 300, SHARES["most"]), lengths, 300)


@pytest.mark.parametrize("kind", ["equal", "opposite"])
def test_all_items_at_one_distance(isa, kind):
    database = make_rows(1300, 256, "equal")
    queries = database[:5].copy() if kind == "equal" else ~database[:5]
    for share in ("half", "most"):
        check(queries, database, draw_labels(5, 1300, SHARES[share]), (1, 255, 256, 1023, 1024, 2047, 2048), 900)


def test_ranks_beyond_a_table_of_bytes(isa):
    n = 262_144 + 777
    queries, database = make_rows(3, 2, seed=3), make_rows(n, 2, "ties")
    check(queries, database, draw_labels(3, n, (1.0, 0.7)), (7, 16), 5000)


def test_batches_of_queries(isa):
    generator = np.random.default_rng(0)
    queries, database = make_rows(16_500, 2, seed=3), make_rows(65, 2)
    labels = [torch.from_numpy(generator.integers(0, 40, m)) for m in (16_500, 65)]
    check(queries, database, labels, (12,), 65)


@pytest.mark.parametrize("share", ["half", "most"])
def test_chunks_of_items_that_many_lengths_make(isa, threads, share):
    # Records of 104 lengths allow 161,319 items at once; one length alone takes all items.
    n, lengths = 161_319 + 1000, tuple(range(1, 105))
    queries, database = make_rows(3, 13, seed=3), make_rows(n, 13, "ties")
    labels = draw_labels(3, n, SHARES[share])
    rows = torch.from_numpy(queries), torch.from_numpy(database)
    counts, *found = native.evaluate(*rows, *labels, lengths, 70_000)
    for b in (5, 48, 100):
        alone, *expected = native.evaluate(*rows, *labels, (b,), 70_000)
        assert torch.equal(counts[b - 1], alone[0])
        for a, c in zip(found, expected):
            assert torch.equal(a[b - 1], c[0])
    relevant = (labels[0][:, None] == labels[1]).numpy()
    for q, distances in enumerate(oracle.distances(queries, database, 48)):
        ranks = np.flatnonzero(relevant[q][np.argsort(distances, kind="stable")]) + 1
        precision = (np.arange(1, len(ranks) + 1) / ranks)[ranks <= 70_000]
        assert found[1][47, q] == len(precision)
        assert found[0][47, q].item() == pytest.approx(precision.sum(), rel=1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_every_level_and_number_of_threads_gives_the_same_bits(monkeypatch, share):
    queries, database = make_rows(90, 256, seed=3), make_rows(1999, 256, "ties")
    labels = draw_labels(90, 1999, SHARES[share])
    arguments = (torch.from_numpy(queries), torch.from_numpy(database), *labels, (*NESTED, 2047, 2048), 500)
    results, before = [], torch.get_num_threads()
    for level in levels():
        for threads in (1, 2, 3):
            monkeypatch.setenv("NHL_FAST_CPU_ISA", level)
            torch.set_num_threads(threads)
            counts, *sums = native.evaluate(*arguments)
            results.append([*counts, *sums])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))


def test_a_cutoff_beyond_the_items_is_all_of_them(isa):
    labels = [torch.zeros(4, dtype=torch.uint8), torch.zeros(70, dtype=torch.uint8)]
    rows = torch.from_numpy(make_rows(4, 2, seed=3)), torch.from_numpy(make_rows(70, 2))
    expected = torch.ops.nhl_fast.evaluate(*rows, *labels, [16], 70)
    for cutoff in (71, 5000, 2**40):
        found = torch.ops.nhl_fast.evaluate(*rows, *labels, [16], cutoff)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_rows_inside_wider_ones(isa):
    # Rows of 7 and of 9 bytes, apart by more than that, the last of which ends with the memory.
    for bits in (51, 56, 70):
        width = (bits + 7) // 8
        wide = torch.from_numpy(make_rows(200, 11))
        database = wide[:, 11 - width :]
        queries = torch.from_numpy(make_rows(5, width, seed=3))
        labels = draw_labels(5, 200, SHARES["half"])
        expected = native.evaluate(queries, database.contiguous(), *labels, (bits,), 200)
        found = native.evaluate(queries, database, *labels, (bits,), 200)
        assert torch.equal(found[0][0], expected[0][0])
        assert all(torch.equal(a, b) for a, b in zip(found[1:], expected[1:]))
        check(queries.numpy(), database.contiguous().numpy(), labels, (bits,), 200)
