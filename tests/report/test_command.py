"""`nhl-fast report`, and damaged runs and bad arguments: each is named in one line."""

import json
import shutil
import statistics

import numpy as np
import pytest
from command_line import output
from report_cases import digests, edit, maps

from nhl_fast.report.write import write_report

pytest.importorskip("matplotlib")


def test_the_command(runs, tmp_path, capsys, no_pictures):
    status, out, err = output(capsys, "report", *runs["csq"], "-o", tmp_path / "r.html", "--table", tmp_path / "t.md")
    assert (status, err) == (0, "")
    assert "CSQ" in out
    assert str(tmp_path / "t.md") in out
    assert (tmp_path / "t.md").read_text().startswith("mAP. digits, protocol: 20 queries")
    status, out, _ = output(capsys, "report", *runs["csq"], "--table", tmp_path / "t.csv", "--json")
    said = json.loads(out)
    (method,) = said["sections"][0]["methods"]
    assert method["seeds"] == [0, 1, 2]
    values = [maps(p)[12] for p in runs["csq"]]
    assert method["mAP"]["12"] == {
        "mean": pytest.approx(statistics.fmean(values)),
        "std": pytest.approx(statistics.stdev(values)),
        "seeds": 3,
    }
    assert said["page"] is None


def test_a_cut_ranking_is_named(runs, copy, tmp_path):
    edit(copy / "metrics.json", lambda c: c.update(topk=100))
    write_report([copy], table=tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    assert "mAP@100 at code length" in text
    assert "the first 100 of the ranking" in text


def replace(name, text):
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def change(name, update):
    return lambda folder: edit(folder / name, update)


def line(number, update):
    def apply(folder):
        records = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
        update(records[number])
        (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    return apply


def array(name, value):
    return lambda folder: np.save(folder / "codes" / f"{name}.npy", value)


DAMAGE = {
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "is not evaluated yet: run 'nhl-fast evaluate "),
    "no split": (lambda f: (f / "split.json").unlink(), "holds no split.json"),
    "no log": (lambda f: (f / "log.jsonl").unlink(), "holds no log.jsonl"),
    "no codes": (lambda f: shutil.rmtree(f / "codes"), "holds no codes/query.npy"),
    "metrics cut": (replace("metrics.json", '{"data": "dig'), "metrics.json: not valid JSON"),
    "metrics list": (replace("metrics.json", "[]"), "metrics.json holds no object"),
    "metrics foreign": (replace("metrics.json", "{}"), "metrics.json: lacks 'data'"),
    "metrics digits": (replace("metrics.json", '{"data": ' + "1" * 5000 + "}"), "metrics.json"),
    "metrics nan": (change("metrics.json", lambda c: c["lengths"][0].update(mAP=float("nan"))), "mAP at 5 bits"),
    "metrics above 1": (change("metrics.json", lambda c: c["prefix_map"].update({"3": 1.5})), "prefix_map[3]"),
    "metrics no length": (change("metrics.json", lambda c: c.update(lengths=[])), "lacks 'mAP'"),
    "metrics text": (change("metrics.json", lambda c: c["lengths"][0].update(mAP="high")), "mAP at 5 bits"),
    "metrics long": (change("metrics.json", lambda c: c["prefix_map"].update({"900": 0.5})), "beyond the 20 bits"),
    "metrics ties": (change("metrics.json", lambda c: c.update(ties="coin")), "ties: expected one of"),
    "metrics others": (change("metrics.json", lambda c: c["lengths"][1].update(mAP=0.5)), "metrics.json says 0.5"),
    "split cut": (replace("split.json", '{"format"'), "split.json: not valid JSON"),
    "split foreign": (change("split.json", lambda c: c.update(format="other")), "not a split file"),
    "split sizes": (change("split.json", lambda c: c["indices"]["query"].pop()), "split.json"),
    "split other data": (change("split.json", lambda c: c.update(dataset="cifar10")), "is for other data"),
    "log cut": (replace("log.jsonl", '{"epoch": 1'), "log.jsonl: line 1 is not the record of an epoch"),
    "log empty": (replace("log.jsonl", ""), "log.jsonl: holds no epoch"),
    "log bytes": (replace("log.jsonl", b"\xff\xfe\x00"), "log.jsonl"),
    "log number": (replace("log.jsonl", "7\n"), "line 1 is not"),
    "log losses": (line(1, lambda r: r["losses"].pop()), "line 2 is not the record of an epoch"),
    "log words": (line(0, lambda r: r.update(losses=["a", "b", "c"])), "log.jsonl"),
    "log epoch": (line(1, lambda r: r.update(epoch=7)), "epoch: expected 2"),
    "log seconds": (line(0, lambda r: r.update(seconds=None)), "seconds"),
    "log steps": (line(0, lambda r: r.update(steps=0)), "steps"),
    "log huge": (line(0, lambda r: r.update(steps=10**400)), "log.jsonl"),
    "log conflicts": (line(0, lambda r: r.update(conflicts=[[2]])), "conflicts"),
    "log validation": (line(0, lambda r: r["validation"].update({"5": -1})), "validation[5]"),
    "config foreign": (replace("config.json", "{}"), "config.json is not the settings"),
    "config setting": (change("config.json", lambda c: c["config"].update(speed=9)), "unknown setting speed"),
    "config lengths": (change("config.json", lambda c: c["config"].update(code_lengths="7")), "config.json"),
    "config machine": (change("config.json", lambda c: c.update(environments=[3])), "config.json is damaged"),
    "config epoch": (change("config.json", lambda c: c["environments"][0].update(from_epoch="x")), "from_epoch"),
    "codes cut": (lambda f: (f / "codes" / "query.npy").write_bytes(b"\x93NUMPY"), "query.npy is no readable"),
    "codes dtype": (array("query", np.zeros((200, 3))), "codes: q_codes"),
    "codes rows": (array("database", np.zeros((5, 3), np.uint8)), "codes: db_labels"),
    "codes narrow": (array("database", np.zeros((1597, 1), np.uint8)), "codes: lengths"),
    "codes others": (array("query", np.zeros((200, 3), np.uint8)), "but metrics.json says"),
    "gallery": (replace("pictures/gallery.png", b"GIF89a"), "gallery.png is damaged"),
    "weights": (replace("model.safetensors", "others"), "was trained on after its evaluation"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folders_are_named_in_one_line(kind, copy, tmp_path, capsys, no_pictures):
    damage, message = DAMAGE[kind]
    damage(copy)
    before = digests(tmp_path)
    (tmp_path / "r.html").write_text("old")
    status, out, err = output(capsys, "report", copy, "-o", tmp_path / "r.html", "--table", tmp_path / "t.md")
    assert (status, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("nhl-fast report: ")
    assert message in err
    assert str(copy) in err
    assert (tmp_path / "r.html").read_text() == "old"
    (tmp_path / "r.html").unlink()
    assert digests(tmp_path) == before


COMPARISON_DAMAGE = {
    "foreign": (lambda c: [c.clear(), c.update(a=1)], "is no comparison"),
    "no seeds": (lambda c: c.update(seeds=[]), "is no comparison"),
    "seeds": (lambda c: c["seeds"].__setitem__(0, 7), "compare.json"),
    "side": (lambda c: c["seeds"][0].pop("single"), "lacks 'single'"),
    "time": (lambda c: c["seeds"][0]["nested"].update(seconds=0), "seconds"),
    "map": (lambda c: c["seeds"][0]["nested"]["map"].update({"5": 7}), "mAP at 5 bits"),
    "length": (lambda c: c["seeds"][0]["nested"]["map"].update({"500": 0.5}), "beyond 20 bits"),
    "split": (lambda c: c.update(split=[1]), "split: expected dict"),
    "sizes": (lambda c: c["split"].update(query="many"), "query"),
    "machine": (lambda c: c.update(environment=3), "environment: expected dict"),
    "fingerprint": (lambda c: c.update(data_fingerprint=5), "data_fingerprint: expected str"),
    "config": (lambda c: c["config"].update(loss="none"), "loss: expected one of"),
    "twice": (lambda c: c["seeds"].append(c["seeds"][0]), "the same seed (0)"),
}


@pytest.mark.parametrize("kind", COMPARISON_DAMAGE)
def test_damaged_comparisons_are_named_in_one_line(kind, runs, tmp_path, capsys):
    folder = shutil.copytree(runs["both"][0], tmp_path / "both")
    damage, message = COMPARISON_DAMAGE[kind]
    edit(folder / "compare.json", damage)
    status, out, err = output(capsys, "report", folder, "--table", tmp_path / "t.md")
    assert (status, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert str(folder) in err
    assert not (tmp_path / "t.md").exists()


BAD = [
    ([], "-o PAGE.html"),
    (["-o", "{tmp}/r.pdf"], "--output: expected a file name ending in .html"),
    (["--table", "{tmp}/t.xlsx"], "table: expected a file name ending in .tex or .md or .csv"),
    (["-o", "{tmp}/none/r.html"], "no such folder"),
    (["-o", "{tmp}/r.html", "--table", "{tmp}/none/t.md"], "no such folder"),
    (["-o", "{tmp}/folder.html"], "is a folder"),
    (["--table", "{run}/metrics.csv"], "take another name"),
    (["{both}", "--table", "{tmp}/t.csv"], "one .csv holds one table"),
    (["{tmp}/nowhere", "-o", "{tmp}/r.html"], "nowhere does not exist"),
    (["{tmp}/folder.html", "-o", "{tmp}/r.html"], "folder.html is no run folder"),
    (["{tmp}/text.json", "-o", "{tmp}/r.html"], "text.json: not valid JSON"),
    (["{bare}", "-o", "{tmp}/r.html"], "is not evaluated yet: run 'nhl-fast evaluate"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(b[0]) or "nothing" for b in BAD])
def test_bad_input_is_said_in_one_line(argv, message, runs, tmp_path, capsys):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "text.json").write_text("hello")
    before, kept = sorted(tmp_path.rglob("*")), digests(runs["root"])
    names = {"tmp": tmp_path, "run": runs["csq"][0], "both": runs["both"][0], "bare": runs["bare"][0]}
    status, out, err = output(capsys, "report", runs["csq"][0], *(a.format(**names) for a in argv))
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert digests(runs["root"]) == kept


@pytest.mark.parametrize("runs_given", [[], "runs/a", None, 7])
def test_bad_runs(runs_given, tmp_path):
    with pytest.raises(ValueError, match="runs: expected at least one"):
        write_report(runs_given, tmp_path / "r.html")
    with pytest.raises(ValueError, match="page, table"):
        write_report([tmp_path])
