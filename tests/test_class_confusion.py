"""What is drawn of codes: confusion by class, distances of pairs, statistics of bits, against plain loops."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from metric_cases import every_backend, problem

import nhl_fast as nhl

LENGTHS = (5, 12)


def ids(*classes):
    return np.array(classes, np.int64)


def confusion(data, length, k, classes):
    """Chances of the tied items counted one by one, in fractions."""
    q, d, q_labels, db_labels = data
    sums, queries = np.zeros((classes, classes), dtype=object), [0] * classes
    for row, label in zip(oracle.distances(q, d, length), q_labels):
        furthest = sorted(row)[k - 1]
        sure, tied = sum(row < furthest), sum(row == furthest)
        for c in oracle.classes_of(label):
            queries[c] += 1
            for distance, other in zip(row, db_labels):
                chance = Fraction(int(distance < furthest)) + int(distance == furthest) * Fraction(k - sure, tied)
                for e in oracle.classes_of(other):
                    sums[c, e] += chance / k
    return np.array([[float(s / n) if n else np.nan for s in line] for line, n in zip(sums, queries)])


@every_backend
@pytest.mark.parametrize("form", ["ids", "hot", "ids-hot", "hot-ids"])
@pytest.mark.parametrize("k", [1, 3, 17])
def test_confusion_is_that_of_a_plain_loop(form, k, backend):
    data = problem(6, 17, 2, seed=k, pool=5, form=form, classes=4)
    found = nhl.class_confusion(*data, lengths=LENGTHS, k=k, backend=backend)
    small = nhl.class_confusion(*data, lengths=LENGTHS, k=k, chunk_bytes=1, backend=backend)
    assert list(found) == list(LENGTHS)
    for b in LENGTHS:
        classes = 4 if form != "ids" else max(max(data[2]), max(data[3])) + 1
        expected = confusion(data, b, k, classes)
        assert found[b].dtype == np.float64
        np.testing.assert_allclose(found[b], expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(small[b], expected, rtol=1e-12, atol=1e-15)
        if form == "ids":
            np.testing.assert_allclose(found[b][~np.isnan(found[b][:, 0])].sum(1), 1)


def test_confusion_of_one_class_an_empty_class_and_one_query():
    codes = np.array([[0b00000000], [0b11111000], [0b11110000]], np.uint8)
    one = nhl.class_confusion(codes, codes, ids(0, 0, 0), ids(0, 0, 0), lengths=(5,), k=2)[5]
    assert one.tolist() == [[1.0]]
    # Class 1 has no query, class 3 no item. At 5 bits the items are at 0, 5 and 4 from the query.
    found = nhl.class_confusion(codes[:1], codes, ids(3), ids(0, 1, 2), lengths=(5,), k=2)[5]
    assert np.isnan(found[:3]).all()
    assert found[3].tolist() == [0.5, 0.0, 0.5, 0.0]
    # All three at distance 0 at k = 1: a third each.
    same = np.zeros((3, 1), np.uint8)
    assert nhl.class_confusion(same[:1], same, ids(0), ids(0, 1, 2), lengths=(8,), k=1)[8][0].tolist() == [1 / 3] * 3


def test_confusion_refuses_what_does_not_fit():
    codes = np.zeros((3, 1), np.uint8)
    with pytest.raises(ValueError, match="k: expected an integer of at most 3, got 4"):
        nhl.class_confusion(codes, codes, ids(0, 0, 0), ids(0, 0, 0), lengths=(8,), k=4)
    with pytest.raises(ValueError, match="db_labels: expected at most 4096 classes, got 5001"):
        nhl.class_confusion(codes, codes, ids(0, 0, 0), ids(0, 1, 5000), lengths=(8,), k=1)
    with pytest.raises(ValueError, match="q_codes: expected at least one row"):
        nhl.class_confusion(codes[:0], codes, ids(), ids(0, 0, 0), lengths=(8,), k=1)


@every_backend
@pytest.mark.parametrize("form", ["ids", "hot"])
@pytest.mark.parametrize("ties", ["id", "expected"])
def test_distances_of_pairs_are_those_of_a_plain_count(form, ties, backend):
    data = problem(4, 23, 2, seed=3, pool=9, form=form, classes=3)
    result = nhl.evaluate_retrieval(*data, lengths=LENGTHS, ties=ties, backend=backend)
    same = oracle.relevance(*data[2:])
    for b in LENGTHS:
        distances = oracle.distances(*data[:2], b)
        found = result.distance_histogram(b)
        for counts, kind in zip(found, (distances[~same], distances[same])):
            assert counts.dtype == np.int64
            assert counts.tolist() == [(kind == d).sum() for d in range(b + 1)]
    with pytest.raises(ValueError, match=r"length: expected one of \(5, 12\), got 8"):
        result.distance_histogram(8)


def test_statistics_of_bits_are_those_of_numpy():
    codes = np.random.default_rng(0).integers(0, 256, (40, 2), dtype=np.uint8)
    codes[:, 0] &= 0b11011111  # the third bit is constant
    bits = oracle.bits_of(codes, 12)
    ones, correlation = nhl.bit_statistics(codes, 12)
    assert ones.tolist() == bits.mean(0).tolist()
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.abs(np.corrcoef(bits.T))
    np.testing.assert_allclose(correlation, expected, atol=1e-12)
    assert np.isnan(correlation[2]).all()
    short = nhl.bit_statistics(codes, 5)
    assert short[0].tolist() == ones[:5].tolist()
    np.testing.assert_array_equal(short[1], correlation[:5, :5])
    assert len(nhl.bit_statistics(codes)[0]) == 16
    # The means over bits and pairs are what `code_quality` says.
    (row,) = nhl.code_quality(codes, (12,))
    assert row["imbalance"] == pytest.approx(np.abs(2 * ones - 1).mean())
    assert row["correlation"] == pytest.approx(np.nanmean(correlation[np.triu_indices(12, 1)]))
    with pytest.raises(ValueError, match="length: expected at most 16 bits"):
        nhl.bit_statistics(codes, 17)
    with pytest.raises(ValueError, match="codes: expected at least one row"):
        nhl.bit_statistics(codes[:0])
