"""What a report draws of codes: its numbers, codes in the plane, percent, names of data in titles."""

import re

import numpy as np
import pytest
import torch
from command_line import hide_matplotlib, output
from report_cases import Page, maps, sections_of, seeds_of

import nhl_fast as nhl
from nhl_fast.core import extras
from nhl_fast.pictures import plots
from nhl_fast.report import code_parts
from nhl_fast.report.codes import mean_confusion, mean_distances, measure_codes
from nhl_fast.report.pictures import plot_method_grid
from nhl_fast.report.write import write_report

pytest.importorskip("matplotlib")


def stored(path):
    return [np.load(path / "codes" / f"{n}.npy") for n in ("query", "database", "query_labels", "database_labels")]


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    """A run of multi-label features with names of classes; class 3 has one query or none."""
    root = tmp_path_factory.mktemp("hot")
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(240, 4, generator=generator) < torch.tensor([0.4, 0.4, 0.3, 0.02])).to(torch.uint8)
    features = labels.float() @ torch.randn(4, 6, generator=generator) + 0.3 * torch.randn(
        240, 6, generator=generator
    )
    names = np.array(["cat", "dog", "sea", "rare"])
    np.savez(root / "my.photos.npz", features=features.numpy(), labels=labels.numpy(), class_names=names)
    with pytest.MonkeyPatch.context() as patch:
        hide_matplotlib(patch)
        (run,) = seeds_of(root / "run", "--data", "features", "--path", root / "my.photos.npz", "--loss", "dsh")
    return run


@pytest.fixture
def drawn(monkeypatch):
    """{name of a plot: [(arguments, options)]}, with nothing drawn."""
    calls = {}
    for name in ("plot_distances", "plot_bits", "plot_confusion", "plot_projection", "plot_at_n", "plot_pr_curves"):
        monkeypatch.setattr(plots, name, lambda *a, name=name, **k: calls.setdefault(name, []).append((a, k)))
    return calls


def test_what_is_drawn_is_measured_from_the_codes_of_all_seeds(runs):
    measured = [measure_codes(record) for record in sections_of(*runs["csq"])[0].records]
    codes = [stored(path) for path in sorted(runs["csq"])]
    tables = [nhl.class_confusion(*arrays, lengths=(5, 20), k=10) for arrays in codes]
    for b, table in mean_confusion(measured).items():
        assert table == pytest.approx(np.mean([of_seed[b] for of_seed in tables], 0), nan_ok=True)
    assert list(mean_confusion(measured)) == [5, 20]
    for b, (different, same) in mean_distances(measured).items():
        count = np.zeros((2, b + 1), np.int64)
        for q, d, q_labels, d_labels in codes:
            bits = [np.unpackbits(rows, axis=1, count=b).astype(np.int8) for rows in (q, d)]
            distances = (bits[0][:, None] != bits[1]).sum(2)
            equal = q_labels[:, None] == d_labels
            count += [np.bincount(distances[kind], minlength=b + 1) for kind in (~equal, equal)]
        assert [different.tolist(), same.tolist()] == count.tolist()
    ones = np.unpackbits(codes[0][1], axis=1, count=20).mean(0)
    assert measured[0].bits[0] == pytest.approx(ones)


def test_a_multi_label_run_with_names(hot, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(code_parts, "svg", lambda draw, alt: draw(None) or "")
    monkeypatch.setattr(code_parts, "raster", lambda draw, alt: draw(None) or "")
    monkeypatch.setattr(code_parts, "figure", lambda image, said, wide: said)
    monkeypatch.setattr(code_parts, "project_codes", lambda codes, lengths, method: dict.fromkeys(lengths, codes))
    (section,) = sections_of(hot)
    measured = {id(record): measure_codes(record) for record in section.records}
    q, d, q_labels, d_labels = stored(hot)
    code_parts.confusion(section, measured)
    ((table,), options) = (lambda a, k: ((a[0],), k))(*drawn["plot_confusion"][0])
    assert options["class_names"] == ["cat", "dog", "sea", "rare"]
    assert options["title"] == "my.photos: DSH"
    for b in (5, 20):
        np.testing.assert_allclose(
            table[b], nhl.class_confusion(q, d, q_labels, d_labels, lengths=(b,), k=10)[b], atol=1e-12
        )
    (said,) = code_parts.projection(section, measured, "tsne")
    assert f"{len(d)} codes of the database by t-SNE" in said
    points, texts = drawn["plot_projection"][0][0][0], drawn["plot_projection"][0][0][1]
    expected = []
    for row in d_labels:
        own = [name for name, value in zip(("cat", "dog", "sea", "rare"), row) if value]
        expected.append(own[0] if len(own) == 1 else "several classes" if own else "no class")
    assert texts == expected
    assert np.array_equal(points[20], d)


def test_methods_side_by_side_show_the_curves_that_went_in(tmp_path, figures):
    ranks = np.array([1, 3, 10, 50])
    curves = {
        name: {b: (np.linspace(0.9, last, 4), ranks) for b in (5, 12)} for name, last in (("a", 0.2), ("b", 0.4))
    }
    del curves["b"][5]
    plot_method_grid(
        curves, (5, 12), tmp_path / "p.png", title="mine: precision at N", y="Precision at N", ranks=True
    )
    assert figures[0].get_suptitle() == "mine: precision at N"
    for axes, names in zip(figures[0].axes, (["a"], ["a", "b"])):
        assert [line.get_label() for line in axes.lines] == names
        assert axes.get_xscale() == "log"
        for line in axes.lines:
            assert line.get_xdata().tolist() == ranks.tolist()
            assert line.get_ydata().tolist() == curves[line.get_label()][12][0].tolist()


def test_projection_takes_a_thousand_rows_and_leaves_out_short_lengths(runs, monkeypatch, drawn):
    seen = []
    monkeypatch.setattr(code_parts, "raster", lambda draw, alt: draw(None) or "")
    monkeypatch.setattr(code_parts, "figure", lambda image, said, wide: said)
    monkeypatch.setattr(code_parts, "project_codes", lambda *a: seen.append(a) or dict.fromkeys(a[1], a[0]))
    (section,) = sections_of(runs["dch"][0])
    record = section.records[0]
    measured = {id(record): measure_codes(record)}
    code_parts.projection(section, measured, "umap")
    codes, lengths, method = seen[0]
    database = stored(runs["dch"][0])[1]
    assert (codes.shape, lengths, method) == ((1000, database.shape[1]), [5, 12, 20], "umap")
    assert np.array_equal(codes[[0, -1]], database[[0, -1]])
    monkeypatch.setattr(code_parts, "stored_array", lambda folder, file: np.zeros((9, 3), np.uint8))
    assert code_parts.projection(section, measured, "umap") == []


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_the_page_shows_codes_in_the_plane_where_asked(method, hot, tmp_path):
    pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    write_report([hot], tmp_path / "r.html", projection=method)
    page = Page((tmp_path / "r.html").read_text())
    for heading in ("Codes in the plane", "Distances of pairs", "Confusion by class"):
        assert page.texts.count(heading) == 2  # in the contents, too
    assert f"codes of the database by {'t-SNE' if method == 'tsne' else 'UMAP'}" in page.text
    assert [i[:14] for i in page.images].count("data:image/png") == 3


def test_a_missing_package_is_said_before_the_work(runs, tmp_path, monkeypatch, capsys):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n == "umap" else find(n, *a))
    status, out, err = output(capsys, "report", runs["csq"][0], "-o", tmp_path / "r.html", "--projection", "umap")
    assert (status, out) == (1, "")
    assert "pip install 'nhl-fast[umap]'" in err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="projection: expected one of 'tsne', 'umap'"):
        write_report(runs["csq"][:1], tmp_path / "r.html", projection="pca")
    with pytest.raises(TypeError, match="percent: expected True or False"):
        write_report(runs["csq"][:1], tmp_path / "r.html", percent=1)


def test_percent(runs, tmp_path, capsys, no_pictures):
    page, table = tmp_path / "r.html", tmp_path / "t.md"
    status, out, _ = output(capsys, "report", runs["dch"][0], "-o", page, "--table", table, "--percent")
    assert status == 0
    values = [f"{100 * v:.2f}" for v in maps(runs["dch"][0]).values()]
    assert re.search(r"DCH +1 +" + " +".join(map(re.escape, values)), out)
    assert f"| DCH | {' | '.join(values)} |" in table.read_text()
    assert table.read_text().startswith("mAP (%). digits")
    shown = Page(page.read_text())
    assert shown.table("mAP (%). digits")["DCH"] == values
    assert any(t["caption"].startswith("precision@100 (%)") for t in shown.tables)


def test_titles_name_the_file_of_features(runs, tmp_path, no_pictures):
    said = write_report([*runs["plain"], *runs["dch"]], tmp_path / "r.html", tmp_path / "t.md")
    titles = [section["title"] for section in said["sections"]]
    assert titles[0].startswith("mine: ")
    assert titles[1].startswith("digits: ")
    assert [section["data"] for section in said["sections"]] == ["features", "digits"]
    page = Page((tmp_path / "r.html").read_text())
    assert "Nested hashing: mine, digits" in page.texts
    assert page.table("Data set and split.")["data set"] == ["mine"]
    assert "mAP. mine, protocol" in (tmp_path / "t.md").read_text()
