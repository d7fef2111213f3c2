import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nhl_fast.data import RetrievalData, load_dataset
from nhl_fast.data import splits as S


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts(labels, rows, classes):
    return np.bincount(labels[rows], minlength=classes).tolist()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(7, 25), min_size=1, max_size=6),  # one a class is left to the database
    queries=st.integers(1, 3),
    training=st.one_of(st.none(), st.integers(1, 3)),
    keep=st.booleans(),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**70),
)
def test_pooled_split_properties(sizes, queries, training, keep, fraction, seed):
    labels, classes = labels_of(sizes), len(sizes)
    first = S.pooled(labels, queries, training, keep, seed)
    indices = S.check(S.take_validation(first, labels, fraction, seed), len(labels))
    query, train, validation, database = (
        set(getattr(indices, name).tolist()) for name in ("query", "train", "validation", "database")
    )
    everything = set(range(len(labels)))
    assert counts(labels, indices.query, classes) == [queries] * classes
    assert not query & (train | validation | database)
    assert not train & validation
    assert train | validation == set(first.train.tolist())
    per_class = [n - queries if training is None else training for n in sizes]
    assert counts(labels, first.train, classes) == per_class
    assert counts(labels, indices.validation, classes) == [min(round(fraction * n), n - 1) for n in per_class]
    if training is None or keep:
        assert database == everything - query
    else:
        assert database == everything - query - train - validation
    # Later choices leave the earlier ones as they are.
    assert np.array_equal(indices.database, first.database)
    assert np.array_equal(S.pooled(labels, queries, None, keep, seed).query, first.query)


def test_split_depends_on_the_seed_alone():
    labels = labels_of([40] * 5)
    a, b, c = (S.pooled(labels, 4, 10, False, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in S.NAMES)
    assert not np.array_equal(a.query, c.query)


def test_stratified_is_uniform():
    # Every row of a class is drawn equally often: 6,000 draws of 2 in 5, standard error 0.0063.
    labels = np.repeat([0, 1], [5, 20])
    rng = np.random.default_rng(0)
    hits = np.zeros(25)
    for _ in range(6000):
        hits[S.stratified(labels, np.arange(25), lambda size: 2, rng)] += 1
    assert np.abs(hits[:5] / 6000 - 0.4).max() < 0.03
    assert np.abs(hits[5:] / 6000 - 0.1).max() < 0.03


def test_absent_classes_and_multi_label():
    labels = np.array([7, 7, 7, 2, 2, 2])
    assert counts(labels, S.pooled(labels, 1, 1, False, 0).query, 8) == [0, 0, 1, 0, 0, 0, 0, 1]
    rows = np.random.default_rng(0).integers(0, 2, (50, 4))
    indices = S.take_validation(S.pooled(rows, 7, 20, False, 0), rows, 0.1, 0)
    assert [len(getattr(indices, n)) for n in S.NAMES] == [18, 2, 7, 23]


@pytest.mark.parametrize(
    ("labels", "queries", "training", "match"),
    [
        (
            labels_of([5, 3]),
            2,
            2,
            "queries_per_class=2 and train_per_class=2: .*4 rows, .*smallest class has 3",
        ),
        (labels_of([5, 2]), 2, None, "queries_per_class=2: .*3 rows, .*has 2"),
        (np.zeros(0, np.int64), 1, 1, "has 0"),
        (np.zeros((3, 2), np.int64), 2, 2, "the data set has 3"),
    ],
)
def test_too_few_rows(labels, queries, training, match):
    with pytest.raises(ValueError, match=match):
        S.pooled(labels, queries, training, False, 0)


@pytest.mark.parametrize("value", [0, 10, 11, -1])
def test_leading_needs_rows_on_both_sides(value):
    with pytest.raises(ValueError, match=f"num_train: .*from 1 to 9, got {value}"):
        S.leading(10, value)


def given_rows(**changes):
    rows = {"train": [0, 1], "validation": [2], "query": [3], "database": [4, 0]}
    return S.Indices(**{**rows, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"train": []}, ValueError, "train: .*at least one"),
        ({"query": []}, ValueError, "query: .*at least one"),
        ({"database": []}, ValueError, "database: .*at least one"),
        ({"query": [5]}, ValueError, "query: .*from 0 to 4, got 5"),
        ({"query": [-1]}, ValueError, "query: .*got -1"),
        ({"query": [3, 3]}, ValueError, "query: .*row 3 twice"),
        ({"query": [3.0]}, TypeError, "query: .*integer"),
        ({"query": [True]}, TypeError, "query: .*integer"),
        ({"query": ["3"]}, TypeError, "query: .*integer"),
        ({"query": [[3]]}, TypeError, "query: .*integer"),
        ({"query": [[3], [3, 4]]}, ValueError, "query: .*nested"),
        ({"query": None}, TypeError, "query: .*integer"),
        ({"query": [3, 1]}, ValueError, "query: .*no row of train.*row 1"),
        ({"query": [2]}, ValueError, "query: .*no row of validation.*row 2"),
        ({"query": [4]}, ValueError, "query: .*no row of database.*row 4"),
        ({"validation": [1]}, ValueError, "validation: .*no row of train.*row 1"),
    ],
)
def test_check_refuses(changes, error, match):
    with pytest.raises(error, match=match):
        S.check(given_rows(**changes), 5)


def test_check_allows_training_and_validation_rows_in_the_database():
    assert S.check(given_rows(database=[0, 1, 2]), 5).database.tolist() == [0, 1, 2]


@pytest.fixture
def digits_split(tmp_path):
    data = load_dataset("digits", seed=3, validation=0.2)
    path = tmp_path / "split.json"
    data.save_split(path)
    return data, path


def test_split_file_round_trip(digits_split):
    data, path = digits_split
    again = load_dataset("digits", seed=9, validation=0, split_file=path)
    for name in S.NAMES:
        assert torch.equal(getattr(again, name).indices, getattr(data, name).indices)
    assert again.summary() == data.summary()
    images = load_dataset("digits", as_images=True, split_file=path)
    assert torch.equal(images.query.indices, data.query.indices)


def without(content, key):
    return {name: value for name, value in content.items() if name != key}


def with_rows(content, name, rows):
    return {**content, "indices": {**content["indices"], name: rows}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: [c], "not a split file"),
        (lambda c: {**c, "format": "other"}, "not a split file"),
        (lambda c: {**c, "version": 2}, "version 2, expected 1"),
        (lambda c: {**c, "dataset": "cifar10"}, "other data: dataset is 'cifar10' there, and 'digits'"),
        (lambda c: {**c, "num_rows": 5}, "other data: num_rows is 5"),
        (lambda c: {**c, "num_classes": 5}, "other data: num_classes is 5"),
        (lambda c: {**c, "fingerprint": "0"}, "other data: fingerprint"),
        (lambda c: without(c, "fingerprint"), "other data: fingerprint is None"),
        (lambda c: without(c, "seed"), "lacks a seed"),
        (lambda c: {**c, "seed": -1}, "lacks a seed"),
        (lambda c: {**c, "protocol": 1}, "lacks a seed or a protocol"),
        (lambda c: without(c, "indices"), "lacks the row lists"),
        (lambda c: {**c, "indices": without(c["indices"], "query")}, "lacks the row lists"),
        (lambda c: with_rows(c, "query", "abc"), "query: .*integer row ids"),
        (lambda c: with_rows(c, "query", [1.5]), "query: .*integer row ids"),
        (lambda c: with_rows(c, "query", [10**30]), "query: "),
        (lambda c: with_rows(c, "query", [1797]), "query: .*0 to 1796, got 1797"),
        (lambda c: with_rows(c, "query", c["indices"]["train"][:5]), "query: .*no row of train"),
        (lambda c: with_rows(c, "query", c["indices"]["query"][1:]), "damaged: its sizes"),
        (lambda c: without(c, "sizes"), "damaged: its sizes"),
    ],
)
def test_split_file_of_something_else_is_refused(digits_split, change, match):
    path = digits_split[1]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset("digits", split_file=path)
    assert str(path) in str(caught.value)


def test_split_file_missing_or_broken(digits_split, tmp_path):
    path = digits_split[1]
    with pytest.raises(FileNotFoundError, match="split_file: no such file"):
        load_dataset("digits", split_file=tmp_path / "none.json")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_dataset("digits", split_file=path)


def test_split_file_of_the_same_labels_in_another_order(tmp_path):
    def data(labels):
        return RetrievalData.from_tensors(torch.zeros(6, 2), torch.tensor(labels), train=[0, 1], query=[2])

    assert data([0, 1, 0, 1, 0, 1]).fingerprint != data([1, 0, 0, 1, 0, 1]).fingerprint
    assert data([0, 1, 0, 1, 0, 1]).fingerprint == data([0, 1, 0, 1, 0, 1]).fingerprint
