"""What the pictures of codes show, against the numbers that went in; axes; titles."""

import numpy as np
import pytest

import nhl_fast as nhl
from nhl_fast.core import extras
from nhl_fast.core.names import data_title
from nhl_fast.pictures import plots
from nhl_fast.pictures.projection import project_codes
from nhl_fast.pictures.style import share_limits

pytest.importorskip("matplotlib")

LENGTHS = (5, 12)
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (30, 2), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 30)
HOT = (RNG.random((30, 4)) < 0.4).astype(np.uint8)


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def labelled(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("labels", [LABELS, HOT], ids=["ids", "hot"])
def test_precision_and_recall_at_n_are_those_of_the_rankings(labels, queries, tmp_path, figures):
    result = nhl.evaluate_retrieval(CODES[:queries], CODES, labels[:queries], labels, lengths=LENGTHS)
    ranks = result.curve_ranks(None)
    plots.plot_at_n({b: (ranks, *result.pr_curve(b)) for b in LENGTHS}, tmp_path / "p.png")
    for b in LENGTHS:
        for name, measured in (("Precision", result.precision_at), ("Recall", result.recall_at)):
            n, value = labelled(panel(figures[0], f"{name} at N"), f"{b} bits").get_data()
            assert list(n) == list(range(1, 31))
            assert value == pytest.approx([measured(i)[b] for i in range(1, 31)])


@pytest.mark.parametrize("labels", [LABELS, HOT], ids=["ids", "hot"])
def test_histograms_of_distances_are_shares_of_the_pairs(labels, tmp_path, figures):
    result = nhl.evaluate_retrieval(CODES[:6], CODES, labels[:6], labels, lengths=LENGTHS)
    plots.plot_distances({b: result.distance_histogram(b) for b in LENGTHS}, tmp_path / "p.png")
    hot = np.eye(3)[labels] if labels.ndim == 1 else labels
    same = hot[:6] @ hot.T > 0
    for b in LENGTHS:
        bits = np.unpackbits(CODES, axis=1, count=b)
        distances = (bits[:6, None] != bits).sum(2)
        axes = panel(figures[0], f"{b} bits")
        drawn = {patch.get_label(): patch for patch in axes.patches if not patch.get_fill()}
        for kind, chosen in (("a common class", distances[same]), ("different classes", distances[~same])):
            shares, edges, _ = drawn[kind].get_data()
            assert shares == pytest.approx(np.bincount(chosen, minlength=b + 1) / len(chosen))
            assert edges.tolist() == [d - 0.5 for d in range(b + 2)]
        assert f"means {distances[same].mean():.1f} and {distances[~same].mean():.1f}" in axes.get_title(loc="left")
        assert axes.get_xlim()[1] == distances.max() + 0.5
        assert axes.get_ylim()[0] == 0


def test_a_kind_without_pairs_is_not_drawn(tmp_path, figures):
    same = nhl.evaluate_retrieval(CODES[:2], CODES, LABELS[:2] * 0, LABELS * 0, lengths=(5,))
    plots.plot_distances({5: same.distance_histogram(5)}, tmp_path / "p.png")
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["a common class"]
    assert "and –)" in figures[0].axes[0].get_title(loc="left")


def test_bits_show_balance_and_correlation(tmp_path, figures):
    codes = CODES.copy()
    codes[:, 0] |= 0b00100000  # the third bit is constant
    ones, correlation = nhl.bit_statistics(codes, 12)
    plots.plot_bits(ones, correlation, tmp_path / "p.png", marked_lengths=LENGTHS)
    balance, heat, _ = figures[0].axes
    bits = np.unpackbits(codes, axis=1, count=12)
    x, y = labelled(balance, "a bit").get_data()
    assert list(x) == list(range(1, 13))
    assert y == pytest.approx(bits.mean(0))
    assert f"= {np.abs(2 * bits.mean(0) - 1).mean():.3f}" in balance.get_title(loc="left")
    (image,) = heat.images
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.abs(np.corrcoef(bits.T))
    hidden = np.eye(12, dtype=bool)
    hidden[2] = hidden[:, 2] = True
    assert np.array_equal(np.ma.getmaskarray(image.get_array()), hidden)
    assert np.asarray(image.get_array())[~hidden] == pytest.approx(expected[~hidden])
    assert image.get_clim() == (0, 1)
    assert list(image.get_extent()) == [0.5, 12.5, 12.5, 0.5]
    plots.plot_bits(ones[:1], correlation[:1, :1], tmp_path / "p.png")
    assert "none" in figures[1].axes[1].get_title(loc="left")


def test_confusion_shows_the_table(tmp_path, figures):
    table = nhl.class_confusion(CODES[:9], CODES, HOT[:9] * [1, 1, 0, 1], HOT, lengths=LENGTHS, k=4)
    plots.plot_confusion(table, tmp_path / "p.png", class_names=["cat", "dog", "a very long name of a class", "x"])
    for b in LENGTHS:
        axes = panel(figures[0], f"{b} bits")
        shown = axes.images[0].get_array()
        known = np.arange(4) != 2  # no query has class 2
        assert np.ma.getmaskarray(shown)[2].all()
        assert np.asarray(shown)[known] == pytest.approx(table[b][known])
        numbers = {t.get_position(): t.get_text() for t in axes.texts}
        rounded = {(d, c): f"{100 * v:.0f}" for (c, d), v in np.ndenumerate(table[b])}
        assert numbers == {at: text for at, text in rounded.items() if text not in ("0", "nan")}
        assert f"{np.nanmean(table[b].diagonal()):.1%}" in axes.get_title(loc="left")
        assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "a very l…a class", "x"]
    plots.plot_confusion({5: [[1.0]]}, tmp_path / "p.png")
    assert [t.get_text() for t in figures[1].axes[0].texts] == ["100"]
    plots.plot_confusion({5: np.eye(40)}, tmp_path / "p.png")
    assert not figures[2].axes[0].texts


def test_codes_in_the_plane_are_where_they_were_put(tmp_path, figures):
    points = {b: RNG.normal(size=(30, 2)) for b in LENGTHS}
    points[5][LABELS == 1] = [1.0, 2.0]
    plots.plot_projection(points, [f"class {c}" for c in LABELS], tmp_path / "p.png")
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["class 0", "class 1", "class 2"]
    for b in LENGTHS:
        drawn = panel(figures[0], f"{b} bits").collections[1:]  # the first are the others, none here
        for c, scatter in enumerate(drawn):
            expected, items = np.unique(points[b][c == LABELS], axis=0, return_counts=True)
            assert np.array_equal(np.asarray(scatter.get_offsets()), expected)
            assert scatter.get_sizes() == pytest.approx(12 * np.sqrt(items))
    assert len(panel(figures[0], "5 bits").collections[2].get_offsets()) == 1
    many = [str(c) for c in range(25) for _ in range(1 + (c < 20))]
    plots.plot_projection({5: RNG.normal(size=(45, 2))}, many, tmp_path / "p.png")
    known = [t.get_text() for t in figures[1].legends[0].get_texts()]
    assert known == [*sorted(map(str, range(20))), "others"]
    assert len(figures[1].axes[0].collections[0].get_offsets()) == 5
    looks = {(k.get_color(), k.get_marker()) for k in figures[1].legends[0].get_lines()}
    assert len(looks) == 21


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_projection_keeps_near_codes_together(method):
    pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    side = np.arange(160) % 2 == 0
    bits = (np.random.default_rng(0).random((160, 24)) < 0.15) ^ side[:, None]
    codes = np.packbits(bits, axis=1)
    codes = np.concatenate([codes, codes[:3]])
    found = project_codes(codes, (12, 24), method, seed=1)
    assert list(found) == [12, 24]
    places = found[24]
    assert places.shape == (163, 2)
    assert np.array_equal(places[160:], places[:3])  # equal codes
    gap = np.linalg.norm(places[:160, None] - places[None, :160], axis=2)
    np.fill_diagonal(gap, np.inf)
    assert np.mean(side[gap.argmin(1)] == side) > 0.95
    assert np.array_equal(project_codes(codes, (24,), method, seed=1)[24], places)
    with pytest.raises(ValueError, match="codes: expected at least 5 distinct ones, got 2 at 12 bits"):
        project_codes(codes[:2], (12,), method)


def test_projection_says_what_is_missing(monkeypatch):
    find = extras.importlib.util.find_spec
    hidden = ("sklearn", "umap")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n in hidden else find(n, *a))
    with pytest.raises(ImportError, match=r"UMAP needs 'umap': pip install 'nhl-fast\[umap\]'"):
        project_codes(CODES, (12,), "umap")
    with pytest.raises(ImportError, match=r"t-SNE needs 'sklearn': pip install 'nhl-fast\[data\]'"):
        project_codes(CODES, (12,))
    with pytest.raises(ValueError, match="method: expected one of"):
        project_codes(CODES, (12,), "pca")


@pytest.mark.parametrize(
    ("low", "high", "limits"),
    [
        (0.0, 1.0, (0, 1)),
        (0.2, 0.97, (0, 1)),
        (0.49, 0.95, (0, 1)),
        (0.971, 0.975, (0.8, 1.0)),
        (0.55, 0.62, (0.5, 0.7)),
        (0.03, 0.04, (0, 0.2)),
        (0.3, 0.31, (0, 0.4)),
        (0.0, 0.0, (0, 0.2)),
        (1.0, 1.0, (0.8, 1.0)),
        (0.7, 0.7, (0.6, 0.8)),
    ],
)
def test_limits_of_shares(low, high, limits):
    assert share_limits(low, high) == limits


def test_every_share_is_within_limits_of_a_fifth_at_least():
    for low in np.linspace(0, 1, 41):
        for high in np.linspace(low, 1, 17):
            bottom, top = share_limits(low, high)
            assert 0 <= bottom <= low <= high <= top <= 1
            assert top - bottom > 0.199


def test_noise_is_not_zoomed_into(tmp_path, figures):
    plots.plot_map_vs_bits({"a": {5: 0.972, 12: 0.975}}, tmp_path / "p.png")
    low, high = figures[0].axes[0].get_ylim()
    assert high - low > 0.2
    records = [
        {"epoch": e, "losses": [1 + e / 1e4], "weights": [1.0], "distill": [0.0], "validation": {"5": 0.9 + e / 1e4}}
        for e in (1, 2, 3)
    ]
    plots.plot_history(records, tmp_path / "p.png", code_lengths=(5,))
    loss, weight, validation = (axes for axes in figures[1].axes if axes.axison)
    assert loss.get_ylim()[1] / loss.get_ylim()[0] == pytest.approx(2)
    for axes in (weight, validation):
        assert np.ptp(axes.get_ylim()) >= 0.2 - 1e-9
    assert loss.get_ylim()[0] < 1 < loss.get_ylim()[1]


@pytest.mark.parametrize(
    "draw", [plots.plot_map_vs_bits, plots.plot_pr_curves, plots.plot_at_n, plots.plot_distances]
)
def test_titles_of_any_text_fit(draw, tmp_path, figures):
    given = {
        plots.plot_map_vs_bits: {"a": {5: 0.5}},
        plots.plot_pr_curves: {5: ([0.5], [0.5])},
        plots.plot_at_n: {5: ([1], [0.5], [0.5])},
        plots.plot_distances: {5: ([1] * 6, [2] * 6)},
    }[draw]
    draw(given, tmp_path / "p.png", title="features \ud800\n of $a$ " + "a long name " * 40)
    (figure,) = figures
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *figure.axes[0].findobj(lambda artist: hasattr(artist, "get_fontweight"))]
    (title,) = [text for text in texts if text.get_text().startswith("features ?")]
    assert title.get_text().startswith("features ?? of $a$ a long name")
    assert title.get_text().endswith("…")
    assert title.get_window_extent(renderer).x1 <= figure.bbox.width


def test_data_is_called_by_its_file():
    assert data_title("features", {"path": "/home/me/resnet50.train.npz"}) == "resnet50.train"
    assert data_title("list", {"root": "/data/coco/"}) == "coco"
    for name, options in (
        ("digits", {}),
        ("cifar10", {"root": "/data/x"}),
        ("list", {"root": "."}),
        ("features", {}),
    ):
        assert data_title(name, options) == name


SQUARE = np.eye(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: plots.plot_at_n({5: ([1], [1.0])}, p), TypeError, r"expected \(N, precision, recall\)"),
        (lambda p: plots.plot_at_n({5: ([2, 1], [1, 1], [1, 1])}, p), ValueError, r"curves\[5\]: expected rising"),
        (lambda p: plots.plot_at_n({5: ([0, 1], [1, 1], [1, 1])}, p), ValueError, "rising ranks of 1 or more"),
        (lambda p: plots.plot_at_n({5: ([0.5], [1], [1])}, p), ValueError, "rising ranks"),
        (lambda p: plots.plot_at_n({5: ([1, 2], [1, 1], [1])}, p), ValueError, "2 ranks, 2 precisions and 1 recalls"),
        (lambda p: plots.plot_at_n({5: ([1], [1.2], [1])}, p), ValueError, "from 0 to 1"),
        (lambda p: plots.plot_distances({}, p), ValueError, "histograms: expected at least one entry"),
        (lambda p: plots.plot_distances({5: [1, 2, 3]}, p), TypeError, r"expected \(different, same\)"),
        (lambda p: plots.plot_distances({5: ([1] * 5, [1] * 6)}, p), ValueError, "counts of the distances 0 to 5"),
        (lambda p: plots.plot_distances({5: ([-1] * 6, [1] * 6)}, p), ValueError, "counts of the distances 0 to 5"),
        (lambda p: plots.plot_distances({5: ([0] * 6, [0] * 6)}, p), ValueError, "at least one pair"),
        (lambda p: plots.plot_bits([0.5, 2, 0], SQUARE, p), ValueError, "ones: expected .* from 0 to 1"),
        (lambda p: plots.plot_bits([0.5, 0], SQUARE, p), ValueError, r"correlation: expected shape \(2, 2\)"),
        (lambda p: plots.plot_bits([0.5] * 3, -SQUARE, p), ValueError, "correlation: expected numbers from 0 to 1"),
        (lambda p: plots.plot_confusion({5: SQUARE, 12: SQUARE[:2]}, p), ValueError, r"confusion\[12\]: expected"),
        (lambda p: plots.plot_confusion({5: SQUARE}, p, class_names=["a"]), ValueError, "expected 3 names"),
        (lambda p: plots.plot_projection({5: SQUARE}, "abc", p), ValueError, r"points\[5\]: expected finite"),
        (lambda p: plots.plot_projection({5: [[np.nan, 1]]}, "a", p), ValueError, r"points\[5\]: expected finite"),
        (lambda p: plots.plot_projection({5: np.zeros((0, 2))}, [], p), ValueError, r"points\[5\]: expected finite"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
