"""Reports of real, tiny runs: what the page says, that it stands alone, and that damage is named."""

import base64
import dataclasses
import hashlib
import json
import platform
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.cli.arguments import main
from nhl_fast.core import extras
from nhl_fast.report.codes import mean_curves, measure_codes
from nhl_fast.report.groups import group
from nhl_fast.report.records import load_records
from nhl_fast.report.write import write_report
from nhl_fast.text.markup import html_table, tag
from nhl_fast.training import trainer as train

pytest.importorskip("matplotlib")

TINY = ["--epochs", "2", "--hidden", "16", "--lengths", "5,12,20"]
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """An HTML page as a tree of facts; fails where tags do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.tables, self.images = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name not in VOID:
            self.open.append(name)
        if name == "table":
            self.tables.append({"caption": "", "rows": []})
        elif name == "tr":
            self.tables[-1]["rows"].append([])
        elif name in ("th", "td"):
            assert name == "td" or attributes["scope"] in ("col", "row")
            self.tables[-1]["rows"][-1].append("")
        elif name == "img":
            assert attributes["alt"].strip()
            self.images.append(attributes["src"])

    def handle_endtag(self, name):
        assert self.open
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"th", "td"} & set(self.open):
            bold = "*" if "strong" in self.open else ""
            self.tables[-1]["rows"][-1][-1] += f"{bold}{data}{bold}"

    @property
    def text(self):
        return " ".join(self.texts)

    def table(self, start):
        """The first table whose caption starts so: {row's header: cells}, the head under its first header."""
        table = next(t for t in self.tables if t["caption"].startswith(start))
        return {row[0]: row[1:] for row in table["rows"]}


def stands_alone(text):
    """The page, parsed, with no way out of it and nothing to run."""
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for name, attributes in page.elements:
        assert name not in {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "video", "audio"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src", "srcset", "action", "data", "poster", "background", "cite"):
                assert value.startswith("data:image/") or value[1:] in ids
            assert "url(" not in (value if key != "src" else "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"(?:https?:)?//", re.sub(r'src="data:[^"]*"', "", text))
    policy = next(a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for source in page.images:
        kind, _, content = source.removeprefix("data:image/").partition(";base64,")
        content = base64.b64decode(content, validate=True)
        if kind == "png":
            assert content.startswith(b"\x89PNG")
            continue
        assert kind == "svg+xml"
        assert b"<!DOCTYPE" not in content
        for element in ElementTree.fromstring(content).iter():
            assert not element.tag.endswith("script")
            for key, value in element.attrib.items():
                assert not key.endswith("href") or value.startswith("#")
                assert not re.search(r"url\((?!#)", value)
    return page


def seeds_of(folder, *argv, seeds=(0,)):
    paths = []
    for seed in seeds:
        paths.append(folder.with_name(f"{folder.name}-{seed}"))
        assert main(["train", "--out", str(paths[-1]), "--seed", str(seed), *TINY, *map(str, argv)]) == 0
    return paths


def hide_matplotlib(monkeypatch):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: csq (three seeds) and dch on digits, features with and without standardisation, a comparison."""
    root = tmp_path_factory.mktemp("runs")
    labels = torch.arange(300) % 3
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, generator=generator)[labels] + 0.4 * torch.randn(300, 6, generator=generator)
    np.savez(root / "mine.npz", features=features.numpy(), labels=labels.numpy())
    mine = ["--data", "features", "--path", root / "mine.npz", "--queries-per-class", 10, "--train-per-class", 50]
    found = {
        "csq": seeds_of(root / "csq", seeds=(1, 0)),
        "dch": seeds_of(root / "dch", "--loss", "dch", "--centers", "random"),
        "bare": seeds_of(root / "bare", "--no-evaluate"),
    }
    with pytest.MonkeyPatch.context() as patch:  # pictures take most of the time
        hide_matplotlib(patch)
        found["csq"] += seeds_of(root / "csq", seeds=(2,))
        found["plain"] = seeds_of(root / "plain", *mine)
        found["standard"] = seeds_of(root / "standard", *mine, "--standardize")
    assert main(["compare", *TINY, "--seeds", "2", "--out", str(root / "both")]) == 0
    return {**found, "both": [root / "both"], "root": root}


@pytest.fixture
def copy(runs, tmp_path):
    """A run folder to damage."""
    return shutil.copytree(runs["csq"][0], tmp_path / "copy")


@pytest.fixture
def no_pictures(monkeypatch):
    """As without matplotlib: quick, too."""
    hide_matplotlib(monkeypatch)


def metrics(path):
    return json.loads((path / "metrics.json").read_text())


def maps(path):
    return {row["bits"]: row["mAP"] for row in metrics(path)["lengths"]}


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sections_of(*paths):
    return group([record for path in paths for record in load_records(path)])


# ------------------------------------------------------------------------------------------------------- the page


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
    assert png == [(p / "pictures" / "gallery.png").read_bytes() for p in (runs["csq"][1], runs["dch"][0])]
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


# ------------------------------------------------------------------------------------------ what stands together


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


def test_one_run_twice_is_refused(runs, copy, tmp_path):
    with pytest.raises(ValueError, match=r"csq-1 and .*copy have equal settings and the same seed \(1\)"):
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


# -------------------------------------------------------------------------------------------------- what is recorded


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
    real = train.environment
    monkeypatch.setattr(train, "environment", lambda device: {**real(device), "cpu": "Another"})
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


# ---------------------------------------------------------------------------------------------------- the command


def output(capsys, *argv):
    status = main([str(a) for a in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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
    "config lengths": (change("config.json", lambda c: c["config"].update(code_lengths=7)), "config.json"),
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


def test_records_are_plain(runs):
    (record,) = load_records(runs["dch"][0])
    assert record.map == maps(runs["dch"][0])
    assert record.prefix_map == {int(b): v for b, v in metrics(runs["dch"][0])["prefix_map"].items()}
    assert {f.name for f in dataclasses.fields(record)} >= {"path", "config", "history"}
    result = json.loads((runs["dch"][0] / "log.jsonl").read_text().splitlines()[-1])
    assert record.epochs == result["epoch"] == 2
    best = max(record.history, key=lambda r: statistics.fmean(r["validation"].values()))
    assert record.best_epoch == best["epoch"]
