import re
import subprocess
import sys

import numpy as np
import pytest

from nhl_fast.core import extras
from nhl_fast.pictures.plots import (
    plot_at_n,
    plot_bits,
    plot_confusion,
    plot_distances,
    plot_gallery,
    plot_history,
    plot_map_vs_bits,
    plot_pr_curves,
    plot_projection,
)

matplotlib = pytest.importorskip("matplotlib")

LENGTHS = (8, 16, 32)
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF", ".svg": b"<?xml"}


def map_curves():
    rising = {b: 0.2 + 0.6 * (1 - 1 / b) for b in range(1, 33)}
    return {"one model": rising, "a model a length, $5_a$": {8: 0.7, 16: 0.75, 32: 0.8}}


def pr_curves(points=50):
    recall = np.linspace(0, 1, points + 1)[1:]
    return {b: (1 - 0.5 * recall ** (b / 8), recall) for b in LENGTHS}


def records(epochs=6):
    return [
        {
            "epoch": e,
            "losses": [1.0 / e, 2.0 / e, 3.0 / e],
            "weights": [1.2, 1.0, 0.8],
            "distill": [0.1 / e, 0.2 / e, 0.0],
            "total": 6.0 / e,
            "validation": {"8": 0.1 * e, "16": 0.12 * e, "32": 0.13 * e} if e % 2 == 0 else None,
        }
        for e in range(1, epochs + 1)
    ]


def image(seed, shape=(8, 8)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gallery(shape=(8, 8), answers=10):
    queries = [(image(q, shape), f"class {q}") for q in range(2)]
    results = {
        b: [[(image(100 * b + 10 * q + r, shape), str(r), r % 3 != 0) for r in range(answers)] for q in range(2)]
        for b in LENGTHS
    }
    return queries, results


DRAWERS = {
    "map": lambda path, **k: plot_map_vs_bits(map_curves(), path, marked_lengths=LENGTHS, **k),
    "pr": lambda path, **k: plot_pr_curves(pr_curves(), path, **k),
    "history": lambda path, **k: plot_history(records(), path, code_lengths=LENGTHS, **k),
    "at n": lambda path, **k: plot_at_n({5: ([1, 2, 9], [1.0, 0.5, 0.4], [0.1, 0.1, 0.7])}, path, **k),
    "distances": lambda path, **k: plot_distances({5: ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])}, path, **k),
    "bits": lambda path, **k: plot_bits([0.5, 0.2, 1.0], np.full((3, 3), 0.3), path, **k),
    "confusion": lambda path, **k: plot_confusion({5: [[0.9, 0.1], [0.4, 0.6]]}, path, **k),
    "projection": lambda path, **k: plot_projection({5: [[0, 1], [2, 3.0]]}, ["cat", "dog"], path, **k),
    "gallery": lambda path, **k: plot_gallery(*gallery(), path, LENGTHS, top=4, **k),
}


@pytest.mark.parametrize("name", DRAWERS)
@pytest.mark.parametrize("suffix", SIGNATURES)
def test_files(tmp_path, name, suffix):
    path = tmp_path / f"picture{suffix}"
    assert DRAWERS[name](str(path)) == path
    first = path.read_bytes()
    assert first.startswith(SIGNATURES[suffix])
    DRAWERS[name](path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    DRAWERS[name](path, title="another title")
    assert path.read_bytes() != first


@pytest.mark.parametrize("name", DRAWERS)
def test_pictures_are_not_blank_and_have_titles(tmp_path, name, figures):
    from matplotlib.image import imread

    pixels = imread(DRAWERS[name](tmp_path / "p.png"))
    assert 0.01 < (pixels[..., :3] < 0.98).any(-1).mean() < 0.9
    axes = [a for a in figures[0].axes if a.axison]
    for a in axes:
        if a.get_label() == "<colorbar>":
            continue
        assert a.get_title(loc="left")
        if name != "projection":  # its axes mean nothing
            assert a.get_xlabel()
            assert a.get_ylabel()
    assert axes or figures[0].get_suptitle()


def test_the_callers_settings_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    DRAWERS["pr"](tmp_path / "p.png")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported_and_matplotlib_only_on_use(tmp_path):
    code = (
        "import sys, nhl_fast.pictures.plots as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"p.plot_pr_curves({{8: ([1.0, 0.5], [0.5, 1.0])}}, {str(tmp_path / 'p.png')!r})\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DRAWERS)
def test_missing_matplotlib(tmp_path, name, monkeypatch):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a))
    with pytest.raises(ImportError, match=r"pip install 'nhl-fast\[plot\]'"):
        DRAWERS[name](tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DRAWERS)
def test_a_failure_leaves_the_old_file(tmp_path, name, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, handle, **_):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        DRAWERS[name](path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_map_marks_trained_lengths(tmp_path, figures):
    DRAWERS["map"](tmp_path / "p.png")
    axes = figures[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]
    curve = next(line for line in axes.lines if line.get_label() == "one model")
    assert [curve.get_xdata()[i] for i in curve.get_markevery()] == list(LENGTHS)
    assert np.array_equal(curve.get_ydata(), list(map_curves()["one model"].values()))
    assert sum(list(line.get_xdata()) in [[b, b] for b in LENGTHS] for line in axes.lines) == 3


def test_map_odd_lengths_one_point_and_many_methods(tmp_path, figures):
    plot_map_vs_bits({"a": {100: 0.5, 5: 0.1}}, tmp_path / "p.png", marked_lengths=(5, 12, 48, 100))
    labels = [t.get_text() for t in figures[0].axes[0].get_xticklabels()]
    # 16 and 64 would crowd 12 and 48.
    assert labels == ["5", "8", "12", "32", "48", "100"]
    assert figures[0].axes[0].lines[4].get_xdata().tolist() == [5, 100]
    plot_map_vs_bits({"a": {16: 1.0}}, tmp_path / "p.png")
    plot_map_vs_bits({str(i): {8: i / 20, 16: i / 10} for i in range(10)}, tmp_path / "p.png")
    styles = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in figures[2].axes[0].lines}
    assert len(styles) == 10


def test_map_of_several_seeds_is_their_mean_over_thin_lines(tmp_path, figures):
    seeds = [{8: 0.2, 16: 0.4}, {16: 0.6, 8: 0.3}]
    plot_map_vs_bits({"a": seeds, "b": {8: 0.1}, "c": [{8: 0.7}]}, tmp_path / "p.png")
    lines = figures[0].axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.25, 0.5], [0.2, 0.4], [0.3, 0.6], [0.1], [0.7]]
    assert len({line.get_color() for line in lines[:3]}) == 1
    assert lines[1].get_linewidth() < lines[0].get_linewidth()
    assert [t.get_text() for t in figures[0].axes[0].get_legend().get_texts()] == ["a", "b", "c"]
    for bad, message in (([], "at least one curve"), ([{8: 0.1}, {16: 0.1}], "same bits"), ([{8: 2}], "0 to 1")):
        with pytest.raises(ValueError, match=message):
            plot_map_vs_bits({"a": bad}, tmp_path / "bad.png")


def test_pr_curve_of_a_long_ranking_is_thinned_but_true(tmp_path, figures):
    curves = pr_curves(50_000)
    plot_pr_curves(curves, tmp_path / "p.png")
    for line, (b, (precision, recall)) in zip(figures[0].axes[0].lines, curves.items()):
        assert line.get_label() == f"{b} bits"
        x, y = line.get_data()
        assert 250 < len(x) <= 300
        assert (x[0], x[-1]) == (recall[0], recall[-1])
        at = np.searchsorted(recall, x)
        assert np.array_equal(recall[at], x)
        assert np.array_equal(precision[at], y)


def test_history_panels_follow_the_records(tmp_path, figures):
    path = tmp_path / "p.png"
    plot_history(records(), path, code_lengths=LENGTHS)
    names = [a.get_title(loc="left") for a in figures[0].axes]
    assert names == ["Loss of each length", "Weight of each length", "Self-distillation", "Validation"]
    assert figures[0].axes[0].lines[1].get_ydata().tolist() == [2.0 / e for e in range(1, 7)]
    assert figures[0].axes[3].lines[0].get_xdata().tolist() == [2, 4, 6]
    assert "epoch 6" in figures[0].axes[3].get_legend().get_texts()[0].get_text()

    bare = [{"epoch": 1, "losses": [-1.0, 0.0, float("nan")], "distill": [0, 0, 0], "validation": None}]
    plot_history(bare, path, code_lengths=LENGTHS)
    assert [a.get_title(loc="left") for a in figures[1].axes] == ["Loss of each length"]
    assert figures[1].axes[0].get_yscale() == "linear"


def test_gallery_frames(tmp_path, figures):
    queries, results = gallery()
    plot_gallery(queries, results, tmp_path / "p.png", (8, 32), top=5)
    axes = figures[0].axes[0]
    assert len(axes.images) == 2 + 2 * 2 * 5
    assert np.array_equal(np.asarray(axes.images[0].get_array())[..., 0], queries[0][0])
    assert all(i.get_interpolation() == "nearest" for i in axes.images)
    frames = [p for p in axes.patches if p.get_width() == 1]
    solid = [p for p in frames if p.get_linestyle() == "-"]
    # Ranks 0 and 3 of five are wrong.
    assert (len(solid), len(frames)) == (12, 20)
    assert len({p.get_edgecolor() for p in solid} & {p.get_edgecolor() for p in frames if p not in solid}) == 0
    texts = [t.get_text() for t in axes.texts]
    assert texts.count("3/5") == 4
    assert texts.count("×") == 8
    assert texts.count("32 bits") == 2
    assert "class 1" in texts


def test_gallery_with_file_names(tmp_path, figures):
    queries, results = gallery(answers=3)
    named = [(image, f"{label}\n{'long-' * 9}{q}.png") for q, (image, label) in enumerate(queries)]
    plot_gallery(named, results, tmp_path / "p.png", LENGTHS)
    captions = [text for text in (t.get_text() for t in figures[0].axes[0].texts) if "\n" in text]
    assert len(captions) == len(queries)
    for q, caption in enumerate(captions):
        assert caption.split("\n")[0] == str(queries[q][1])
        assert re.fullmatch(rf"….*{q}\.png", caption.split("\n")[1])
        assert len(caption.split("\n")[1]) == 24


def test_gallery_of_large_colour_images_keeps_their_shape(tmp_path, figures):
    plot_gallery(*gallery((50, 100, 3), 3), tmp_path / "p.png", LENGTHS)
    shown = figures[0].axes[0].images[1]
    left, right, bottom, top = shown.get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(2)
    assert shown.get_interpolation() == "antialiased"


def test_gallery_without_an_answer(tmp_path, figures):
    queries, results = gallery(answers=0)
    plot_gallery(queries, results, tmp_path / "p.png", (8,))
    assert [t.get_text() for t in figures[0].axes[0].texts].count("0/0") == 2


queries, results = gallery()
record = records()[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: plot_map_vs_bits({}, p), ValueError, "curves: expected at least one entry"),
        (lambda p: plot_map_vs_bits([1], p), TypeError, "curves: expected a mapping"),
        (lambda p: plot_map_vs_bits({"a": {}}, p), ValueError, r"curves\['a'\]: expected at least one"),
        (lambda p: plot_map_vs_bits({"a": {8: 1.5}}, p), ValueError, r"curves\['a'\]: expected .* from 0 to 1"),
        (lambda p: plot_map_vs_bits({"a": {8: float("nan")}}, p), ValueError, "from 0 to 1"),
        (lambda p: plot_map_vs_bits({"a": {0: 0.5}}, p), ValueError, "bits: expected an integer of at least 1"),
        (lambda p: plot_map_vs_bits({"a": {8: 0.5}}, p, marked_lengths=("8",)), TypeError, "marked_lengths"),
        (lambda p: plot_map_vs_bits({"a": {8: 0.5}}, p.with_suffix(".jpg")), ValueError, "path: expected .*png"),
        (lambda p: plot_map_vs_bits({"a": {8: 0.5}}, 3), TypeError, "path"),
        (lambda p: plot_map_vs_bits({"a": {8: 0.5}}, p / "no" / "p.png"), OSError, "no such directory"),
        (lambda p: plot_pr_curves({}, p), ValueError, "curves"),
        (lambda p: plot_pr_curves({8: [1.0]}, p), TypeError, r"curves\[8\]: expected \(precision, recall\)"),
        (lambda p: plot_pr_curves({8: ([1.0], [0.5, 1.0])}, p), ValueError, "1 precisions and 2 recalls"),
        (lambda p: plot_pr_curves({8: ([-1.0], [0.5])}, p), ValueError, "from 0 to 1"),
        (lambda p: plot_history([], p, code_lengths=LENGTHS), ValueError, "at least one record"),
        (lambda p: plot_history(record, p, code_lengths=LENGTHS), TypeError, "history: expected a sequence"),
        (lambda p: plot_history([{}], p, code_lengths=LENGTHS), ValueError, r"history\[0\].*'epoch'"),
        (lambda p: plot_history([{"epoch": 1}], p, code_lengths=LENGTHS), ValueError, "got none in any"),
        (lambda p: plot_history([record], p, code_lengths=(8,)), ValueError, r"\['losses'\]: expected 1 numbers"),
        (lambda p: plot_gallery([], results, p, LENGTHS), ValueError, "queries: expected at least one"),
        (lambda p: plot_gallery(queries, results, p, (64,)), ValueError, "rankings at 64 bits"),
        (
            lambda p: plot_gallery(queries[:1], results, p, (8,)),
            ValueError,
            r"results\[8\]: expected 1 rankings, got 2",
        ),
        (lambda p: plot_gallery([(None, "a")], {8: [[]]}, p, (8,)), ValueError, "bare features has no gallery"),
        (lambda p: plot_gallery([(np.zeros((8, 8)), "a")], {8: [[]]}, p, (8,)), TypeError, "uint8"),
        (lambda p: plot_gallery([(image(0, (8,)), "a")], {8: [[]]}, p, (8,)), ValueError, r"\(H, W\)"),
        (lambda p: plot_gallery(queries, results, p, (8,), top=0), ValueError, "top"),
    ],
)
def test_bad_input(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
