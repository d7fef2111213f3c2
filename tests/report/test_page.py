"""Reports of real, tiny runs: what the page says, and that it stands alone."""

import base64
import json
import platform
import re
import statistics

import numpy as np
import pytest
import torch
from report_cases import TINY, Page, digests, edit, maps, sections_of, stands_alone

import nhl_fast as nhl
from nhl_fast.cli.arguments import main
from nhl_fast.report.codes import mean_curves, measure_codes
from nhl_fast.report.write import write_report
from nhl_fast.text.markup import html_table, tag
from nhl_fast.training import state

pytest.importorskip("matplotlib")


def test_the_page_stands_alone_and_the_runs_stay_as_they_were(runs, tmp_path):
    before = digests(runs["root"])
    given = [*runs["csq"], *runs["dch"], *runs["plain"], *runs["standard"], *runs["both"]]
    said = write_report(given, tmp_path / "r.html", tmp_path / "t.tex", title="A & <b>", date="today")
    assert digests(runs["root"]) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "t.tex"]
    text = (tmp_path / "r.html").read_text()
    page = stands_alone(text)
    assert next(a["lang"] for n, a in page.elements if n == "html") == "en"
    headings = re.findall(r"<(h[123])[^>]*>", text)
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert headings.count("h2") == 3 + 1
    assert "A & <b>" in page.texts
    assert "today" in page.text
    assert all(t["caption"] for t in page.tables)
    assert str(tmp_path.parent) not in text
    assert str(runs["root"]) not in text
    assert [len(s["methods"]) for s in said["sections"]] == [2, 2, 2]
    # Gallery: digits only, the file as it is; history: every seed of every run.
    png = [base64.b64decode(i.partition("base64,")[2]) for i in page.images if i.startswith("data:image/png")]
    galleries = [(p / "pictures" / "gallery.png").read_bytes() for p in (runs["csq"][1], runs["dch"][0])]
    assert [content for content in png if content in galleries] == galleries
    assert page.text.count("training log; best weights from epoch") == 6
    assert text.count("</details>") == 1
    tex = (tmp_path / "t.tex").read_text()
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 3
    assert "-1}" in tex
    assert "-3}" in tex


def test_the_numbers_are_those_of_the_runs(runs, tmp_path, no_pictures):
    write_report([*runs["dch"], *runs["csq"]], tmp_path / "r.html")
    page = stands_alone((tmp_path / "r.html").read_text())
    summary = page.table("mAP. digits, protocol: 20 queries a class")
    assert summary["Method"] == ["Seeds", "5 bits", "12 bits", "20 bits"]
    csq, dch = [maps(p) for p in runs["csq"]], maps(runs["dch"][0])
    for column, b in enumerate((5, 12, 20), 1):
        values = [m[b] for m in csq]
        mean, best = statistics.fmean(values), max(statistics.fmean(values), dch[b])
        number = f"*{mean:.4f}*" if mean == best else f"{mean:.4f}"
        assert summary["CSQ"][column] == f"{number} ± {statistics.stdev(values):.4f}"
        assert summary["DCH"][column] == (f"*{dch[b]:.4f}*" if dch[b] == best else f"{dch[b]:.4f}")
    assert (summary["CSQ"][0], summary["DCH"][0]) == ("3", "1")
    assert "The methods differ in: loss, centers." in page.text

    log = [json.loads(line) for line in (runs["dch"][0] / "log.jsonl").read_text().splitlines()]
    times = page.table("Training time")["DCH"]
    assert times[1] == "2"
    assert float(times[3]) == pytest.approx(sum(r["seconds"] for r in log), abs=0.006)
    assert float(times[4]) == pytest.approx(statistics.median(r["seconds"] for r in log), abs=0.0006)
    conflicts = page.table("DCH: share of the training steps")
    shares = np.average([r["conflicts"] for r in log], axis=0, weights=[r["steps"] for r in log])
    assert conflicts["5 bits"] == [f"{shares[0, 1]:.0%}", f"{shares[0, 2]:.0%}"]
    assert conflicts["12 bits"] == ["", f"{shares[1, 2]:.0%}"]

    codes = np.load(runs["dch"][0] / "codes" / "database.npy")
    row = nhl.code_quality(codes, (5, 12, 20))[1]
    shown = page.table("DCH: codes of the database")["12 bits"]
    assert shown[0] == f"{row['imbalance']:.3f}"
    assert shown[-3:] == [
        f"{row['distinct_codes']:,}",
        f"{row['collision_rate']:.2%}",
        f"{row['colliding_items']:.1%}".removesuffix(".0"),
    ]

    settings = page.table("All settings.")
    assert settings["loss (differs)"] == ["dch", "csq"]
    assert settings["centers (differs)"] == ["random", "nested"]
    assert settings["epochs"] == ["2", "2"]
    assert settings["seed"] == ["0", "0/1/2"]
    assert set(json.loads((runs["dch"][0] / "config.json").read_text())["config"]) <= {
        key.removesuffix(" (differs)") for key in settings
    }
    facts = page.table("Data set and split.")
    assert (facts["queries"], facts["database rows"], facts["training rows"]) == (["200"], ["1,597"], ["1,438"])
    fingerprint = json.loads((runs["csq"][0] / "config.json").read_text())["data_fingerprint"]
    assert page.table("Results of this section.")["csq-0"] == ["CSQ", "0", "1,438 + 159", fingerprint]
    machine = page.table("Where each result was trained.")["dch-0"]
    assert machine[-3:] == [torch.__version__, np.__version__, platform.python_version()]
    assert machine[5] == "cpu"


def test_one_run_is_neither_best_nor_a_mean(runs, tmp_path, no_pictures):
    write_report(runs["dch"], tmp_path / "r.html")
    page = stands_alone((tmp_path / "r.html").read_text())
    assert page.table("mAP. digits")["DCH"] == [f"{v:.4f}" for v in maps(runs["dch"][0]).values()]
    shown = page.text[page.text.index("}\n \n") :]  # without the style
    assert "mAP" in shown
    assert not re.search("differ|bold|noise", shown)


def test_precision_recall_curves_are_means_over_seeds(runs):
    section = sections_of(*runs["csq"])[0]
    measured = [measure_codes(r) for r in section.records]
    load = [
        [np.load(p / "codes" / f"{n}.npy") for n in ("query", "database", "query_labels", "database_labels")]
        for p in runs["csq"]
    ]
    exact = [nhl.evaluate_retrieval(*codes, lengths=(12,)) for codes in load]
    ranks = exact[0].curve_ranks(200)
    precision, recall = mean_curves(measured)[12]
    for i, curve in enumerate((precision, recall)):
        expected = np.mean([e.pr_curve(12)[i][ranks - 1] for e in exact], axis=0)
        assert np.allclose(curve, expected, atol=1e-12)


def test_without_matplotlib_the_page_says_so(runs, tmp_path, no_pictures):
    write_report([*runs["csq"][:1], *runs["both"]], tmp_path / "r.html")
    page = stands_alone((tmp_path / "r.html").read_text())
    assert "No pictures" in page.text
    assert "nhl-fast[plot]" in page.text
    assert [i[:14] for i in page.images] == ["data:image/png"]  # the gallery is a file of the run


def test_equal_reports_are_equal_files(runs, tmp_path):
    for name in "ab":
        write_report(runs["dch"], tmp_path / f"{name}.html", date="d")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


HOSTILE = '</title><script>alert("1")</script><img src=x onerror=alert(1)>&amp;\u2028\ud800 -->'


def test_hostile_texts_are_only_text(runs, tmp_path, copy):
    edit(copy / "metrics.json", lambda c: c.update(data=HOSTILE, protocol=HOSTILE))
    edit(copy / "split.json", lambda c: c.update(dataset=HOSTILE, protocol=HOSTILE, num_classes=HOSTILE))

    def change(content):
        content["config"].update(weights=HOSTILE, loss_options={HOSTILE: HOSTILE})
        content["data"].update({HOSTILE: HOSTILE, "path": f"/home/somebody/{HOSTILE.replace('/', '')}"})
        content["environments"][0].update(cpu=HOSTILE, versions=HOSTILE)

    edit(copy / "config.json", change)
    odd = copy.rename(tmp_path / "<i>&amp;")
    write_report([odd, *runs["csq"][1:2]], tmp_path / "r.html", tmp_path / "t.md", title=HOSTILE)
    page = stands_alone((tmp_path / "r.html").read_text())
    said = HOSTILE.replace("\ud800", "?")
    assert sum(said in text for text in page.texts) >= 6
    assert "<i>&amp;" in page.texts
    assert "somebody" not in page.text


def test_html_is_escaped_by_construction():
    assert tag("p", "<&\"'>", None, ["a", tag("b", 1)], class_='"', hidden=None) == (
        '<p class="&quot;">&lt;&amp;&quot;&#x27;&gt;a<b>1</b></p>'
    )
    table = html_table("c", ["h"], [["r", ("<x>", {"colspan": 2})]], row_classes=["k"])
    assert '<tr class="k"><th scope="row">r</th><td colspan="2">&lt;x&gt;</td></tr>' in table


def test_the_machine_is_recorded_and_a_change_of_it_too(runs, tmp_path, monkeypatch, no_pictures):
    (first,) = json.loads((runs["csq"][0] / "config.json").read_text())["environments"]
    assert first["from_epoch"] == 1
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["nhl_fast"] == nhl.__version__
    assert first["threads"] == torch.get_num_threads()
    assert not {"host", "hostname", "user"} & set(first)

    folder, longer = tmp_path / "run", [*TINY[2:], "--epochs"]
    assert main(["train", "--out", str(folder), *TINY]) == 0
    assert main(["train", "--out", str(folder), *longer, "3", "--resume"]) == 0
    assert len(json.loads((folder / "config.json").read_text())["environments"]) == 1
    real = state.environment
    monkeypatch.setattr(state, "environment", lambda device: {**real(device), "cpu": "Another"})
    assert main(["train", "--out", str(folder), *longer, "5", "--resume"]) == 0
    found = json.loads((folder / "config.json").read_text())["environments"]
    assert [e["from_epoch"] for e in found] == [1, 4]
    assert [e["cpu"] for e in found] == [first["cpu"], "Another"]
    write_report([folder], tmp_path / "r.html")
    table = Page((tmp_path / "r.html").read_text()).table("Where each")
    assert list(table) == ["Run", "run", "run, from epoch 4"]

    edit(folder / "config.json", lambda c: c.update(environments=c["environments"][1:]))  # an older run, resumed
    write_report([folder], tmp_path / "r.html")
    table = Page((tmp_path / "r.html").read_text()).table("Where each")
    assert list(table) == ["Run", "run, epochs 1 to 3", "run, from epoch 4"]
