"""Pictures in a folder per class, and in train/ and test/ of such folders."""

import numpy as np
import pytest
from PIL import Image

from nhl_fast.data import load_dataset

COLORS = {"cat": (220, 20, 20), "dog": (20, 220, 20), "owl": (20, 20, 220)}
SMALL = {"image_size": 16, "validation": 0}


def write(folder, count, classes=COLORS, first=0):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            noise = np.random.default_rng([i, *COLORS[name]]).integers(-20, 20, (20, 24, 3))
            pixels = (noise + COLORS[name]).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name} {i:02}.png")
    return folder


def names_of(split):
    return [split.rows.path(int(row)).split("/")[-1] for row in split.indices]


def test_a_folder_per_class(tmp_path):
    root = write(tmp_path, 20)
    (root / "cat" / "more").mkdir()
    (root / "cat" / "cat 00.png").rename(root / "cat" / "more" / "cat 00.png")
    (root / "cat" / "._cat 01.png").write_bytes(b"what macOS leaves")
    (root / "notes.txt").write_text("no picture")
    (root / "empty").mkdir()
    data = load_dataset("folder", root=str(root), **SMALL)
    assert (data.num_classes, data.class_names, data.protocol) == (3, ["cat", "dog", "owl"], "holdout")
    assert (data.input_kind, data.input_shape, data.multi_label) == ("images", (3, 16, 16), False)
    assert [len(s) for s in (data.train, data.query, data.database)] == [54, 6, 54]
    assert data.query.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for split in (data.train, data.query):
        assert [name.split()[0] for name in names_of(split)] == [data.class_names[y] for y in split.labels]
    inputs, labels, _ = data.query[2]
    assert inputs.argmax(0).unique().tolist() == [labels] == [1]  # green
    assert data.query.raw(0).shape == (20, 24, 3)


def test_numbers_and_protocols(tmp_path):
    root = write(tmp_path, 10)
    paper = load_dataset("folder", root=root, queries_per_class=2, train_per_class=5, **SMALL)
    assert (paper.protocol, len(paper.query), len(paper.train), len(paper.database)) == ("paper", 6, 15, 9)
    keep = load_dataset("folder", root=root, protocol="keep-train", queries_per_class=2, train_per_class=5, **SMALL)
    assert (len(keep.train), len(keep.database)) == (15, 24)
    with pytest.raises(ValueError, match="queries_per_class: protocol 'holdout'"):
        load_dataset("folder", root=root, protocol="holdout", queries_per_class=2)
    with pytest.raises(ValueError, match="protocol: expected one of 'holdout', 'paper', 'keep-train', got 'full'"):
        load_dataset("folder", root=root, protocol="full")


@pytest.mark.parametrize("held", ["test", "query", "val"])
def test_its_own_split(tmp_path, held):
    write(tmp_path / "train", 6)
    write(tmp_path / held, 2, ("cat", "owl"), first=6)
    data = load_dataset("folder", root=tmp_path, **SMALL)
    assert (data.class_names, data.protocol) == (["cat", "dog", "owl"], "split of the folders")
    assert names_of(data.query) == ["cat 06.png", "cat 07.png", "owl 06.png", "owl 07.png"]
    assert data.query.labels.tolist() == [0, 0, 2, 2]
    assert (len(data.train), names_of(data.database)) == (18, names_of(data.train))
    pooled = load_dataset("folder", root=tmp_path, protocol="holdout", **SMALL)
    assert (pooled.num_rows, len(pooled.query)) == (22, 3)
    with pytest.raises(ValueError, match=r"queries_per_class: .*has its own split"):
        load_dataset("folder", root=tmp_path, queries_per_class=2)


def test_train_val_test_and_database(tmp_path):
    for part, count, first in (("train", 4, 0), ("val", 2, 4), ("test", 1, 6), ("database", 3, 7)):
        write(tmp_path / part, count, first=first)
    data = load_dataset("folder", root=tmp_path, **SMALL)
    assert (len(data.train), len(data.query), len(data.database)) == (18, 3, 9)
    assert {name[:3] + name[-6:] for name in names_of(data.train)} >= {"cat05.png", "owl04.png"}
    write(tmp_path / "query", 1, first=11)
    with pytest.raises(ValueError, match=r"root: .*holds both query and test"):
        load_dataset("folder", root=tmp_path)


def test_classes_named_as_splits_are_classes(tmp_path):
    for name in ("train", "test", "bus"):
        write(tmp_path / name, 3, ("cat",))
    assert load_dataset("folder", root=tmp_path, **SMALL).class_names == ["bus", "test", "train"]


def test_what_is_no_folder_of_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match="root: no such folder"):
        load_dataset("folder", root=tmp_path / "gone")
    with pytest.raises(ValueError, match=r"root: expected a folder per class .*got none"):
        load_dataset("folder", root=tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"root: expected a folder per class .*got a\.jpg$"):
        load_dataset("folder", root=tmp_path)
    write(tmp_path, 2)
    with pytest.raises(ValueError, match=r"got a\.jpg beside them"):
        load_dataset("folder", root=tmp_path)


def test_a_split_file_knows_the_pictures(tmp_path):
    root = write(tmp_path / "pictures", 10)
    data = load_dataset("folder", root=root, seed=3, **SMALL)
    data.save_split(tmp_path / "split.json")
    again = load_dataset("folder", root=root, split_file=tmp_path / "split.json", **SMALL)
    assert names_of(again.query) == names_of(data.query)
    (root / "cat" / "cat 03.png").rename(root / "cat" / "other.png")
    with pytest.raises(ValueError, match="other data"):
        load_dataset("folder", root=root, split_file=tmp_path / "split.json", **SMALL)
