"""NDCG and means over the queries that have a relevant item, against their definitions."""

import json

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import CLOSE, TIES, every_backend, per_query, problem, problems
from native_cases import AVAILABLE, DETAIL, each_isa, levels, make_rows, one_and_two_threads  # noqa: F401

from nhl_fast import native
from nhl_fast.retrieval import ranking
from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.retrieval.shards import evaluate_shards


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(6), st.sampled_from(TIES), st.sampled_from([1, 2**28]))
def test_ndcg_of_every_rank(backend, case, ties, chunk_bytes):
    data, lengths = case
    n = len(data[1])
    ranks = range(1, n + 1)
    result = evaluate_retrieval(*data, lengths, ties=ties, ndcg=ranks, chunk_bytes=chunk_bytes, backend=backend)
    for rank in ranks:
        found = result.ndcg_at(rank)
        for b in lengths:
            assert found[b] == pytest.approx(np.mean(per_query(data, b, ties, oracle.ndcg, rank=rank)), **CLOSE)
            assert found[b] <= 1


@every_backend
@pytest.mark.parametrize("ties", ["id", "best", "worst"])
def test_ndcg_of_a_larger_database(backend, ties):
    data = problem(8, 3_000, 3, 5, pool=300, classes=5)
    ranks = (1, 2, 63, 64, 65, 700, 3_000)
    result = evaluate_retrieval(*data, (4, 24), 10, ties, ndcg=ranks, backend=backend)
    assert result.ndcg_ranks == ranks
    for rank in ranks:
        for b in (4, 24):
            right = np.mean(per_query(data, b, ties, oracle.ndcg, rank=rank))
            assert result.ndcg_at(rank)[b] == pytest.approx(right, rel=1e-11)


def test_the_expected_ndcg_is_the_mean_over_shuffled_rows():
    q, d, q_labels, db_labels = problem(5, 200, 1, 3, pool=9)
    exact = evaluate_retrieval(q, d, q_labels, db_labels, (3, 8), ties="expected").ndcg_at(20)
    generator, found = np.random.default_rng(0), []
    for _ in range(300):
        order = generator.permutation(200)
        found.append(evaluate_retrieval(q, d[order], q_labels, db_labels[order], (3, 8), ndcg=20).ndcg_at(20))
    for b in (3, 8):
        values = np.array([one[b] for one in found])
        assert abs(values.mean() - exact[b]) < 5 * values.std() / 300**0.5


def test_rules_bracket_each_other():
    data = problem(20, 200, 1, 6, pool=12)
    low, mean, by_id, high = (
        evaluate_retrieval(*data, (4, 8), None, ties, ndcg=50).ndcg_at(50)
        for ties in ("worst", "expected", "id", "best")
    )
    for b in (4, 8):
        assert low[b] < mean[b] < high[b]
        assert low[b] < by_id[b] < high[b]


@pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 1.0])
def test_native_gains(isa, threads, share):
    generator = np.random.default_rng(1)
    lengths = (5, 48, 100, 2100)
    for n in (1, 64, 65, 700):
        queries, database = make_rows(9, 263, seed=3), make_rows(n, 263, "ties")
        labels = [torch.zeros(9, dtype=torch.int64), torch.from_numpy((generator.random(n) >= share).astype(int))]
        arguments = (torch.from_numpy(queries), torch.from_numpy(database), *labels, lengths)
        ranks = tuple(sorted({1, max(1, n // 3), min(n, 64), n}))
        sums = ranking.collect(*arguments, n, 2**28, ranks)[1]
        *rest, gains = native.evaluate(*arguments, n, ranks)
        assert gains.shape == (4, 9, len(ranks))
        torch.testing.assert_close(gains, sums.gains, rtol=1e-13, atol=1e-13)
        assert all(map(torch.equal, rest[1:], native.evaluate(*arguments, n)[1:]))


@pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")
def test_queries_in_parts(monkeypatch):
    q, d, q_labels, db_labels = problem(9, 90, 2, 4, pool=20, classes=4)
    options = {"lengths": (5, 16), "topk": 30, "ndcg": (7, 90), "backend": "cpp"}
    whole = evaluate_retrieval(q, d, q_labels, db_labels, **options)
    monkeypatch.setattr(ranking, "most_queries", lambda device: 4)
    found = evaluate_retrieval(q, d, q_labels, db_labels, **options)
    assert torch.equal(found.average_precision, whole.average_precision)
    assert (found.ndcg_at(7), found.ndcg_at(90)) == (whole.ndcg_at(7), whole.ndcg_at(90))
    for n in (1, 9, 90):
        assert found.precision_at(n) == whole.precision_at(n)
        assert found.recall_at(n) == pytest.approx(whole.recall_at(n), rel=1e-14)


@pytest.mark.parametrize("ties", TIES)
@every_backend
def test_means_over_the_queries_with_a_relevant_item(ties, backend):
    q, d, _, db_labels = problem(4, 60, 2, 8, pool=9, classes=2)
    q_labels = np.array([7, 0, 1, 9])
    options = {"lengths": (3, 16), "topk": 20, "ties": ties, "ndcg": (5, 60), "backend": backend}
    every = evaluate_retrieval(q, d, q_labels, db_labels, **options)
    some = evaluate_retrieval(q, d, q_labels, db_labels, mean_over="relevant", **options)
    alone = evaluate_retrieval(q[1:3], d, q_labels[1:3], db_labels, **options)
    assert (every.num_relevant_queries, some.num_relevant_queries, some.num_queries) == (2, 2, 4)
    for measure in (
        lambda r: r.mean_average_precision,
        lambda r: r.precision_at(9),
        lambda r: r.recall_at(9),
        lambda r: r.within_radius(3),
        lambda r: r.ndcg_at(5),
        lambda r: r.ndcg_at(60),
        lambda r: dict(enumerate(np.concatenate(r.pr_curve(16)))),
        lambda r: dict(enumerate(np.concatenate(r.pr_curve(16, by="radius")))),
    ):
        assert measure(some) == pytest.approx(measure(alone), **CLOSE)
        assert measure(some) == pytest.approx({key: 2 * v for key, v in measure(every).items()}, **CLOSE)
    assert torch.equal(every.average_precision, some.average_precision)
    assert "means over 2 queries with a relevant item" in repr(some)
    assert some.to_dict()["mean_over"] == "relevant"


@pytest.mark.parametrize("form", ["ids", "hot", "ids-hot", "hot-ids"])
@pytest.mark.parametrize("ties", TIES)
def test_shards_measure_the_same(form, ties):
    q, d, q_labels, db_labels = problem(6, 90, 2, 4, pool=20, form=form, classes=4)
    options = {"lengths": (5, 16), "topk": 30, "ties": ties, "ndcg": (90, 7, 7), "mean_over": "relevant"}
    whole = evaluate_retrieval(q, d, q_labels, db_labels, **options)
    shards = [(d[a:b], db_labels[a:b]) for a, b in ((0, 40), (40, 41), (41, 90))]
    found = evaluate_shards(q, q_labels, shards, **options)
    assert found.ndcg_ranks == (7, 90)
    for rank in (7, 90):
        assert found.ndcg_at(rank) == pytest.approx(whole.ndcg_at(rank), **CLOSE)
    assert found.mean_average_precision == pytest.approx(whole.mean_average_precision, **CLOSE)


def test_summary_and_table_have_what_was_asked_for():
    data = problem(4, 30, 2, 11)
    result = evaluate_retrieval(*data, (8, 16), ndcg=(3, 30))
    summary = result.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["ndcg_at_3"] == {str(b): v for b, v in result.ndcg_at(3).items()}
    table = repr(result).splitlines()
    assert table[1].split() == ["bits", "mAP", "P(r<=2)", "NDCG@3", "NDCG@30"]
    assert float(table[3].split()[4]) == pytest.approx(result.ndcg_at(30)[16], abs=5e-5)
    plain = evaluate_retrieval(*data, (8, 16))
    assert not [name for name in plain.to_dict() if "ndcg" in name]
    assert torch.equal(plain.average_precision, result.average_precision)


Q, D, QL, DL = problem(2, 12, 1, 0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"ndcg": 0}, ValueError, "ndcg: expected an integer of at least 1"),
        ({"ndcg": (3, 13)}, ValueError, "ndcg: expected an integer of at most 12"),
        ({"ndcg": 2.5}, TypeError, "ndcg: expected an integer"),
        ({"ndcg": "10"}, TypeError, "ndcg: expected ranks"),
        ({"mean_over": "some"}, ValueError, "mean_over: expected one of 'all', 'relevant'"),
        ({"mean_over": "relevant", "q_labels": QL + 90}, ValueError, "mean_over: expected a query with a relevant"),
        (
            {"mean_over": "relevant", "q_labels": np.eye(3)[[0, 0]], "db_labels": np.eye(3)[[1] * 12]},
            ValueError,
            "mean_over: expected a query with a relevant",
        ),
        (
            {"mean_over": "relevant", "q_labels": np.array([0, 0]), "db_labels": np.eye(3)[[1] * 12]},
            ValueError,
            "mean_over: expected a query with a relevant",
        ),
    ],
)
def test_bad_input(changed, error, message):
    good = {"q_codes": Q, "db_codes": D, "q_labels": QL, "db_labels": DL, "lengths": (8,)}
    with pytest.raises(error, match=message):
        evaluate_retrieval(**{**good, **changed})


def test_ranks_that_were_not_measured():
    result = evaluate_retrieval(Q, D, QL, DL, (8,), ndcg=(3,))
    with pytest.raises(ValueError, match=r"n: expected one of \(3,\), given as ndcg \(ties='id'\), got 4"):
        result.ndcg_at(4)
    with pytest.raises(ValueError, match="n: expected a rank given, and none was, as ndcg"):
        evaluate_retrieval(Q, D, QL, DL, (8,)).ndcg_at(4)
    for ndcg_at in (result.ndcg_at, evaluate_retrieval(Q, D, QL, DL, (8,), ties="best").ndcg_at):
        with pytest.raises(ValueError, match="n: expected at most 12"):
            ndcg_at(13)
