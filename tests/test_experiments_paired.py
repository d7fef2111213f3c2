"""The experiments' paired tests, graded measures, curves and memory, and nets that train along."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from bench.experiments import __main__ as program
from bench.experiments import datasets, jobs, measures, nets, paired, present
from bench.readme import evidence
from nhl_fast.data import RetrievalData, cifar10

DIGITS = {"name": "digits", "queries_per_class": 10, "train_per_class": 30}


@pytest.mark.parametrize(
    "differences", [[0.1, 0.2, 0.4], [-1.0, 2.0, 0.5, 0.1], [1.0, 1.1], [3.0, 3.1, 2.9, 3.0, 3.05]]
)
def test_the_test_over_seeds_is_that_of_scipy(differences):
    stats = pytest.importorskip("scipy.stats")
    want = float(stats.ttest_1samp(differences, 0).pvalue)
    assert paired.over_seeds(differences) == pytest.approx(want, abs=1e-6)


def test_seeds_without_spread_say_nothing():
    assert paired.over_seeds([0.5]) == paired.over_seeds([0.1, 0.1]) == 1


@pytest.mark.parametrize("parts", [[[1.0, 2.0, -0.5, 3.0]], [[0.5, 1.0, 0.25], [2.0, -0.25, 1.5, 0.5, 1.0]]])
def test_the_test_over_queries_is_that_of_all_signs(parts):
    shares = np.concatenate([np.array(p) / len(p) / len(parts) for p in parts])  # seeds count alike
    sums = np.array([shares @ signs for signs in itertools.product((-1, 1), repeat=len(shares))])
    exact = (np.abs(sums) >= abs(shares.sum()) - 1e-12).mean()
    got = paired.over_queries([np.array(p) for p in parts])
    assert got == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / paired.DRAWS))


def test_models_that_are_alike_differ_by_chance_only():
    rng = np.random.default_rng(0)
    found = np.array([paired.over_queries([rng.normal(size=40)]) for _ in range(200)])
    assert 0.02 <= (found < 0.1).mean() <= 0.2
    assert paired.over_queries([np.zeros(10)]) == 1
    assert paired.over_queries([rng.normal(0.5, 1, 200)]) == 1 / (paired.DRAWS + 1)


def test_arms_against_the_reference():
    rng = np.random.default_rng(1)
    wanted, records = [], []

    def add(loss, arm, seed, lengths, lead):
        wanted.append(jobs.Job({"loss": loss, "arm": arm}, seed, DIGITS, {}))
        records.append({"ap": {str(b): (base[seed][b] + lead).tolist() for b in lengths}})

    base = {s: {b: rng.normal(size=60) for b in (8, 16)} for s in (0, 1)}
    for seed in (0, 1):
        add("csq", "nested", seed, (8, 16), 0.25 + seed)
        add("csq", "single", seed, (8,), 0)
        add("csq", "single", seed, (16,), 0)
    add("csq", "wide", 1, (16,), -0.5)
    add("dch", "nested", 0, (8,), 1)  # with no other arm beside it
    rows = paired.against(wanted, records, "single")
    told = {(r["arm"], r["bits"]): r for r in rows}
    assert set(told) == {("nested", 8), ("nested", 16), ("nested", "mean"), ("wide", 16)}
    assert {r["loss"] for r in rows} == {"csq"}
    for bits in (8, 16, "mean"):
        row = told["nested", bits]
        assert row["difference"] == pytest.approx(0.75)
        assert row["p_queries"] == 1 / (paired.DRAWS + 1)
        assert row["p_seeds"] == pytest.approx(paired.over_seeds([0.25, 1.25]))
    assert told["wide", 16]["difference"] == pytest.approx(-0.5)
    assert told["wide", 16]["p_seeds"] is None
    assert {r["arm"] for r in paired.against(wanted, records, "nested")} == {"single", "wide"}


def test_what_is_beyond_both_tests_is_bold():
    ours, theirs = {0: 0.51, 1: 0.52, 2: 0.531}, {0: 0.5, 1: 0.51, 2: 0.52}
    assert evidence.against(ours, theirs) == " (+2.0%, p < 0.01)"
    assert evidence.against(ours, theirs, 0.03) == " (**+2.0%**, p < 0.01 / 0.03)"
    assert evidence.against(ours, theirs, 0.06) == " (+2.0%, p < 0.01 / 0.06)"
    assert evidence.against({0: 0.51}, theirs, 0.001) == " (+2.0%, p - / < 0.01)"
    assert evidence.against({0: 0.51}, theirs) == " (+2.0%)"
    assert evidence.against({7: 0.51}, theirs, 0.001) == ""


def tagged(seed=0, n=60, queries=7, classes=5):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy((rng.random((n, classes)) < 0.4).astype(np.uint8))
    labels[:, 0] |= ~labels.bool().any(1)
    labels[0], labels[queries:, 4] = torch.tensor([0, 0, 0, 0, 1], dtype=torch.uint8), 0  # nothing is like query 0
    codes = torch.from_numpy(rng.integers(0, 256, (n, 2), dtype=np.uint8))
    rows = np.arange(n)
    data = RetrievalData.from_tensors(
        torch.zeros(n, 1), labels, train=rows[queries:], query=rows[:queries], database=rows[queries:], validation=0.0
    )
    return data, codes[:queries], codes[queries:]


@pytest.mark.parametrize("topk", [1, 10, 1000])
def test_graded_measures_are_those_of_loops(topk):
    data, q_codes, db_codes = tagged()
    order = torch.randperm(len(db_codes), generator=torch.Generator().manual_seed(0)).tolist()
    for row in measures.graded(data, q_codes, db_codes, (8, 16), topk):
        ndcg, weighted = [], []
        for code, label in zip(q_codes, data.query.labels.tolist()):
            far = nhl.hamming_distances(code[None], db_codes, row["bits"])[0].tolist()
            place = {item: i for i, item in enumerate(order)}
            ranking = sorted(range(len(db_codes)), key=lambda i: (far[i], place[i]))[:topk]
            shared = [sum(a * b for a, b in zip(label, y)) for y in data.database.labels.tolist()]
            best = sorted(shared, reverse=True)[:topk]
            found, ideal = (
                sum((2**r - 1) / math.log2(2 + i) for i, r in enumerate(order_of))
                for order_of in ([shared[i] for i in ranking], best)
            )
            ndcg.append(found / ideal if ideal else 0)
            total, hits, sums = 0, 0, 0.0
            for rank, item in enumerate(ranking, 1):
                total += shared[item]
                if shared[item]:
                    hits, sums = hits + 1, sums + total / rank
            weighted.append(sums / hits if hits else 0)
        assert row["ndcg"] == pytest.approx(np.mean(ndcg), abs=1e-9)
        assert row["weighted"] == pytest.approx(np.mean(weighted), abs=1e-9)
        assert ndcg[0] == weighted[0] == 0


def test_a_run_keeps_average_precisions_and_its_curve():
    settings = {"epochs": 3, "hidden": [16], "code_lengths": [8, 16], "loss": "csq"}
    job = jobs.Job({"loss": "csq", "arm": "nested"}, 0, DIGITS, settings, measures=("curve",))
    plain = jobs.run(jobs.Job(job.labels, 0, DIGITS, settings))
    record = jobs.run(job)
    assert record["map"] == plain["map"]  # to look on changes nothing
    for bits, value in record["map"].items():
        assert np.mean(record["ap"][bits]) == pytest.approx(value, abs=1e-6)
        assert record["curve"][-1]["map"][bits] == value
    assert [p["steps"] for p in record["curve"]] == [5, 10, 15]
    seconds = [p["seconds"] for p in record["curve"]]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= record["seconds"]
    again = jobs.Job({"loss": "csq", "arm": "single"}, 0, DIGITS, settings)
    document = present.rows({"measures": ["curve"]}, [job, again], [record, plain])
    assert [r["difference"] for r in document["paired"]] == [0, 0, 0]
    assert {r["arm"]: r["seconds"] for r in document["seconds"]} == {
        "nested": record["seconds"],
        "single": plain["seconds"],
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's count of memory")
def test_peak_memory_is_that_beyond_the_start():
    torch.ones(1 << 25)  # 128 MiB, given back
    memory = measures.PeakMemory()
    assert memory.mebibytes() < 16
    torch.ones(1 << 24)
    assert 60 < memory.mebibytes() < 80


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """CIFAR-10's files with 60 records each; a record's pixels are ten times its label."""
    monkeypatch.setattr(cifar10, "RECORDS", 60)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = np.repeat(np.arange(60)[:, None] % 10, 3073, 1).astype(np.uint8)
        rows[:, 1:] *= 10
        (tmp_path / name).write_bytes(rows.tobytes())
    monkeypatch.setenv("NHL_FAST_CIFAR10", str(tmp_path))
    return {"name": "pictures", "size": 48, "queries_per_class": 2, "train_per_class": 5, "database_per_class": 3}


def test_pictures_are_resized_and_counted(pictures):
    data = datasets.build(pictures, 0)
    for split, count in ((data.query, 2), (data.train, 5), (data.database, 3)):
        x, y = split.batch(slice(None))
        assert torch.bincount(y).tolist() == [count] * 10
        assert x.shape[1:] == (3, 48, 48)
        torch.testing.assert_close(x, ((10.0 * y - 127) / 128)[:, None, None, None].expand_as(x))
    assert not torch.equal(data.train.labels, datasets.build(pictures, 1).train.labels)


def test_a_net_trains_along(pictures):
    settings = {"epochs": 1, "code_lengths": [8], "loss": "csq"}
    records = [jobs.run(jobs.Job({}, 0, {**pictures, "net": "conv"}, settings)) for _ in range(2)]
    assert records[0]["map"] == records[1]["map"]
    with pytest.raises(ValueError, match="net: expected one of efficientnet-lite0, conv, got 'vgg'"):
        nets.build("vgg", 48, 0)


def test_without_pictures_their_experiment_is_left_out(monkeypatch, capsys):
    monkeypatch.delenv("NHL_FAST_CIFAR10", raising=False)
    monkeypatch.setattr(datasets, "default_name", lambda: "features")
    assert program.main(["price"]) == 0
    assert "price: left out" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="pictures: NHL_FAST_CIFAR10"):
        datasets.build({"name": "pictures"}, 0)
