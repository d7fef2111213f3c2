"""Neighbours of vectors, and how many of them codes find, against NumPy and by their definitions."""

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.retrieval.vectors import largest, nearest_vectors

LENGTHS = (5, 8, 20)


def data(queries=13, items=90, width=6, seed=0):
    rng = np.random.default_rng(seed)
    q, d = rng.standard_normal((queries, width)), rng.standard_normal((items, width))
    turn = rng.standard_normal((width, LENGTHS[-1]))
    return q, d, q @ turn, d @ turn


def true_neighbors(q, d, k):
    q, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, d))
    return np.argsort(-(q @ d.T), axis=1, kind="stable")[:, :k]


def ranked(scores, count):
    """By descending score, then ascending id."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def share(found, true):
    return np.array([len(set(f) & set(t)) / len(t) for f, t in zip(found, true)])


def signs(u):
    return np.where(u > 0, 1.0, -1.0)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**28])
def test_recall_is_that_of_a_sort(asymmetric, chunk_bytes):
    q, d, uq, ud = data()
    true = true_neighbors(q, d, 7)
    result = nhl.neighbor_recall(
        torch.from_numpy(uq) if asymmetric else nhl.pack_codes(uq),
        nhl.pack_codes(ud), q, d, LENGTHS, 7, (3, 7, 40), asymmetric=asymmetric, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    assert result.neighbors.tolist() == true.tolist()
    for j, b in enumerate(LENGTHS):
        scores = (uq if asymmetric else signs(uq))[:, :b] @ signs(ud)[:, :b].T
        for i, c in enumerate((3, 7, 40)):
            expected = share(ranked(scores, c), true)
            assert np.allclose(result.per_query[j, i], expected)
            assert result.recall[b][c] == pytest.approx(expected.mean())


def test_expected_recall_is_the_mean_over_the_orders_of_ties():
    q, d, uq, ud = data(queries=4, items=30)
    qc, dc = nhl.pack_codes(uq), nhl.pack_codes(ud)
    exact = nhl.neighbor_recall(qc, dc, q, d, (5, 8), 3, (4, 10), ties="expected", chunk_bytes=500)
    rng, runs = np.random.default_rng(1), []
    for _ in range(800):
        order = rng.permutation(30)
        back = np.argsort(order)  # item i stands at back[i]
        shuffled = torch.from_numpy(back)[exact.neighbors]
        runs.append(nhl.neighbor_recall(qc, dc[order], lengths=(5, 8), k=3, candidates=(4, 10), neighbors=shuffled))
    mean = torch.stack([r.per_query for r in runs]).mean(0)
    assert torch.allclose(exact.per_query, mean, atol=0.06)
    assert not torch.equal(exact.per_query, runs[0].per_query)


def test_all_candidates_find_all_neighbors():
    q, d, uq, ud = data()
    for ties in ("id", "expected"):
        found = nhl.neighbor_recall(
            nhl.pack_codes(uq), nhl.pack_codes(ud), q, d, LENGTHS, 10, (1, len(d)), ties=ties
        ).recall
        assert all(found[b][len(d)] == 1 and found[b][1] <= 0.1 + 1e-12 for b in LENGTHS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_features_may_be_mapped_from_a_file(tmp_path, dtype):
    q, d, *_ = data()
    d = (d * 40).astype(dtype)
    np.save(tmp_path / "d.npy", d)
    mapped = np.load(tmp_path / "d.npy", mmap_mode="r")
    _, ids = nearest_vectors(q.astype(np.float32), mapped, 5, chunk_bytes=200)
    assert ids.tolist() == true_neighbors(q.astype(np.float32), d.astype(np.float64), 5).tolist()


def test_equal_scores_come_by_ascending_id():
    q = torch.eye(3)
    d = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(40, 1)
    for chunk_bytes in (1, 2**28):
        scores, ids = nearest_vectors(q, d, 50, chunk_bytes=chunk_bytes)
        assert ids[0].tolist() == [*range(0, 80, 2), *range(1, 20, 2)]
        assert ids[1].tolist() == [*range(1, 80, 2), *range(0, 20, 2)]
        assert scores[2].eq(0).all()
        assert ids[2].tolist() == list(range(50))
    values, columns = largest(torch.tensor([[0.0, 2, 1, 2, 2]]), 2)
    assert (values.tolist(), columns.tolist()) == ([[2, 2]], [[1, 3]])


def test_own_rows_are_left_out():
    d = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([3, 39, 0])
    _, ids = nearest_vectors(d[own], d, 39, own=own, chunk_bytes=300)
    for row, kept in zip(own.tolist(), ids.tolist()):
        assert sorted(kept) == [i for i in range(40) if i != row]
    product = nearest_vectors(d[own], d * torch.arange(1.0, 41)[:, None], 40, metric="product")[1]
    assert product.tolist() == (-(d[own] @ (d * torch.arange(1.0, 41)[:, None]).T)).argsort(1).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (8, 32)}, "lengths: "),
        ({"k": 91}, "k: "),
        ({"candidates": (5, 91)}, "candidates: "),
        ({"q_features": None}, "q_features: "),
        ({"db_features": np.ones((89, 6))}, "db_features: expected 90 rows"),
        ({"db_features": np.ones((90, 5))}, "db_features: expected 6 numbers"),
        ({"q_features": np.full((13, 6), np.nan)}, "q_features: expected finite"),
        ({"ties": "best"}, "ties: "),
        ({"metric": "l2"}, "metric: "),
        ({"asymmetric": True}, "q_codes: "),
        ({"neighbors": np.zeros((13, 9), int)}, "neighbors: "),
        ({"neighbors": np.full((13, 10), 90)}, "neighbors: expected ids from 0 to 89"),
    ],
)
def test_errors_name_the_argument(options, message):
    q, d, uq, ud = data()
    good = {"q_codes": nhl.pack_codes(uq), "db_codes": nhl.pack_codes(ud), "q_features": q, "db_features": d}
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        nhl.neighbor_recall(**{**good, "lengths": LENGTHS, "candidates": (10,), **options})


def test_raw_outputs_have_one_rule_for_ties():
    q, d, uq, ud = data()
    with pytest.raises(ValueError, match=r"^ties: "):
        nhl.neighbor_recall(uq, nhl.pack_codes(ud), q, d, LENGTHS, candidates=(9,), asymmetric=True, ties="expected")
