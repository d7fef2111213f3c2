"""Precision, recall and their curves, and how `evaluate_retrieval` takes its arguments."""

import json

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import CLOSE, TIES, every_backend, expected_ap, per_query, problem, problems

from nhl_fast.retrieval.metrics import evaluate_retrieval


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(6), st.sampled_from(TIES), st.sampled_from([1, 2**28]))
def test_precision_recall_and_rank_curve(backend, case, ties, chunk_bytes):
    data, lengths = case
    n = len(data[1])
    result = evaluate_retrieval(*data, lengths, ties=ties, chunk_bytes=chunk_bytes, backend=backend)
    for b in lengths:
        precision, recall = result.pr_curve(b)
        assert precision.dtype == recall.dtype == np.float64
        assert precision.shape == recall.shape == (n,)
        for rank in range(1, n + 1):
            means = [
                np.mean(per_query(data, b, ties, measure, rank=rank)) for measure in (oracle.precision, oracle.recall)
            ]
            assert [precision[rank - 1], recall[rank - 1]] == pytest.approx(means, **CLOSE)
            assert [result.precision_at(rank)[b], result.recall_at(rank)[b]] == pytest.approx(means, **CLOSE)


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(14), st.sampled_from(TIES))
def test_radius_metrics(backend, case, ties):
    data, lengths = case
    result = evaluate_retrieval(*data, lengths, ties=ties, backend=backend)
    relevant = oracle.relevance(*data[2:])
    for b in lengths:
        dist = oracle.distances(*data[:2], b)
        curve = np.array(result.pr_curve(b, by="radius"))
        assert curve.shape == (2, b + 1)
        for radius in range(b + 1):
            inside = dist <= radius
            hits = (inside & relevant).sum(1)
            precision = np.mean([h / c if c else 0.0 for h, c in zip(hits, inside.sum(1))])
            recall = np.mean([h / t if t else 0.0 for h, t in zip(hits, relevant.sum(1))])
            assert curve[:, radius] == pytest.approx([precision, recall], **CLOSE)
            assert result.within_radius(radius)[b] == pytest.approx(precision, **CLOSE)
        assert result.within_radius(b + 5)[b] == result.within_radius(b)[b]


def test_curve_points():
    data = problem(4, 90, 2, 0, pool=7)
    result = evaluate_retrieval(*data, (5, 16), ties="expected")
    whole = result.pr_curve(16)
    for points in (1, 2, 12, 90, 5_000, [3, 1, 90], np.array([7])):
        ranks = result.curve_ranks(points)
        for part, all_ranks in zip(result.pr_curve(16, points=points), whole):
            assert np.array_equal(part, all_ranks[ranks - 1])
    assert result.curve_ranks(12)[[0, -1]].tolist() == [1, 90]
    assert len(result.curve_ranks(12)) <= 12
    assert np.array_equal(result.curve_ranks(90), np.unique(result.curve_ranks(90)))
    assert result.curve_ranks(1).tolist() == [90]
    assert result.curve_ranks([3, 1, 90]).tolist() == [3, 1, 90]


@pytest.mark.parametrize(("num_bytes", "lengths"), [(1, (8,)), (7, (8, 16, 32)), (20, (8, 16, 32, 64, 128))])
def test_without_lengths_those_that_the_rows_hold(num_bytes, lengths):
    data = problem(3, 20, num_bytes, 5)
    found, wanted = evaluate_retrieval(*data), evaluate_retrieval(*data, lengths)
    assert found.lengths == lengths
    assert torch.equal(found.average_precision, wanted.average_precision)


def test_cut_does_not_touch_precision_and_recall():
    data = problem(5, 60, 1, 3, pool=6)
    for ties in TIES:
        cut, whole = (evaluate_retrieval(*data, (8,), topk, ties) for topk in (7, None))
        assert cut.precision_at(50) == whole.precision_at(50)
        assert np.array_equal(cut.pr_curve(8), whole.pr_curve(8))


# ------------------------------------------------------------------------------------------- many lengths, forms


@every_backend
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(
    ("lengths", "num_bytes"),
    [((8, 16, 32, 64, 128), 16), ((5, 12, 48, 100), 13), (tuple(range(1, 17)), 2), ((3, 1024), 128)],
)
def test_lengths_are_prefixes(lengths, num_bytes, ties, backend):
    data = problem(6, 75, num_bytes, 1, pool=20)
    together = evaluate_retrieval(*data, lengths, 30, ties, backend=backend)
    for j, b in enumerate(lengths):
        alone = evaluate_retrieval(*data, (b,), 30, ties, backend=backend)
        assert torch.allclose(together.average_precision[j], alone.average_precision[0], rtol=1e-14, atol=0)
    if ties != "expected":
        for j, b in enumerate(lengths):
            assert together.average_precision[j].tolist() == pytest.approx(
                expected_ap(data, b, 30, ties, "retrieved"), **CLOSE
            )


@every_backend
@pytest.mark.parametrize("chunk_bytes", [1, 2_000, 30_000, 10**6])
@pytest.mark.parametrize("form", ["ids", "hot", "ids-hot"])
@pytest.mark.parametrize("ties", ["id", "expected"])
def test_chunks_do_not_change_results(chunk_bytes, form, ties, backend):
    data = problem(7, 61, 4, 2, pool=15, form=form)
    whole = evaluate_retrieval(*data, (3, 8, 29), 20, ties, backend=backend)
    parts = evaluate_retrieval(*data, (3, 8, 29), 20, ties, chunk_bytes=chunk_bytes, backend=backend)
    assert torch.allclose(parts.average_precision, whole.average_precision, rtol=1e-14, atol=0)
    assert parts.within_radius(3) == whole.within_radius(3)
    assert np.allclose(parts.pr_curve(29), whole.pr_curve(29), rtol=1e-13, atol=0)


@every_backend
def test_a_larger_database_against_numpy(backend):
    q, d, q_labels, db_labels = data = problem(8, 3_000, 3, 5, pool=300, classes=5)
    result = evaluate_retrieval(*data, (4, 24), 700, backend=backend)
    for j, b in enumerate((4, 24)):
        order = np.argsort(oracle.distances(q, d, b), axis=1, kind="stable")
        ranked = (q_labels[:, None] == db_labels[None])[np.arange(8)[:, None], order]
        precision = ranked.cumsum(1) / np.arange(1, 3_001)
        ap = (precision * ranked)[:, :700].sum(1) / np.maximum(ranked[:, :700].sum(1), 1)
        assert result.average_precision[j].tolist() == pytest.approx(ap.tolist(), **CLOSE)
        assert result.pr_curve(b)[0] == pytest.approx(precision.mean(0), **CLOSE)


def test_rules_bracket_each_other():
    data = problem(20, 200, 1, 6, pool=12)
    low, mean, by_id, high = (
        evaluate_retrieval(*data, (4, 8), None, ties).average_precision
        for ties in ("worst", "expected", "id", "best")
    )
    assert (low <= mean + 1e-12).all()
    assert (mean <= high + 1e-12).all()
    assert (low <= by_id + 1e-12).all()
    assert (by_id <= high + 1e-12).all()
    assert (low < high).any()


def test_equal_labels_in_every_form_give_equal_results():
    q, d, q_ids, db_ids = problem(5, 40, 2, 7, pool=9, classes=4)
    hot = np.eye(4)
    reference = evaluate_retrieval(q, d, q_ids, db_ids, (9, 16)).average_precision
    for q_labels in (q_ids, torch.from_numpy(q_ids).int(), hot[q_ids], torch.from_numpy(hot[q_ids]).bool()):
        for db_labels in (db_ids, db_ids.astype(np.uint8), hot[db_ids].astype(np.float32)):
            ours = evaluate_retrieval(q, d, q_labels, db_labels, (9, 16)).average_precision
            assert torch.equal(ours, reference)


@pytest.mark.parametrize("ties", TIES)
def test_queries_with_nothing_relevant_count_as_zero(ties):
    q, d, _, db_labels = problem(3, 12, 1, 8, pool=4, classes=2)
    result = evaluate_retrieval(q, d, np.array([5, 0, 9]), db_labels, (8,), 4, ties)
    assert result.average_precision[0, [0, 2]].tolist() == [0, 0]
    assert result.mean_average_precision[8] == pytest.approx(result.average_precision[0, 1].item() / 3)
    assert result.recall_at(12)[8] == pytest.approx(1 / 3)
    empty = evaluate_retrieval(q, d, np.zeros((3, 2), bool), db_labels, (8,), None, ties)
    assert empty.mean_average_precision == empty.recall_at(12) == empty.precision_at(1) == {8: 0.0}


@pytest.mark.parametrize("ties", TIES)
def test_one_query_one_item(ties):
    one = np.array([[129]], np.uint8)
    result = evaluate_retrieval(one, one, np.array([3]), np.array([3]), (1, 8), ties=ties)
    assert result.mean_average_precision == {1: 1.0, 8: 1.0}
    assert (result.num_queries, result.num_database) == (1, 1)


def test_views_and_tensors_equal_contiguous_arrays():
    q, d, q_labels, db_labels = problem(6, 50, 6, 9, pool=11, form="hot")
    expected = evaluate_retrieval(
        q[::2, 1::2].copy(), d[::-1, 1::2].copy(), q_labels[::2].copy(), db_labels[::-1].copy(), (7, 24)
    )
    ours = evaluate_retrieval(
        torch.from_numpy(q)[::2, 1::2], d[::-1, 1::2], torch.from_numpy(q_labels)[::2], db_labels[::-1], (7, 24)
    )
    assert torch.equal(ours.average_precision, expected.average_precision)


def test_inputs_are_left_alone_and_no_graph_is_built():
    q, d, q_labels, db_labels = (torch.from_numpy(v) for v in problem(4, 30, 2, 10, form="hot"))
    labels = db_labels.float().requires_grad_()
    before = [v.clone() for v in (q, d, q_labels, db_labels)]
    result = evaluate_retrieval(q, d, q_labels, labels, (3, 16))
    assert not result.average_precision.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (q, d, q_labels, db_labels)))


# ------------------------------------------------------------------------------------------------ the summary


def test_attributes_dict_and_table():
    data = problem(4, 30, 2, 11)
    result = evaluate_retrieval(*data, (8, 16), topk=10, ties="expected", denominator="min")
    assert (result.lengths, result.topk, result.ties, result.denominator) == ((8, 16), 10, "expected", "min")
    summary = result.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["mean_average_precision"] == {str(b): v for b, v in result.mean_average_precision.items()}
    assert summary["precision_within_radius_2"] == {str(b): v for b, v in result.within_radius().items()}
    assert (summary["num_queries"], summary["num_database"], summary["topk"]) == (4, 30, 10)
    table = repr(result).splitlines()
    assert table[0].startswith("RetrievalResult: 4 queries, 30 database items, ties='expected'")
    assert table[1].split() == ["bits", "mAP@10", "P(r<=2)"]
    assert [row.split()[0] for row in table[2:]] == ["8", "16"]
    assert float(table[3].split()[1]) == pytest.approx(result.mean_average_precision[16], abs=5e-5)


# ---------------------------------------------------------------------------------------------------- bad input

Q = np.zeros((2, 2), np.uint8)
D = np.zeros((3, 2), np.uint8)
QL, DL = np.array([0, 1]), np.array([0, 1, 2])
HOT = np.eye(3, dtype=np.uint8)
GOOD = {"q_codes": Q, "db_codes": D, "q_labels": QL, "db_labels": DL, "lengths": (8, 16)}
BAD = [
    ({"q_codes": Q.astype(np.int32)}, TypeError, "q_codes: expected packed uint8"),
    ({"q_codes": Q.tolist()}, TypeError, "q_codes: expected a torch.Tensor"),
    ({"q_codes": Q[0]}, ValueError, "q_codes: expected packed rows"),
    ({"q_codes": Q[:0], "q_labels": QL[:0]}, ValueError, "q_codes: expected at least one row"),
    ({"db_codes": D[:0], "db_labels": DL[:0]}, ValueError, "db_codes: expected at least one row"),
    ({"db_codes": D.astype(np.float32)}, TypeError, "db_codes: expected packed uint8"),
    (
        {"db_codes": torch.from_numpy(D).to("meta")},
        ValueError,
        "db_codes: expected values, got a tensor on the meta device",
    ),
    ({"lengths": (8, 17)}, ValueError, "lengths: expected at most 16"),
    ({"lengths": (16, 8)}, ValueError, "lengths: expected strictly increasing"),
    ({"lengths": ()}, ValueError, "lengths: expected at least one"),
    ({"lengths": 8.0}, TypeError, "lengths: expected a sequence"),
    ({"lengths": (0, 8)}, ValueError, "lengths: .*at least 1"),
    ({"q_labels": QL[:1]}, ValueError, r"q_labels: expected ids of shape \(2,\)"),
    ({"db_labels": DL[:2]}, ValueError, r"db_labels: expected ids of shape \(3,\)"),
    ({"q_labels": QL.astype(float)}, TypeError, "q_labels: expected integer class ids"),
    ({"db_labels": DL.tolist()}, TypeError, "db_labels: expected a torch.Tensor"),
    ({"q_labels": -QL}, ValueError, "q_labels: expected non-negative"),
    ({"q_labels": QL + 2, "db_labels": HOT}, ValueError, "q_labels: expected class ids from 0 to 2"),
    ({"q_labels": HOT[:2, :2], "db_labels": DL}, ValueError, "db_labels: expected class ids from 0 to 1"),
    ({"q_labels": HOT[:2, :2], "db_labels": HOT}, ValueError, "db_labels: expected 2 columns"),
    ({"db_labels": HOT * 2}, ValueError, "db_labels: expected multi-hot rows"),
    ({"topk": 0}, ValueError, "topk: .*at least 1"),
    ({"topk": -1}, ValueError, "topk: .*at least 1"),
    ({"topk": 2.0}, TypeError, "topk: expected an integer"),
    ({"ties": "random"}, ValueError, "ties: expected one of 'id', 'expected', 'best', 'worst'"),
    ({"denominator": "all"}, ValueError, "denominator: expected one of 'retrieved', 'relevant', 'min'"),
    ({"chunk_bytes": 0}, ValueError, "chunk_bytes: .*at least 1"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    ({"backend": "triton"}, ValueError, "backend: evaluate_retrieval runs here on"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_rejects(change, error, message):
    evaluate_retrieval(**GOOD)
    with pytest.raises(error, match=message):
        evaluate_retrieval(**{**GOOD, **change})


BAD_CALLS = [
    (lambda r: r.precision_at(4), ValueError, "n: expected at most 3, the size of the database"),
    (lambda r: r.precision_at(0), ValueError, "n: .*at least 1"),
    (lambda r: r.recall_at(4), ValueError, "n: expected at most 3"),
    (lambda r: r.recall_at(1.0), TypeError, "n: expected an integer"),
    (lambda r: r.within_radius(-1), ValueError, "r: .*at least 0"),
    (lambda r: r.pr_curve(12), ValueError, r"length: expected one of \(8, 16\), got 12"),
    (lambda r: r.pr_curve(8, by="recall"), ValueError, "by: expected one of 'rank', 'radius'"),
    (lambda r: r.pr_curve(8, by="radius", points=3), ValueError, "points: expected None"),
    (lambda r: r.pr_curve(8, points=0), ValueError, "points: .*at least 1"),
    (lambda r: r.pr_curve(8, points=[1, 4]), ValueError, "points: expected at most 3"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_result_rejects(call, error, message):
    result = evaluate_retrieval(**GOOD)
    with pytest.raises(error, match=message):
        call(result)
