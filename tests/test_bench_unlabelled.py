"""The benchmark of codes without labels, on small vectors: its rows, its tables, and that it goes on."""

import functools
import json

import numpy as np
import pytest

import nhl_fast as nhl
from bench import unlabelled


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A file of vectors, and lengths, queries and methods that suit it."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "small.npz", features=rng.standard_normal((260, 12)).astype(np.float32))
    for name, value in (("LENGTHS", (4, 8)), ("QUERIES", 60), ("RESULTS", tmp_path), ("FUNNELS", {"a": ((4, 20),)})):
        monkeypatch.setattr(unlabelled, name, value)
    fast = functools.partial(nhl.fit_layer, steps=5, rotation_steps=3)
    monkeypatch.setattr(nhl, "fit_layer", fast)
    return tmp_path


def test_rows_are_measured_once_and_written(small, capsys):
    methods = unlabelled.METHODS
    unlabelled.run([small / "small.npz"], small / "out", 2, methods)
    assert capsys.readouterr().out.count("small ") == 10
    unlabelled.run([small / "small.npz"], small / "out", 2, methods)
    assert capsys.readouterr().out == ""
    unlabelled.write(small / "out")
    rows = json.loads((small / "unlabelled.json").read_text())["rows"]
    assert {(r["split"], r["method"]) for r in rows} == {(s, m) for s in range(2) for m in methods}
    assert all(0 < r["recall"]["8"]["10"] < r["recall"]["8"]["100"] <= 1 for r in rows)
    assert "## small" in (small / "unlabelled.md").read_text()


def test_models_a_length_and_behind_a_hidden_layer(small):
    methods = ("learned", unlabelled.A_LENGTH, unlabelled.HIDDEN)
    unlabelled.run([small / "small.npz"], small / "out", 1, methods)
    rows = [json.loads(path.read_text()) for path in (small / "out").glob("*.json")]
    assert {r["method"] for r in rows} == set(methods)
    assert all(0 < r["recall"]["8"]["10"] <= 1 for r in rows)


def test_beside_compares_the_splits_that_both_have(monkeypatch):
    monkeypatch.setattr(unlabelled, "LENGTHS", (4,))
    rows = [
        {"method": method, "split": split, "recall": {"4": {"10": found}}}
        for method, split, found in (("learned", 0, 0.3), ("learned", 1, 0.9), (unlabelled.A_LENGTH, 0, 0.2))
    ]
    assert (
        unlabelled.beside(rows, unlabelled.A_LENGTH)
        == "`learned` over `learned a length`, 1 split: +50.0% at 4 bits."
    )


def test_gains_are_over_the_better_of_two(monkeypatch):
    monkeypatch.setattr(unlabelled, "LENGTHS", (4, 8))
    numbers = {"pca": (0.1, 0.2), "itq a length": (0.2, 0.1), "learned": (0.3, 0.22)}
    rows = [
        {"method": method, "recall": {"4": {"10": first}, "8": {"10": second}}}
        for method, (first, second) in numbers.items()
    ]
    assert "+50.0% at 4, +10.0% at 8 bits; +30.0% in the mean" in unlabelled.gains(rows)
    rows.append({"method": "learned", "recall": {"4": {"10": 0.5}, "8": {"10": 0.22}}})
    assert "| learned | 0.4000 ± 0.1414 | 0.2200 ± 0.0000 | 2 |" in unlabelled.table(rows)
