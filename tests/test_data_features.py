import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nhl_fast.data import load_dataset, splits

N, D = 60, 5
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(3, 2, (N, D)).astype(np.float32)
IDS = np.arange(N) % 3
MULTI = RNG.integers(0, 2, (N, 4))
SIZES = {"queries_per_class": 4, "train_per_class": 10}


def save(path, **arrays):
    arrays = {"features": FEATURES, "labels": IDS, **arrays}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    if path.suffix == ".safetensors":
        tensors = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in arrays.items()}
        save_file(tensors, path)
    else:
        np.savez(path, **arrays)
    return path


@pytest.fixture(params=["f.npz", "f.safetensors"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_rows_and_labels(path):
    data = load_dataset("features", path=save(path), **SIZES)
    assert (data.num_classes, data.multi_label, data.input_kind, data.input_shape) == (3, False, "features", (D,))
    assert [len(s) for s in (data.train, data.validation, data.query, data.database)] == [27, 3, 12, 18]
    assert data.protocol == "paper"
    for split in (data.train, data.validation, data.query, data.database):
        rows = split.indices.numpy()
        assert np.array_equal(split.inputs.numpy(), FEATURES[rows])
        assert np.array_equal(split.labels.numpy(), IDS[rows])
        assert split.raw(0) is None


def test_npy_pair(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(FEATURES))
    np.save(tmp_path / "y.npy", IDS.astype(np.uint8))
    data = load_dataset("features", path=tmp_path / "x.npy", labels=tmp_path / "y.npy", **SIZES)
    assert np.array_equal(data.query.inputs.numpy(), FEATURES[data.query.indices.numpy()])
    assert data.query.labels.dtype == torch.int64


@pytest.mark.parametrize(("protocol", "database"), [("paper", 18), ("keep-train", 48)])
def test_pooled_protocols(path, protocol, database):
    data = load_dataset("features", path=save(path), protocol=protocol, **SIZES)
    assert len(data.database) == database
    assert data.train_in_database == (protocol == "keep-train")


@pytest.mark.parametrize("protocol", [None, "full"])
def test_full_protocol_takes_the_leading_rows(path, protocol):
    data = load_dataset("features", path=save(path), protocol=protocol, num_train=45, validation=0)
    assert data.protocol == "full"
    assert data.train.indices.tolist() == data.database.indices.tolist() == list(range(45))
    assert data.query.indices.tolist() == list(range(45, N))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_dtypes_are_float32_on_access(tmp_path, dtype):
    values = FEATURES.astype(dtype)
    data = load_dataset("features", path=save(tmp_path / "f.npz", features=values), num_train=40)
    inputs, _ = data.query.batch([0, 3])
    assert inputs.dtype == data.query.inputs.dtype == torch.float32
    assert np.array_equal(inputs.numpy(), values[[40, 43]].astype(np.float32))
    kept = torch.float16 if dtype == np.float16 else torch.float32
    assert data.query.rows.values.dtype == kept


def test_bfloat16(tmp_path):
    values = torch.from_numpy(FEATURES).bfloat16()
    labels = torch.from_numpy(MULTI).bfloat16()
    path = save(tmp_path / "f.safetensors", features=values, labels=labels)
    data = load_dataset("features", path=path, num_train=40)
    assert torch.equal(data.query.inputs, values[40:].float())
    assert np.array_equal(data.query.labels.numpy(), MULTI[40:])


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float32])
def test_multi_hot(path, dtype):
    save(path, labels=MULTI.astype(dtype))
    data = load_dataset("features", path=path, num_queries=10, num_train=20)
    assert data.multi_label
    assert data.num_classes == 4
    assert data.query.labels.dtype == torch.uint8
    assert np.array_equal(data.query.labels.numpy(), MULTI[data.query.indices.numpy()])
    assert [len(s) for s in (data.train, data.validation, data.query, data.database)] == [18, 2, 10, 30]


def test_one_hot_rows_are_ids_unless_asked_otherwise(path):
    save(path, labels=np.eye(3, dtype=np.uint8)[IDS])
    data = load_dataset("features", path=path, **SIZES)
    assert np.array_equal(data.query.labels.numpy(), IDS[data.query.indices.numpy()])
    kept = load_dataset("features", path=path, multi_label=True, num_queries=10, num_train=20)
    assert kept.query.labels.shape == (10, 3)


def test_standardize_uses_the_training_rows_alone(path):
    features = FEATURES.copy()
    features[:, 2] = 7.0
    features[50:] += 100  # Queries: they must not be seen.
    save(path, features=features.astype(np.float16))
    data = load_dataset("features", path=path, num_train=50, standardize=True, validation=0.2)
    stored = features.astype(np.float16).astype(np.float64)
    train = stored[data.train.indices.numpy()]
    mean, deviation = train.mean(0), train.std(0)
    deviation[2] = 1
    for split in (data.train, data.validation, data.query):
        expected = (stored[split.indices.numpy()] - mean) / deviation
        assert np.abs(split.inputs.numpy() - expected).max() < 1e-4
        assert torch.equal(split.batch(slice(None))[0], split.inputs)
        assert torch.equal(split[0][0], split.inputs[0])
    assert np.allclose(data.standardization[0], mean, rtol=1e-6)
    assert np.allclose(data.standardization[1], deviation, rtol=1e-6)
    assert load_dataset("features", path=path, num_train=50).standardization is None


def test_split_arrays_of_the_file(path):
    rows = {"train": np.array([4, 2, 0]), "query": np.array([9, 8])}
    data = load_dataset("features", path=save(path, **rows), validation=0)
    assert data.train.indices.tolist() == [4, 2, 0]
    assert data.query.indices.tolist() == [9, 8]
    assert data.database.indices.tolist() == [i for i in range(N) if i not in (8, 9)]
    assert data.protocol == "split of the file"
    data = load_dataset("features", path=save(path, database=np.arange(20, 30, dtype=np.int32), **rows))
    assert data.database.indices.tolist() == list(range(20, 30))
    assert load_dataset("features", path=path, protocol="full", num_train=30).train_in_database


@pytest.mark.parametrize("kind", ["U", "S"])
def test_split_words_of_the_file(tmp_path, kind):
    words = np.array(["train"] * 20 + ["query"] * 10 + ["database"] * 30, dtype=kind)
    data = load_dataset("features", path=save(tmp_path / "f.npz", split=words), validation=0)
    assert data.query.indices.tolist() == list(range(20, 30))
    assert data.database.indices.tolist() == list(range(30, 60))
    words[30:] = "query"
    data = load_dataset("features", path=save(tmp_path / "f.npz", split=words), validation=0)
    assert data.database.indices.tolist() == list(range(20))


def test_class_names(tmp_path):
    path = save(tmp_path / "f.npz", class_names=np.array(["a", "b", "c"]))
    assert load_dataset("features", path=path, **SIZES).class_names == ["a", "b", "c"]
    assert load_dataset("features", path=path, class_names=["x", "y", "z"], **SIZES).class_names[0] == "x"


def test_split_file(path):
    save(path)
    load_dataset("features", path=path, seed=4, **SIZES).save_split(path.with_suffix(".json"))
    again = load_dataset("features", path=path, split_file=path.with_suffix(".json"))
    assert len(again.query) == 12
    assert again.seed == 4
    save(path, labels=IDS[::-1].copy())
    with pytest.raises(ValueError, match="other data: fingerprint"):
        load_dataset("features", path=path, split_file=path.with_suffix(".json"))


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return array


BAD_ARRAYS = [
    ({"features": changed(FEATURES, (7, 1), np.nan)}, ValueError, "features: row 7 holds NaN"),
    ({"features": changed(FEATURES, (59, 0), -np.inf)}, ValueError, "features: row 59 holds NaN"),
    ({"features": changed(FEATURES.astype(float), (8, 0), 1e300)}, ValueError, "row 8 .*beyond float32"),
    ({"features": IDS.copy()}, ValueError, r"features: expected shape \(n, d\)"),
    ({"features": FEATURES[:, 0].copy()}, ValueError, r"features: expected shape \(n, d\)"),
    ({"features": FEATURES[None].copy()}, ValueError, r"features: expected shape \(n, d\)"),
    ({"features": FEATURES[:0]}, ValueError, "features: .*not empty"),
    ({"features": FEATURES[:, :0].copy()}, ValueError, "features: .*not empty"),
    ({"features": None}, ValueError, r"expected an array 'features', found \['labels'\]"),
    ({"labels": None}, ValueError, "labels: expected their file, or 'labels' beside the features in .*alone"),
    ({"labels": IDS[:-1]}, ValueError, r"labels: expected ids \(60,\)"),
    ({"labels": IDS[None].copy()}, ValueError, r"labels: expected ids \(60,\)"),
    ({"labels": IDS[:, None][:, :0]}, ValueError, "labels: expected at least 1 column"),
    ({"labels": None, "extra": IDS}, ValueError, r"expected an array 'labels', found \['extra', 'features'\]"),
    ({"labels": None, "y": IDS, "target": IDS.copy()}, ValueError, "labels: 'y' and 'target' could both be meant"),
    ({"labels": IDS + 0.5}, TypeError, "labels: expected whole numbers as class ids, or strings"),
    ({"labels": changed(IDS.astype(float), 3, np.nan)}, TypeError, "labels: expected whole numbers"),
    ({"labels": changed(IDS.astype(float), 3, 1e300)}, TypeError, "labels: expected whole numbers"),
    ({"labels": IDS.astype(float) - 1}, ValueError, "labels: row 0 is -1"),
    ({"labels": IDS - 1}, ValueError, "labels: row 0 is -1"),
    ({"labels": changed(IDS, 5, 2**40)}, ValueError, "labels: row 5 is 1099511627776"),
    ({"labels": changed(MULTI, (0, 0), 2)}, ValueError, "labels: expected rows of zeros and ones"),
    ({"labels": changed(MULTI.astype(float), (0, 0), np.nan)}, ValueError, "labels: expected rows of zeros"),
    ({"train": np.array([0])}, ValueError, "expected an array 'query' beside 'train'"),
    ({"train": np.array([0]), "query": np.array([60])}, ValueError, "query: .*0 to 59, got 60"),
    ({"train": np.array([0]), "query": np.array([1.0])}, TypeError, "query: .*integer"),
    ({"train": np.array([0, 0]), "query": np.array([1])}, ValueError, "train: .*row 0 twice"),
    ({"train": np.array([0]), "query": np.array([0])}, ValueError, "query: .*no row of train"),
    ({"train": np.array([0]), "query": np.array([], np.int64)}, ValueError, "query: .*at least one"),
]


@pytest.mark.parametrize(("arrays", "error", "match"), BAD_ARRAYS)
def test_bad_arrays(path, arrays, error, match):
    save(path, **arrays)
    with pytest.raises(error, match=match):
        load_dataset("features", path=path, validation=0)


BAD_NUMPY = [
    ({"features": np.array([[None] * D] * N)}, ValueError, "cannot be read .*allow_pickle"),
    ({"labels": np.array([None] * N)}, ValueError, "cannot be read .*allow_pickle"),
    ({"labels": np.array([["a", "b"]] * N)}, ValueError, "labels: expected one string a row"),
    ({"labels": np.array(["a"] * N), "class_names": np.array(["b"])}, ValueError, "labels: 'a' is none of class_n"),
    ({"features": FEATURES.astype(complex)}, TypeError, "features: expected floating"),
    ({"features": FEATURES.astype(np.longdouble)}, TypeError, "features: expected floating"),
    ({"split": np.array(["train"] * 5)}, ValueError, "split: expected 60 strings"),
    ({"split": IDS}, ValueError, "split: expected 60 strings"),
    ({"split": np.array(["train"] * 59 + ["test"])}, ValueError, "split: row 59 is 'test'"),
    ({"split": np.array(["train"] * N), "query": IDS}, ValueError, "either 'split' or 'query', got both"),
    ({"split": np.array(["train"] * N)}, ValueError, "query: .*at least one"),
    ({"class_names": np.array(["a"]), "train": IDS[:1], "query": IDS[1:2]}, ValueError, "class_names: .*3 names"),
]


@pytest.mark.parametrize(("arrays", "error", "match"), BAD_NUMPY)
def test_bad_numpy_arrays(tmp_path, arrays, error, match):
    path = save(tmp_path / "f.npz", **arrays)
    with pytest.raises(error, match=match):
        load_dataset("features", path=path, validation=0)


OPTIONS = [
    ({"protocol": "paper"}, "queries_per_class=100 and train_per_class=500: .*has 20"),
    ({"protocol": "holdout", "num_train": 9}, "num_train: protocol 'holdout' of single-label data takes no numbers"),
    ({"protocol": "test"}, "protocol: .*'full'"),
    ({"protocol": "full"}, "num_train: protocol 'full' of single-label data needs it"),
    ({"protocol": "full", "num_train": 60}, "num_train: .*1 to 59, got 60"),
    ({"protocol": "full", "num_train": 9, "queries_per_class": 1}, "queries_per_class: .*takes num_train"),
    ({"protocol": "paper", "num_train": 9}, "num_train: .*takes queries_per_class and train_per_class"),
    ({"num_queries": 9}, "num_queries: .*'paper' of single-label"),
    ({"queries_per_class": 0}, "queries_per_class: .*at least 1"),
    ({"multi_label": True}, "multi_label: True needs multi-hot rows"),
    ({"labels": "y.npy"}, "labels: expected None"),
]


@pytest.mark.parametrize(("options", "match"), OPTIONS)
def test_bad_options(path, options, match):
    with pytest.raises(ValueError, match=match):
        load_dataset("features", path=save(path), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"protocol": "paper"}, "num_queries: protocol 'paper' of multi-label data needs it"),
        ({"num_queries": 5}, "num_train: .*needs it"),
        ({"num_queries": 50, "num_train": 20}, "num_queries=50 and num_train=20: .*data set has 60"),
        ({"queries_per_class": 5}, "queries_per_class: .*multi-label data takes num_queries and num_train"),
        ({"multi_label": False, "num_train": 5}, "multi_label: False needs one class a row"),
    ],
)
def test_bad_options_of_multi_label_data(path, options, match):
    with pytest.raises(ValueError, match=match):
        load_dataset("features", path=save(path, labels=MULTI), **options)


def test_options_against_the_split_of_the_file(path):
    save(path, train=np.array([0]), query=np.array([1]))
    with pytest.raises(ValueError, match=r"num_train: .*has its own split"):
        load_dataset("features", path=path, num_train=5)


def test_standardize_must_be_bool(path):
    with pytest.raises(TypeError, match="standardize: "):
        load_dataset("features", path=save(path), standardize=1)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY\x01", b"\x80\x04\x95.", b"x" * 500, None], ids=range(6)
)
@pytest.mark.parametrize("name", ["f.npz", "f.safetensors", "f.npy"])
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / name
    labels = tmp_path / "y.npy"
    np.save(labels, IDS)
    if content is None:
        save(path) if name != "f.npy" else np.save(path, FEATURES)
        content = path.read_bytes()[:-300]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        load_dataset("features", path=path, labels=labels if name == "f.npy" else None)


@pytest.mark.parametrize("which", ["path", "labels"])
def test_a_pickle_in_an_npy_file_is_not_loaded(tmp_path, which):
    files = {"path": tmp_path / "x.npy", "labels": tmp_path / "y.npy"}
    np.save(files["path"], FEATURES)
    np.save(files["labels"], IDS)
    np.save(files[which], np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=f"{files[which].name}: cannot be read .*allow_pickle"):
        load_dataset("features", **files)


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("none.npz", FileNotFoundError, "path: no such file.*none.npz"),
        (".", ValueError, "path: expected a regular file"),
        ("x.csv", ValueError, "path: expected an .npz, .npy or .safetensors"),
        ("x.npy", ValueError, "labels: expected their file, or"),
    ],
)
def test_paths_refused(tmp_path, name, error, match):
    for existing in ("x.csv", "x.npy"):
        (tmp_path / existing).write_bytes(b"x")
    with pytest.raises(error, match=match):
        load_dataset("features", path=tmp_path / name)


def test_missing_labels_file(tmp_path):
    np.save(tmp_path / "x.npy", FEATURES)
    with pytest.raises(FileNotFoundError, match=r"labels: no such file.*y\.npy"):
        load_dataset("features", path=tmp_path / "x.npy", labels=tmp_path / "y.npy")


@pytest.mark.parametrize("labels", [IDS, MULTI], ids=["ids", "multi-hot"])
def test_any_data_have_a_split(path, labels):
    data = load_dataset("features", path=save(path, labels=labels), validation=0)
    assert (data.protocol, len(data.query), len(data.database), len(data.train)) == ("holdout", 6, 54, 54)
    assert not set(data.query.indices.tolist()) & set(data.database.indices.tolist())


def test_holdout_caps_and_rare_classes():
    labels = np.array([0] * 100 + [1] * 2 + [2])
    chosen = splits.holdout(labels, 0)
    assert np.bincount(labels[chosen.query], minlength=3).tolist() == [10, 1, 0]
    capped = splits.holdout(labels, 0, most_queries=4, most_train=20)
    assert [len(part) for part in (capped.query, capped.train, capped.database)] == [4, 20, 99]
    assert set(capped.train) <= set(capped.database)
    with pytest.raises(ValueError, match="labels: expected a class of at least 2 rows"):
        splits.holdout(np.arange(5), 0)


@pytest.mark.parametrize(("x", "y"), [("X", "y"), ("embeddings", "targets"), ("data", "target")])
def test_usual_names_columns_and_integers(path, x, y):
    save(path, features=None, labels=None, **{x: IDS[:, None] * np.array([1, 2]), y: IDS[:, None].copy()})
    data = load_dataset("features", path=path)
    assert data.query.inputs.dtype == torch.float32
    assert torch.equal(data.database.inputs[:, 1], 2.0 * data.database.labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.bool_])
def test_labels_of_any_number_type(tmp_path, dtype):
    labels = IDS % 2 if dtype is np.bool_ else IDS
    data = load_dataset("features", path=save(tmp_path / "f.npz", labels=labels.astype(dtype)))
    assert torch.equal(data.query.labels, torch.from_numpy(labels)[data.query.indices])


@pytest.mark.parametrize("name", ["X", "my_array", "arr_0"])
@pytest.mark.parametrize("labels", ["y.npy", "y.npz", "y.pt"])
def test_labels_in_a_file_of_their_own(tmp_path, name, labels):
    """Of a file with one array, its name says nothing."""
    file = save(tmp_path / "x.npz", features=None, labels=None, **{name: FEATURES})
    if labels == "y.npy":
        np.save(tmp_path / labels, IDS)
    elif labels == "y.npz":
        np.savez(tmp_path / labels, y=IDS)
    else:
        torch.save(torch.from_numpy(IDS), tmp_path / labels)
    data = load_dataset("features", path=file, labels=tmp_path / labels)
    assert torch.equal(data.query.labels, torch.from_numpy(IDS)[data.query.indices])
    with pytest.raises(ValueError, match=r"labels: expected their file, or .*x\.npz"):
        load_dataset("features", path=file)
    np.savez(tmp_path / "z.npz", a=IDS, b=IDS)
    with pytest.raises(ValueError, match=r"labels: expected one array in .*z\.npz, found \['a', 'b'\]"):
        load_dataset("features", path=file, labels=tmp_path / "z.npz")


def test_two_arrays_without_names(tmp_path):
    np.savez(tmp_path / "f.npz", FEATURES, IDS)
    data = load_dataset("features", path=tmp_path / "f.npz")
    assert np.array_equal(data.query.inputs.numpy(), FEATURES[data.query.indices.numpy()])


@pytest.mark.parametrize("kind", ["U", "S"])
def test_string_labels(tmp_path, kind):
    words = np.array(["dog", "cat", "ape"])[IDS].astype(kind)
    data = load_dataset("features", path=save(tmp_path / "f.npz", labels=words))
    assert (data.class_names, data.num_classes) == (["ape", "cat", "dog"], 3)
    assert torch.equal(data.query.labels, 2 - torch.from_numpy(IDS)[data.query.indices])
    names = np.array(["dog", "cat", "ape", "emu"])
    data = load_dataset("features", path=save(tmp_path / "f.npz", labels=words, class_names=names))
    assert (data.class_names, data.num_classes) == (names.tolist(), 4)
    assert torch.equal(data.query.labels, torch.from_numpy(IDS)[data.query.indices])


def test_pt_files_of_tensors_alone(tmp_path):
    file = tmp_path / "f.pt"
    torch.save({"X": torch.from_numpy(FEATURES), "y": torch.from_numpy(IDS), "note": "mine"}, file)
    data = load_dataset("features", path=file)
    assert np.array_equal(data.query.inputs.numpy(), FEATURES[data.query.indices.numpy()])
    torch.save(torch.from_numpy(FEATURES), file)
    torch.save(torch.from_numpy(IDS), tmp_path / "y.pt")
    assert len(load_dataset("features", path=file, labels=tmp_path / "y.pt").query) == 6
    with pytest.raises(ValueError, match="labels: expected their file, or"):
        load_dataset("features", path=file)
    for labels in (torch.from_numpy(IDS), IDS.tolist(), [f"class {i}" for i in IDS]):
        torch.save((torch.from_numpy(FEATURES), labels), file)
        data = load_dataset("features", path=file)
        assert torch.equal(data.query.labels, torch.from_numpy(IDS)[data.query.indices])
    torch.save((torch.from_numpy(FEATURES), [1, "a"]), file)
    with pytest.raises(TypeError, match=r"f\.pt: labels: expected a tensor, got list"):
        load_dataset("features", path=file)
    torch.save({"X": pathlib.PurePath("x")}, file)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        load_dataset("features", path=file)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "f.npz")
    assert len(load_dataset("features", path="~/f.npz").query) == 6
