"""The Hamming benchmarks: peers give the reference's results, and what is wrong is not timed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.common import data, peers, record
from bench.kernels import floors
from bench.search import device
from nhl_fast import native
from nhl_fast.retrieval.hamming import search
from nhl_fast.retrieval.metrics import evaluate_retrieval

ROOT = Path(__file__).resolve().parents[1]


def rows(n, num_bytes, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, num_bytes), dtype=np.uint8)


@pytest.mark.parametrize("name", ["faiss", "usearch", "numpy", "torch"])
@pytest.mark.parametrize("num_bytes", [4, 8, 16, 32])
def test_peers_agree_with_the_reference(name, num_bytes):
    if name in ("faiss", "usearch"):
        pytest.importorskip(name)
    threads, make = torch.get_num_threads(), peers.SEARCHERS[name]
    for n, k in ((1, 1), (50, 50), (1000, 10), (1000, 999)):
        database = rows(n, num_bytes, 0)
        searcher = make(database, 1)
        for num_queries in (1, 2, 17):
            queries = rows(num_queries, num_bytes, 1)
            expected = search(torch.from_numpy(queries), torch.from_numpy(database), k, backend="reference")[0]
            found = searcher(queries, k)
            assert found.shape == expected.shape
            assert np.array_equal(np.sort(found, axis=1), expected.numpy())
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["product", "table", "faiss"])
def test_device_peers_agree_with_the_reference(name, monkeypatch):
    database, queries = data.random_rows(300, 40, 0), data.random_rows(5, 40, 1)
    if name == "faiss":
        # As if it had a GPU; the calls and the conversions are those of the card.
        faiss = pytest.importorskip("faiss")
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        with pytest.raises(ImportError, match="without GPUs"):
            peers.faiss_device_searcher(database)
        flat = faiss.IndexBinaryFlat
        monkeypatch.setattr(faiss, "GpuIndexBinaryFlat", lambda resources, bits: flat(bits), raising=False)
        searchers = [peers.faiss_device_searcher(database)]
    elif name == "table":
        searchers = [peers.table_searcher(database, chunk_bytes) for chunk_bytes in (1, 2**20)]
    else:
        searchers = [peers.device_searcher(database, torch.float32, chunk_bytes) for chunk_bytes in (1, 2**20)]
    for k in (1, 7, 300):
        expected = search(queries, database, k, backend="reference")[0]
        for searcher in searchers:
            found = searcher(queries, k)
            assert found.dtype == torch.int32
            assert torch.equal(found.sort(1).values, expected)


@pytest.mark.parametrize("form", ["ids", "sets"])
def test_average_precision_of_the_device_peer(form):
    generator = torch.Generator().manual_seed(0)
    codes = [torch.from_numpy(rows(n, 2, n)) for n in (7, 90)]
    labels = [torch.randint(0, 3, (len(c),), generator=generator) for c in codes]
    if form == "sets":
        labels = [torch.rand(len(c), 5, generator=generator) < 0.3 for c in codes]
    for topk in (11, 90):
        for chunk_bytes in (1, 2**20):
            found = peers.device_map(*codes, *labels, (8, 16), topk, torch.float32, chunk_bytes)
            expected = evaluate_retrieval(*codes, *labels, (8, 16), topk, backend="reference").average_precision
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def small(**changes):
    settings = {
        "databases": ((500, 128), (300, 32)),
        "queries": (70, 1),
        "ks": (1, 300, 400),
        "peer_ks": (1, 300, 400),
        "protocols": (("ids", 10, 200, 4, None, 50), ("sets", 10, 200, 6, 1.5, None)),
        "copied": 1 << 12,
        "chunk_bytes": 1 << 16,
    }
    return device.Sizes(**{**settings, **changes})


def measured(seconds=60.0, backend="auto", **changes):
    saved = []
    run = device.measure("cpu", backend, seconds, saved.append, small(**changes), budget_s=0.0)
    assert saved[-1] is run.rows
    return run


def test_device_benchmark_on_the_cpu():
    run = measured()
    assert not run.wrong
    assert not run.missed
    timed = [row for row in run.rows if "contender" in row]
    cases = [(r["n"], r["bits"], r["queries"], r["k"]) for r in timed if r["part"] == "search"]
    # k 400 is more than the second database has.
    expected = [(500, 128, q, k) for q in (70, 1) for k in (1, 300, 400)]
    expected += [(300, 32, q, k) for q in (70, 1) for k in (1, 300)]
    assert cases == [case for case in expected for _ in range(3)]
    assert [r["case"] for r in timed if r["part"] == "evaluation"] == ["ids", "ids", "sets", "sets"]
    search_rows = [r["contender"] for r in timed if r["part"] == "search"]
    assert search_rows == ["nhl_fast", "torch product, topk", "torch xor, table, topk"] * len(expected)
    ours = None
    for row in timed:
        ours = row if row["contender"] == "nhl_fast" else ours
        if row is not ours:
            assert row["nhl_fast_is_faster_by"] == pytest.approx(row["ms"] / ours["ms"], rel=0.1, abs=0.01)
        lengths = 5 if row["part"] == "evaluation" else 1
        assert row["runs"] >= 1
        pairs = row["queries"] * row["n"] * lengths
        assert row["giga_pairs_s"] == pytest.approx(pairs / row["ms"] / 1e6, rel=0.01, abs=1e-3)
    summary = run.summary()
    assert "n 500 bits 128 queries 70 k 300: nhl_fast" in summary
    assert "not reached" not in summary


def test_wrong_results_are_not_timed(monkeypatch):

    def checked(change):
        def changed(queries, database, k, **options):
            found = [t.clone() for t in search(queries, database, k, **options)]
            if options["backend"] != "reference":
                change(*found)
            return found

        monkeypatch.setattr(device, "search", changed)
        run = measured(databases=((400, 32),), ks=(40,), peer_ks=(40,), queries=(3,), protocols=())
        assert run.wrong == ["search n 400, 32 bits, nq 3, k 40"]
        assert not [row for row in run.rows if "contender" in row]
        assert "FAILED: search n 400" in run.summary()
        return run.rows[-1]["note"]

    assert "distances differ from those of torch product, topk" in checked(lambda d, ids: d[2, 7].add_(1))
    assert "not that of its id" in checked(lambda d, ids: ids[1, 3].add_(1).remainder_(400))


def test_wrong_average_precision_is_not_timed(monkeypatch):

    def changed(*arguments, **options):
        result = evaluate_retrieval(*arguments, **options)
        result.average_precision[0, 0] += 1e-6
        return result

    monkeypatch.setattr(device, "evaluate_retrieval", changed)
    run = measured(databases=((50, 8),), ks=(1,), queries=(1,))
    assert run.wrong == ["evaluation ids", "evaluation sets"]
    assert {row["part"] for row in run.rows if "contender" in row} == {"search"}


def test_time_that_is_over_starts_nothing():
    run = measured(seconds=0.0)
    assert [row["part"] for row in run.rows] == ["ceilings"]
    assert run.missed == ["search n 500, 128 bits", "search n 300, 32 bits", "evaluation ids", "evaluation sets"]
    assert "not reached in the time: search n 500" in run.summary()


def test_a_case_that_would_not_end_in_time_is_left_out():
    run = device.Measurement("cpu", "auto", 60.0, small(), lambda rows: None)
    run.popcounts = 1e9
    run.case("short", lambda: None, counts=10**9)
    run.case("long", lambda: pytest.fail("started"), counts=10**10)
    assert run.missed == ["long"]


def test_ties_given_in_another_order_are_noticed():
    database = torch.zeros(6, 1, dtype=torch.uint8)
    queries = database[:1]
    right = search(queries, database, 4, backend="reference")
    device.check_search(queries, database, 4, right, {"a peer": right[0]})
    for ids, what in (([0, 2, 1, 3], "not in the order"), ([0, 1, 2, 4], "ids differ from the reference's")):
        with pytest.raises(device.WrongResult, match=what):
            device.check_search(queries, database, 4, (right[0], torch.tensor([ids])), {})


def test_protocols_have_labels_as_wide_as_they_say():
    codes, labels = data.protocol(200, 3000, 80, 2.9, 32)
    assert [tuple(c.shape) for c in codes] == [(200, 4), (3000, 4)]
    assert [tuple(label.shape) for label in labels] == [(200, 80), (3000, 80)]
    assert 1.5 < labels[1].float().sum(1).mean() <= 3.1  # the most common classes are held back
    (_, ids) = data.protocol(20, 300, 7, None, 16)[1]
    assert ids.shape == (300,)
    assert sorted(set(ids.tolist())) == list(range(7))


def test_floors():
    assert floors.search(200, 10**6, 128, 10) == (16 * (10**6 + 200) + 12 * 200 * 10, 200 * 10**6 * 4)
    assert floors.search(1, 10, 33, 1) == (5 * 11 + 12, 20)
    # 128 bits are four words; 8 and 16 end inside the first.
    assert floors.evaluation(3, 10, (8, 16, 32, 64, 128), label_bytes=1) == (17 * 13, 3 * 10 * 6)
    assert floors.evaluation(1, 1, (12,))[1] == 1


def test_peers_only_where_they_are_wanted():
    run = measured(databases=((500, 128),), queries=(2, 70), peer_ks=(300,), peer_pairs=1000, protocols=())
    found = [(r["contender"], r["queries"], r["k"]) for r in run.rows if "torch" in r.get("contender", "")]
    table = "torch xor, table, topk"
    assert found == [("torch product, topk", 2, 300), (table, 2, 300), (table, 70, 300)]
    assert len([r for r in run.rows if r.get("contender") == "nhl_fast"]) == 6


def test_rows_are_written(tmp_path, monkeypatch):
    record.write("hamming_cuda", [{"a": 1}, {"a": 2, "b": "x"}], tmp_path / "new", popcounts=7)
    document = json.loads((tmp_path / "new/hamming_cuda.json").read_text())
    assert document["rows"] == [{"a": 1}, {"a": 2, "b": "x"}]
    assert document["popcounts"] == 7
    assert document["environment"]["versions"]["torch"] == torch.__version__
    with open(tmp_path / "new/hamming_cuda.csv", newline="") as handle:
        assert list(csv.DictReader(handle)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x"}]
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    record.write("head_step", [{"a": 1}])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["head_step.csv", "head_step.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("module", "code"),
    [(["bench.search.hamming", "--device", "cuda"], 1), (["bench.gpu", "--parts", "hamming"], 2)],
)
def test_without_cuda_it_refuses(module, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *module],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"OUT": str(tmp_path)},
    )
    assert done.returncode == code
    assert "PyTorch sees no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason="needs a GPU")
def test_device_benchmark_on_the_gpu():
    run = device.measure("cuda", "cuda", 60.0, lambda rows: None, small(), budget_s=0.0)
    assert not run.wrong
    assert not [row for row in run.rows if "note" in row]
