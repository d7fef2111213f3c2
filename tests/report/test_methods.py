"""Which results a report puts side by side, and under which names."""

import dataclasses
import json
import shutil
import statistics

import pytest
from report_cases import Page, edit, maps, metrics, sections_of, stands_alone

from nhl_fast.cli.arguments import main
from nhl_fast.report.groups import group
from nhl_fast.report.records import load_records
from nhl_fast.report.write import write_report

pytest.importorskip("matplotlib")


def test_seeds_are_one_method_and_other_settings_another(runs):
    (section,) = sections_of(*runs["csq"], *runs["dch"])
    assert [(m.name, [r.seed for r in m.records]) for m in section.methods] == [("CSQ", [0, 1, 2]), ("DCH", [0])]
    (section,) = sections_of(*runs["standard"], *runs["plain"])
    assert [m.name for m in section.methods] == ["CSQ, standardize yes", "CSQ, standardize none"]
    assert section.differences() == ["data: standardize"]


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        (lambda c: c.update(topk=100), False),
        (lambda c: c.update(ties="best"), False),
        (lambda c: c.update(mean_over="relevant"), False),
        (lambda c: c.pop("mean_over"), True),  # of an earlier version: all queries
        (lambda c: c.update(topk=10**6), True),  # beyond the database: the whole ranking
    ],
)
def test_other_measures_stand_apart(runs, copy, change, shared):
    edit(copy / "metrics.json", change)
    sections = sections_of(copy, *runs["dch"])
    assert len(sections) == (1 if shared else 2)
    assert len({s.title for s in sections}) == len(sections)


def test_seeds_evaluated_at_other_lengths_share_what_both_have(runs, copy, tmp_path, capsys):
    assert main(["evaluate", str(copy), "--lengths", "5,9"]) == 0
    write_report([copy, runs["csq"][1]], tmp_path / "r.html")
    page = stands_alone((tmp_path / "r.html").read_text())
    summary = page.table("mAP. digits")
    assert summary["Method"] == ["5 bits", "9 bits", "12 bits", "20 bits"]
    assert ["±" in cell for cell in summary["CSQ"]] == [True, False, False, False]
    assert list(page.table("CSQ: codes of the database, mean over 2 seeds")) == ["Length", "5 bits"]
    assert "a line for each of 5 bits" in (tmp_path / "r.html").read_text()
    assert main(["evaluate", str(copy), "--lengths", "9"]) == 0
    write_report([copy, runs["csq"][1]], tmp_path / "r.html")
    stands_alone((tmp_path / "r.html").read_text())


def test_other_rows_stand_apart_but_not_another_validation_share(runs, copy):
    def swap(content):
        lists = content["indices"]
        lists["query"][0], lists["database"][0] = lists["database"][0], lists["query"][0]
        lists["train"] = [i for i in lists["train"] if i not in lists["query"]]
        lists["validation"] = [i for i in lists["validation"] if i not in lists["query"]]
        content["sizes"] = {name: len(rows) for name, rows in lists.items()}

    def keep(content):
        content["indices"]["train"].append(content["indices"]["validation"].pop())
        content["sizes"] = {name: len(rows) for name, rows in content["indices"].items()}

    original = (copy / "split.json").read_text()
    edit(copy / "split.json", swap)
    assert len(sections_of(copy, *runs["dch"])) == 2
    (copy / "split.json").write_text(original)
    edit(copy / "split.json", keep)
    edit(copy / "config.json", lambda c: c.update(data_fingerprint="other"))
    (section,) = sections_of(copy, runs["csq"][1])
    assert [m.name.rpartition(" ")[0] for m in section.methods] == ["CSQ, inputs"] * 2


def test_names_are_distinct_and_exact(runs):
    records = [load_records(runs["dch"][0])[0] for _ in range(5)]
    for record, lr in zip(records, (1e-3, 0.0010000001, 1e-5, 1e-5, 1e-5)):
        record.config["lr"] = lr
    records[3].fingerprint = "abcdefghij"
    records[4].fingerprint = "abcdefghxx"
    assert [m.name for m in group(records)[0].methods] == [
        "DCH, lr 0.001",
        "DCH, lr 0.0010000001",
        f"DCH, lr 1e-05, inputs {records[2].fingerprint[:8]}",
        "DCH, lr 1e-05, inputs abcdefgh (1)",
        "DCH, lr 1e-05, inputs abcdefgh (2)",
    ]


def test_other_places_of_the_data(runs, tmp_path):
    """Of pictures nothing tells one folder of names and labels from another; a seed that is new joins its method."""

    def moved(run, name, place):
        folder = shutil.copytree(run, tmp_path / name)
        edit(folder / "config.json", lambda c: c["data"].update(root=place))
        return folder

    small = [moved(runs["csq"][i], f"small-{i}", "/data/small") for i in (0, 1)]
    large = moved(runs["csq"][0], "large", "/other/large")
    (section,) = sections_of(*small, large)
    found = [(m.name, [r.seed for r in m.records]) for m in section.methods]
    assert found == [("CSQ, root small", [0, 1]), ("CSQ, root large", [1])]
    assert section.differences() == ["data: root"]
    (section,) = sections_of(large, small[1])
    assert [[r.seed for r in m.records] for m in section.methods] == [[0, 1]]
    elsewhere = moved(runs["csq"][0], "elsewhere", "/other/small")
    (section,) = sections_of(small[0], elsewhere)
    assert [m.name for m in section.methods] == [
        f"CSQ, inputs {section.records[0].fingerprint[:8]} ({i})" for i in (1, 2)
    ]
    with pytest.raises(ValueError, match="have equal settings and data"):
        sections_of(small[0], shutil.copytree(small[0], tmp_path / "again"))


def test_one_run_twice_is_refused(runs, copy, tmp_path):
    with pytest.raises(ValueError, match=r"csq-1 and .*copy have equal settings and data and the same seed \(1\)"):
        write_report([runs["csq"][0], copy], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_folders_of_one_name_are_told_apart(runs, tmp_path, no_pictures):
    a = shutil.copytree(runs["csq"][0], tmp_path / "a" / "run")
    b = shutil.copytree(runs["csq"][1], tmp_path / "b" / "run")
    write_report([a, b], tmp_path / "r.html")
    table = Page((tmp_path / "r.html").read_text()).table("Results of this section.")
    assert list(table) == ["Run", "b/run", "a/run"]


def test_a_comparison(runs, tmp_path):
    folder = runs["both"][0]
    content = json.loads((folder / "compare.json").read_text())
    write_report([folder / "compare.json"], tmp_path / "r.html", tmp_path / "t.csv")
    page = stands_alone((tmp_path / "r.html").read_text())
    table = page.table("mAP. digits")
    for side, name in (("nested", "CSQ, nested"), ("single", "CSQ, one model a length")):
        for cell, row in zip(table[name], content["summary"]):
            assert cell.replace("*", "") == f"{row[side]:.4f} ± {row[side + '_std']:.4f}"
    assert f"took {content['time']['total_ratio']:.2f} times as long" in page.text
    assert "ties: expected" in page.text
    assert page.table("Where each result was trained.")["both"][5] == "cpu"
    assert page.table("Data set and split.")["queries"] == ["200"]
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "method,seeds,mAP_5,mAP_5_std,mAP_12,mAP_12_std,mAP_20,mAP_20_std"
    assert float(lines[1].split(",")[-6]) == content["summary"][0]["nested"]


def test_an_older_comparison_and_an_older_run_say_what_was_not_recorded(runs, copy, tmp_path, no_pictures):
    older = tmp_path / "older.json"
    content = json.loads((runs["both"][0] / "compare.json").read_text())
    for name in ("split", "data_spec", "data_fingerprint", "environment"):
        del content[name]
    older.write_text(json.dumps(content))
    edit(copy / "config.json", lambda c: c.pop("environments"))
    edit(copy / "metrics.json", lambda c: c.pop("weights_sha256"))
    write_report([older, runs["both"][0], copy], tmp_path / "r.html")
    page = stands_alone((tmp_path / "r.html").read_text())
    machines = [t for t in page.tables if t["caption"].startswith("Where each")]
    assert [len(t["rows"]) for t in machines] == [5, 5, 2]
    assert machines[0]["rows"][1][3:] == ["not recorded"]
    assert machines[2]["rows"][1] == ["copy", "CSQ", "1", "not recorded"]
    assert machines[1]["rows"][1][3] != "not recorded"
    assert page.table("Data set and split.")["queries"] == ["not recorded"]
    assert "is not recorded for every run" in page.text


def test_records_are_plain(runs):
    (record,) = load_records(runs["dch"][0])
    assert record.map == maps(runs["dch"][0])
    assert record.prefix_map == {int(b): v for b, v in metrics(runs["dch"][0])["prefix_map"].items()}
    assert {f.name for f in dataclasses.fields(record)} >= {"path", "config", "history"}
    result = json.loads((runs["dch"][0] / "log.jsonl").read_text().splitlines()[-1])
    assert record.epochs == result["epoch"] == 2
    best = max(record.history, key=lambda r: statistics.fmean(r["validation"].values()))
    assert record.best_epoch == best["epoch"]
