"""`nhl-fast evaluate` and `advise` on a run, and on files of codes."""

import json

import numpy as np
import pytest
from command_line import TINY, as_json, output, trained

pytestmark = pytest.mark.usefixtures("no_pictures")  # but those of `run`


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cli") / "run")


def test_evaluate_a_run_and_its_codes_agree(run, capsys):
    a = as_json(capsys, "evaluate", run, "--ties", "expected")
    codes = run / "codes"
    files = [
        f"--{n}={codes / n.replace('-codes', '').replace('-', '_')}.npy"
        for n in ("query-codes", "database-codes", "query-labels", "database-labels")
    ]
    b = as_json(capsys, "evaluate", *files, "--lengths", "5,12,20", "--ties", "expected")
    assert [r["mAP"] for r in b["lengths"]] == [r["mAP"] for r in a["lengths"]]
    assert all("mAP_own_best" in r for r in a["lengths"])
    best = as_json(capsys, "evaluate", *files, "--lengths", "5", "--ties", "best")["lengths"][0]["mAP"]
    worst = as_json(capsys, "evaluate", *files, "--lengths", "5", "--ties", "worst")["lengths"][0]["mAP"]
    assert worst < b["lengths"][0]["mAP"] < best


def test_evaluate_with_ndcg_and_over_the_queries_with_a_relevant_item(run, capsys):
    before = as_json(capsys, "evaluate", run)
    said = as_json(capsys, "evaluate", run, "--ndcg", "5,100", "--mean-over", "relevant")
    assert (before["mean_over"], said["mean_over"]) == ("all", "relevant")
    assert "ndcg@5" not in before["lengths"][0]
    for row, plain in zip(said["lengths"], before["lengths"]):
        assert 0 < row["ndcg@5"] <= 1
        assert row["mAP"] == pytest.approx(plain["mAP"], rel=1e-12)  # every query of the digits has one
    status, out, _ = output(capsys, "report", run, "-o", run / "page.html")
    assert status == 0, out
    page = (run / "page.html").read_text()
    assert "ndcg@100" in page
    assert "Means are over the queries with a relevant item." in page
    (run / "page.html").unlink()
    as_json(capsys, "evaluate", run)


def test_ranks_of_ndcg_beyond_the_database(run, capsys, tmp_path):
    status, _, err = output(capsys, "evaluate", run, "--ndcg", "5,10000")
    assert (status, "--ndcg: expected an integer of at most 1597, got 10000" in err) == (1, True)
    status, _, err = output(capsys, "train", "--out", tmp_path / "r", *TINY, "--ndcg", "10000")
    assert status == 1
    assert "--ndcg: expected" in err


def test_evaluate_other_lengths(run, capsys):
    said = as_json(capsys, "evaluate", run, "--lengths", "3,20")
    assert [r["bits"] for r in said["lengths"]] == [3, 20]
    as_json(capsys, "evaluate", run)


def test_advise(run, capsys):
    curve = {int(b): v for b, v in json.loads((run / "metrics.json").read_text())["prefix_map"].items()}
    target = sorted(curve.values())[10]
    said = as_json(capsys, "advise", run, "--items", "1M", "--min-map", target)
    assert said["bits"] == min(b for b, v in curve.items() if v >= target)
    said = as_json(capsys, "advise", run, "--items", "1000", "--max-latency-ms", "10000", "--max-memory", "2kB")
    assert said["bits"] <= 16
    assert said["latency_seconds"] > 0
    status, _, err = output(capsys, "advise", run, "--items", "1M", "--max-memory", "10kB")
    assert status == 1
    assert "1,000,000 bytes" in err


def test_advise_stages(run, capsys, tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (900, 16), dtype=np.uint8)
    codes[:, 1:] &= 1  # the first byte says nearly all
    np.save(tmp_path / "c.npy", codes)
    said = as_json(capsys, "advise", "--codes", tmp_path / "c.npy", "--recall", "0.5", "-k", "5", "--items", "9k")
    assert (said["codes"], said["items"], said["k"]) == (900, 9000, 5)
    assert said["funnels"][-1]["funnel"] == []
    assert all(f["recall"] >= 0.5 for f in said["funnels"])
    np.save(tmp_path / "q.npy", codes[:40])
    argv = ["advise", "--codes", tmp_path / "c.npy", "--queries", tmp_path / "q.npy", "--recall", "0.5"]
    status, out, _ = output(capsys, *argv)
    assert status == 0
    assert "900 items, the 10 nearest, recall of at least 0.5:" in out
    said = as_json(capsys, "advise", run, "--recall", "0.9")
    assert (said["codes"], said["funnels"][-1]["recall"]) == (1597, 1.0)
