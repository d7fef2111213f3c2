import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import nhl_fast.core.extras
from nhl_fast.data import RetrievalData, Split, load_dataset

PARTS = ("train", "validation", "query", "database")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", seed=0)


def test_digits_sizes_and_values(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    assert [len(getattr(digits, name)) for name in PARTS] == [1438, 159, 200, 1597]
    assert (digits.name, digits.num_classes, digits.multi_label) == ("digits", 10, False)
    assert (digits.input_kind, digits.input_shape) == ("features", (64,))
    assert digits.class_names == list("0123456789")
    assert digits.query.labels.bincount().tolist() == [20] * 10
    for split in (digits.train, digits.validation, digits.query, digits.database):
        assert split.inputs.dtype == torch.float32
        assert np.array_equal(split.inputs.numpy() * 16, source.data[split.indices.numpy()])
        assert np.array_equal(split.labels.numpy(), source.target[split.indices.numpy()])
    assert digits.train_in_database
    assert digits.validation_database is digits.train
    assert digits.standardization is None


def test_digits_as_images(digits):
    images = load_dataset("digits", as_images=True)
    assert (images.input_kind, images.input_shape) == ("images", (1, 8, 8))
    assert torch.equal(images.query.inputs.flatten(1), digits.query.inputs)


def test_raw_is_the_picture(digits):
    for i in (0, 17, -1):
        raw = digits.query.raw(i)
        assert raw.shape == (8, 8)
        assert raw.dtype == np.uint8
        assert np.array_equal(raw.ravel(), np.round(digits.query.inputs[i].numpy() * 255))


def test_seed_and_validation_change_only_what_they_should(digits):
    other = load_dataset("digits", seed=1)
    assert not torch.equal(other.query.indices, digits.query.indices)
    whole = load_dataset("digits", seed=0, validation=0)
    assert torch.equal(whole.query.indices, digits.query.indices)
    assert torch.equal(whole.database.indices, digits.database.indices)
    assert len(whole.validation) == 0
    assert whole.validation.inputs.shape == (0, 64)
    union = torch.cat([digits.train.indices, digits.validation.indices]).sort().values
    assert torch.equal(whole.train.indices, union)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([5, 0, 5]),
        torch.tensor([5, 0], dtype=torch.int32),
        torch.tensor([5, 0], dtype=torch.uint8),
        np.array([5, 0]),
        [5, -1],
        [],
        torch.arange(1438) < 3,
        slice(2, 9, 3),
        slice(0, 0),
    ],
    ids=str,
)
def test_batch_equals_items(digits, index):
    split = digits.train
    inputs, labels = split.batch(index)
    if isinstance(index, slice):
        positions = list(range(len(split)))[index]
    elif isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        positions = index.nonzero().flatten().tolist()
    else:
        positions = [int(i) for i in index]
    assert inputs.shape == (len(positions), 64)
    assert labels.shape == (len(positions),)
    for row, label, position in zip(inputs, labels, positions):
        item, item_label, i = split[position]
        assert torch.equal(row, item)
        assert label == item_label
        assert i == position % len(split)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (torch.tensor(3), ValueError),
        (torch.tensor([[3]]), ValueError),
        (torch.tensor([3.0]), TypeError),
        ([1438], IndexError),
        (torch.ones(5, dtype=torch.bool), IndexError),
    ],
)
def test_batch_refuses(digits, index, error):
    with pytest.raises(error):
        digits.train.batch(index)


def test_items_iterate_and_load(digits):
    assert len(list(digits.validation)) == 159
    with pytest.raises(IndexError, match=r"query: .*below 200, got 200"):
        digits.query[200]
    inputs, labels, index = next(iter(DataLoader(digits.query, batch_size=7)))
    expected = digits.query.batch(torch.arange(7))
    assert torch.equal(inputs, expected[0])
    assert torch.equal(labels, expected[1])
    assert index.tolist() == list(range(7))


def test_split_survives_pickling(digits):
    again = pickle.loads(pickle.dumps(digits.query))
    assert torch.equal(again.batch([3])[0], digits.query.batch([3])[0])


def test_repr_and_summary(digits):
    assert "1,438 train, 159 validation, 200 query, 1,597 database" in repr(digits)
    assert repr(digits.train) == "Split('train', 1438 items)"
    summary = digits.summary()
    assert summary["query"] == 200
    assert summary["train_in_database"] is True
    assert summary["input_shape"] == [64]


def make(**changes):
    arguments = {
        "inputs": torch.arange(24.0).view(8, 3),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
        "train": [0, 1, 2, 3],
        "query": [7, 6],
        "validation": 0,
    }
    arguments.update(changes)
    inputs, labels = arguments.pop("inputs"), arguments.pop("labels")
    return RetrievalData.from_tensors(inputs, labels, **arguments)


def test_from_tensors():
    data = make()
    assert data.num_classes == 3
    assert data.query.indices.tolist() == [7, 6]
    assert data.database.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(data.query.inputs, torch.tensor([[21.0, 22, 23], [18, 19, 20]]))
    assert isinstance(data.train, Split)
    assert data.train.raw(0) is None
    apart = make(database=[4, 5])
    assert not apart.train_in_database
    pictures = make(inputs=torch.zeros(8, 3, 4, 4).transpose(1, 2))
    assert (pictures.input_kind, pictures.input_shape) == ("images", (4, 3, 4))
    half = make(inputs=torch.ones(8, 3, dtype=torch.float16))
    assert half.train.inputs.dtype == torch.float32


def test_from_tensors_multi_hot():
    rows = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]] * 2)
    data = make(labels=rows, validation=0.25)
    assert data.multi_label
    assert data.num_classes == 2
    assert data.train.labels.dtype == torch.uint8
    assert (len(data.train), len(data.validation)) == (3, 1)
    assert torch.equal(data.query.batch([0, 1])[1], rows[[7, 6]].to(torch.uint8))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"inputs": np.zeros((8, 3))}, TypeError, "inputs: "),
        ({"inputs": torch.zeros(8, 3, dtype=torch.int64)}, TypeError, "inputs: .*floating"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, ValueError, "labels: "),
        ({"labels": torch.zeros(8)}, TypeError, "labels: "),
        ({"labels": -torch.ones(8, dtype=torch.int64)}, ValueError, "labels: .*out of range"),
        ({"num_classes": 2}, ValueError, "labels: .*0 to 1"),
        ({"query": [0, 7]}, ValueError, "query: .*train.*row 0"),
        ({"query": [8]}, ValueError, "query: .*0 to 7, got 8"),
        ({"query": []}, ValueError, "query: .*at least one"),
        ({"database": [7]}, ValueError, "query: .*database.*row 7"),
        ({"class_names": ["a"]}, ValueError, "class_names: .*3 names, got 1"),
        ({"class_names": "abc"}, TypeError, "class_names: "),
        ({"class_names": [1, 2, 3]}, TypeError, "class_names: "),
        ({"validation": 1}, ValueError, "validation: .*got 1"),
        ({"validation": -0.1}, ValueError, "validation: .*got -0.1"),
        ({"validation": float("nan")}, ValueError, "validation: .*got nan"),
        ({"validation": "0.1"}, TypeError, "validation: .*str"),
        ({"validation": True}, TypeError, "validation: .*bool"),
        ({"seed": -1}, ValueError, "seed: .*-1"),
    ],
)
def test_from_tensors_refuses(changes, error, match):
    with pytest.raises(error, match=match):
        make(**changes)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("mnist",), {}, ValueError, "name: .*'digits'.*got 'mnist'"),
        (("digits",), {"root": "x"}, TypeError, r"root: load_dataset\('digits'\) has no such option, only as_"),
        (("cifar10",), {}, TypeError, r"root: load_dataset\('cifar10'\) needs it"),
        (("features",), {}, TypeError, r"path: load_dataset\('features'\) needs it"),
        (("digits",), {"seed": 1.5}, TypeError, "seed: .*float"),
        (("digits",), {"seed": -1}, ValueError, "seed: .*-1"),
        (("digits",), {"validation": 1.0}, ValueError, "validation: "),
        (("digits",), {"queries_per_class": 0}, ValueError, "queries_per_class: .*0"),
        (("digits",), {"queries_per_class": 500}, ValueError, "queries_per_class=500: .*smallest class has 174"),
        (("digits",), {"split_file": 3}, TypeError, "split_file: "),
    ],
)
def test_load_dataset_refuses(arguments, options, error, match):
    with pytest.raises(error, match=match):
        load_dataset(*arguments, **options)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nhl_fast.core.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'sklearn': pip install 'nhl-fast\[data\]'"):
        load_dataset("digits")
