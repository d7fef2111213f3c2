import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nhl_fast.data import load_dataset
from nhl_fast.data.images import IMAGENET_MEAN, IMAGENET_STD, center_view, random_view

LINES = {
    "train.txt": [f"images/{i}.png" for i in range(6)],
    "test.txt": ["images/6.png", "images/7.jpg"],
    "database.txt": [f"images/{i}.png" for i in (5, 4, 3, 8, 9)],
}
SMALL = {"resize": 20, "image_size": 16}


def class_of(path):
    return int(os.path.splitext(os.path.basename(path))[0]) % 2


def picture(seed, height, width):
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(10):
        image = picture(i, 30 + i, 50 - 2 * i)
        image = {1: image.convert("L"), 2: image.convert("RGBA"), 3: image.convert("P")}.get(i, image)
        image.save(tmp_path / "images" / (f"{i}.jpg" if i == 7 else f"{i}.png"))
    for name, paths in LINES.items():
        rows = [f"{path} {'0 1' if class_of(path) else '1 0'}" for path in paths]
        (tmp_path / name).write_text("\n\n".join(rows) + "\n")
    return tmp_path


def test_list_files(root):
    data = load_dataset("list", root=root, validation=0, **SMALL)
    assert [len(s) for s in (data.train, data.validation, data.query, data.database)] == [6, 0, 2, 5]
    assert (data.num_classes, data.multi_label, data.input_kind) == (2, False, "images")
    assert data.input_shape == (3, 16, 16)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.database.labels.tolist() == [1, 0, 1, 0, 1]
    # A picture that two lists name is one row.
    assert data.database.indices[:3].tolist() == data.train.indices[[5, 4, 3]].tolist()
    assert data.train_in_database
    assert not data.train.in_memory
    assert not hasattr(data.train, "inputs")
    with pytest.raises(AttributeError, match=r"train: .*one by one"):
        _ = data.train.inputs
    assert data.query.raw(0).shape == (36, 38, 3)
    assert data.query.raw(0).dtype == np.uint8


def test_items_are_the_resized_cropped_normalised_pictures(root):
    data = load_dataset("list", root=root, validation=0, **SMALL)
    for split in (data.train, data.query):
        for i in range(len(split)):
            path = root / "images" / os.path.basename(split.rows.path(int(split.indices[i])))
            image = Image.open(path).convert("RGB")
            short = min(image.size)
            image = image.resize(tuple(20 * side // short for side in image.size), Image.Resampling.BILINEAR)
            left, top = (round((side - 16) / 2) for side in image.size)
            expected = np.asarray(image.crop((left, top, left + 16, top + 16))) / 255.0
            expected = ((expected - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
            inputs, label, index = split[i]
            assert index == i
            assert label == class_of(path)
            assert inputs.dtype == torch.float32
            assert inputs.is_contiguous()
            # Two roundings to whole grey levels, one of 4/255 at the most between them.
            assert np.abs(inputs.numpy() - expected).max() < 4 / 255 / 0.224
    inputs, labels = data.query.batch([1, 0])
    assert torch.equal(inputs[0], data.query[1][0])
    assert labels.tolist() == [1, 0]
    assert data.query.batch([])[0].shape == (0, 3, 16, 16)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (64, 500), (5, 7), (1, 1)])
def test_center_view_equals_resize_then_crop(size):
    image = picture(0, *size)
    short = min(image.size)
    resized = image.resize(tuple(256 * side // short for side in image.size), Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    assert np.abs(center_view(image, 256, 224) - expected).max() <= 1


def test_center_view_of_an_extreme_picture_stays_small():
    # Resized first it would have 256 x 7,680,000 pixels.
    view = center_view(Image.new("RGB", (30_000, 1), (9, 8, 7)), 256, 224)
    assert view.shape == (224, 224, 3)
    assert (view == [9, 8, 7]).all()


def test_random_view_takes_a_part_of_sound_size_and_flips_half():
    # A picture whose red and green levels are the column and the row shows which part was taken.
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200), np.arange(200)[:, None]
    image, rng, flips = Image.fromarray(ramp), np.random.default_rng(0), 0
    for _ in range(300):
        view = random_view(image, 64, rng).astype(float)
        flip = view[0, 0, 0] > view[0, -1, 0]
        flips += flip
        width, height = np.ptp(view[0, :, 0]) + 3, np.ptp(view[:, 0, 1]) + 3
        assert 0.08 * 0.8 < width * height / 200**2 < 1.06
        assert 3 / 4 * 0.85 < width / height < 4 / 3 * 1.15
    assert 110 < flips < 190
    for shape in ((1, 400), (400, 1), (1, 1)):
        assert random_view(Image.new("RGB", shape), 8, rng).shape == (8, 8, 3)


def test_augmentation_is_by_seed_epoch_and_index(root):
    def items(seed, epoch):
        data = load_dataset("list", root=root, augment=True, seed=seed, validation=0, **SMALL)
        data.train.set_epoch(epoch)
        return data.train.batch(slice(None))[0]

    first = items(0, 0)
    assert torch.equal(first, items(0, 0))
    assert not torch.equal(first, items(0, 1))
    assert not torch.equal(first, items(1, 0))
    data = load_dataset("list", root=root, augment=True, validation=0, **SMALL)
    assert torch.equal(data.train[4][0], first[4])
    assert torch.equal(data.train[4][0], first[4])
    assert data.train.batch([])[0].shape == (0, 3, 16, 16)
    # Everything but `train` shows whole pictures: also its twin that validation searches.
    plain = load_dataset("list", root=root, validation=0, **SMALL)
    assert data.train.augmented
    assert not data.validation_database.augmented
    for name in ("query", "database", "validation_database"):
        assert torch.equal(getattr(data, name).batch([0, 1])[0], getattr(plain, name).batch([0, 1])[0])
    with pytest.raises(ValueError, match="epoch: "):
        data.train.set_epoch(-1)


def test_workers_that_stay_see_the_next_epoch(root):
    data = load_dataset("list", root=root, augment=True, validation=0, **SMALL)
    loader = DataLoader(data.train, batch_size=4, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        data.train.set_epoch(epoch)
        inputs = torch.cat([batch[0] for batch in loader])
        assert torch.equal(inputs, data.train.batch(slice(None))[0])


def test_split_file_keeps_the_seed_of_crops_with_the_caller(root):
    data = load_dataset("list", root=root, augment=True, seed=1, validation=0.4, **SMALL)
    data.save_split(root / "split.json")
    options = {"root": root, "augment": True, "split_file": root / "split.json", **SMALL}
    same, other = load_dataset("list", seed=1, **options), load_dataset("list", seed=2, **options)
    assert len(data.validation) == 2
    assert same.train.indices.tolist() == other.train.indices.tolist() == data.train.indices.tolist()
    assert torch.equal(same.train[0][0], data.train[0][0])
    assert not torch.equal(other.train[0][0], data.train[0][0])


def test_split_file_of_other_pictures_is_refused(root):
    load_dataset("list", root=root).save_split(root / "split.json")
    (root / "images" / "10.png").write_bytes((root / "images" / "9.png").read_bytes())
    lines = (root / "database.txt").read_text()
    (root / "database.txt").write_text(lines.replace("images/9.png", "images/10.png"))
    with pytest.raises(ValueError, match="other data: fingerprint"):
        load_dataset("list", root=root, split_file=root / "split.json")


def test_multi_label(root):
    lines = (root / "train.txt").read_text().replace("images/0.png 1 0", "images/0.png 1 1")
    (root / "train.txt").write_text(lines.replace("images/1.png 0 1", "images/1.png 0 0"))
    data = load_dataset("list", root=root, validation=0, class_names=("a", "b"))
    assert data.multi_label
    assert data.train.labels.dtype == torch.uint8
    assert data.train.labels.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1], [1, 0], [0, 1]]
    assert data.class_names == ["a", "b"]
    with pytest.raises(ValueError, match=r"multi_label: .*row 0 has 2"):
        load_dataset("list", root=root, multi_label=False)


def test_multi_label_kept_where_asked(root):
    data = load_dataset("list", root=root, multi_label=True)
    assert data.query.labels.tolist() == [[1, 0], [0, 1]]


def test_image_root_and_dotted_paths(root):
    text = (root / "train.txt").read_text().replace("images/", "./images/./")
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    lists = root / "lists"
    lists.mkdir()
    for name in LINES:
        os.rename(root / name, lists / name)
    data = load_dataset("list", root=lists, image_root=root, validation=0, **SMALL)
    assert data.database.indices[0] == data.train.indices[5]
    assert data.train[0][0].shape == (3, 16, 16)


def test_file_names_that_are_not_utf8(root):
    name = os.fsdecode(b"images/\xff.png")
    os.rename(root / "images" / "9.png", root / name)
    lines = (root / "database.txt").read_bytes().replace(b"images/9.png", os.fsencode(name))
    (root / "database.txt").write_bytes(lines)
    data = load_dataset("list", root=root, **SMALL)
    assert data.database[4][0].shape == (3, 16, 16)


def test_names_that_end_in_digits_and_links(root):
    os.rename(root / "images" / "9.png", root / "images" / "real")
    (root / "images" / "9.png").symlink_to(root / "images" / "real")
    assert len(load_dataset("list", root=root).database) == 5


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"test\.txt: expected at least one line"),
        ("\n  \n", r"test\.txt: expected at least one line"),
        ("images/6.png 1 0\n\nimages/7.jpg 1", r"test\.txt, line 3: .*2, as in the first line, .*got 1"),
        ("images/6.png 1 0 0", r"test\.txt, line 1: .*got 3 labels"),
        ("images/6.png", r"test\.txt, line 1: .*got 0 labels"),
        ("images/6.png 1 2", r"test\.txt, line 1: .*0 or 1.*'2'"),
        ("images/6.png 1 0.0", r"test\.txt, line 1: .*'0\.0'"),
        ("images/my 6.png 1 0", r"test\.txt, line 1: no such image file: .*my 6\.png"),
        ("images/6.png 1 0 6.png", r"test\.txt, line 1: .*0 or 1.*'6\.png'"),
        ("images/66.png 1 0", r"test\.txt, line 1: no such image file: .*66\.png"),
        ("images 1 0", r"test\.txt, line 1: no such image file"),
        ("images/\0.png 1 0", r"test\.txt, line 1: no such image file"),
        ("../secret.png 1 0", r"test\.txt, line 1: .*below the image directory, got '\.\./secret\.png'"),
        ("images/../../secret.png 1 0", r"test\.txt, line 1: .*below the image directory"),
        ("/etc/passwd 1 0", r"test\.txt, line 1: .*below the image directory, got '/etc/passwd'"),
        ("images/6.png 1 0\nimages/6.png 1 0", r"test\.txt, line 2: .*listed twice, first in .*test\.txt, line 1"),
        ("images/0.png 1 0", r"test\.txt, line 1: .*also in .*train\.txt, line 1: queries"),
        ("images/8.png 1 0", r"database\.txt, line 7: .*also in .*test\.txt, line 1: queries"),
        ("images/0.png 0 1", r"test\.txt, line 1: .*other labels in .*train\.txt, line 1"),
    ],
)
def test_bad_lines_name_the_file_and_the_line(root, content, match):
    (root / "test.txt").write_text(content)
    with pytest.raises(ValueError, match=match):
        load_dataset("list", root=root)


@pytest.mark.parametrize("line", ["{} {}", "{}\t{}", "{},{}", "{}, {}", "{} 0{}"])
def test_class_ids(root, line):
    for name, paths in LINES.items():
        (root / name).write_text("".join(line.format(path, 3 * class_of(path)) + "\n" for path in paths))
    data = load_dataset("list", root=root, validation=0, **SMALL)
    assert (data.num_classes, data.multi_label) == (4, False)
    assert data.train.labels.tolist() == [0, 3, 0, 3, 0, 3]
    assert data.train[1][0].shape == (3, 16, 16)
    several = load_dataset("list", root=root, validation=0, multi_label=True, **SMALL)
    assert several.train.labels.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]] * 3
    (root / "test.txt").write_text(line.format("images/6.png", 1) + "\nimages/7.jpg cat\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 2: expected a class id .*, got '.*cat'"):
        load_dataset("list", root=root)


def write_ids(root, text, between):
    """train.txt: the pictures 0, 1, ... with the ids of `text`, one line's after a bar."""
    lines = [between.join((f"images/{i}.png", *ids.split())) for i, ids in enumerate(text.split("|"))]
    (root / "train.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("between", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("first", ["0 1", "3", "2 0", "1 4"])
def test_several_class_ids(root, first, between):
    (root / "test.txt").write_text(between.join(("images/6.png", "2", "1")) + "\nimages/7.jpg 0, 4")
    (root / "database.txt").write_text(between.join(("images/8.png", "1")))
    write_ids(root, f"{first}|2|4 3 0|1|3 1|0 2", between)
    data = load_dataset("list", root=root, validation=0, **SMALL)
    assert (data.num_classes, data.multi_label) == (5, True)
    ids = [set(row.nonzero()[:, 0].tolist()) for row in data.train.labels]
    assert ids == [set(map(int, first.split())), {2}, {0, 3, 4}, {1}, {1, 3}, {0, 2}]
    assert [row.nonzero()[:, 0].tolist() for row in data.query.labels] == [[1, 2], [0, 4]]
    assert data.database.labels.tolist() == [[0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match="multi_label: False needs one class a row, but row"):
        load_dataset("list", root=root, multi_label=False)
    for line, match in (
        ("6.png 4 2 4", r"test\.txt, line 1: expected every class id once, got 4 twice"),
        ("6.png 4 x 2", r"test\.txt, line 1: no such image file: .*4 x"),
        ("6.png", r"test\.txt, line 1: expected a class id after the path"),
    ):
        (root / "test.txt").write_text(f"images/{line}")
        with pytest.raises(ValueError, match=match):
            load_dataset("list", root=root)


def test_ids_after_names_that_end_in_numbers(root):
    """The files that are there say where a name ends; of two readings the one with fewer ids."""
    for name in ("photo", "photo 2", "photo 2 3"):
        os.link(root / "images" / "0.png", root / name)
    (root / "test.txt").write_text("images/6.png 4\nimages/7.jpg 1 2")
    (root / "database.txt").write_text("images/8.png 2")
    (root / "train.txt").write_text("photo 2 3 1 4\nphoto 2 0\nphoto,4,1\n")
    data = load_dataset("list", root=root, validation=0, **SMALL)
    assert [data.train.file_name(i) for i in range(3)] == ["photo 2 3", "photo 2", "photo"]
    assert [row.nonzero()[:, 0].tolist() for row in data.train.labels] == [[1, 4], [0], [1, 4]]


@pytest.mark.parametrize("second", ["0 1|1 0|0 0", "0 1|0 1|1 0"])
def test_labels_of_two_classes_are_no_ids(root, second):
    for name, rows in (("test.txt", "images/6.png 1 0"), ("database.txt", "images/8.png 1 0")):
        (root / name).write_text(rows)
    write_ids(root, second, " ")
    data = load_dataset("list", root=root, validation=0, multi_label=True, **SMALL)
    assert data.train.labels.tolist() == [[int(one) for one in row.split()] for row in second.split("|")]
    write_ids(root, "0 1|1 0|0 2", " ")  # a slip, since no line says more or less
    with pytest.raises(ValueError, match=r"train\.txt, line 3: expected labels 0 or 1 .*'2'"):
        load_dataset("list", root=root)


@pytest.mark.parametrize("comma", [",", ", ", " , "])
def test_commas(root, comma):
    """Also in and around names: what exists decides in the first line."""
    os.rename(root / "images" / "0.png", root / "images" / "0, 1.png")
    for name, paths in LINES.items():
        lines = [comma.join((path, *("0 1" if class_of(path) else "1 0").split())) for path in paths]
        (root / name).write_text("\n".join(lines).replace("images/0.png", "images/0, 1.png"))
    data = load_dataset("list", root=root, validation=0, **SMALL)
    assert (data.num_classes, data.train.labels.tolist()) == (2, [0, 1, 0, 1, 0, 1])
    assert data.train.rows.path(0).endswith("images/0, 1.png")
    (root / "test.txt").write_text("images/6.png,1,2")
    with pytest.raises(ValueError, match=r"test\.txt, line 1: .*0 or 1.*'2'"):
        load_dataset("list", root=root)


@pytest.mark.parametrize("line", ["{}", "{} cat", "{},cat", "{} -1", "{} 1.0", "{} 1234567"])
def test_first_lines_without_labels(root, line):
    (root / "train.txt").write_text(line.format("images/0.png"))
    with pytest.raises(ValueError, match=r"train\.txt, line 1: expected .*a class id or (at least 2 )?labels"):
        load_dataset("list", root=root)


def test_the_side_that_is_cut_follows_the_size(root):
    assert load_dataset("list", root=root).train.rows.resize == 256
    assert load_dataset("list", root=root, image_size=28).train.rows.resize == 32


@pytest.mark.parametrize("name", LINES)
def test_a_missing_list_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"root: no such file.*{name}"):
        load_dataset("list", root=root)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"image_size": 0}, ValueError, "image_size: "),
        ({"resize": 100}, ValueError, "resize: .*at least 224"),
        ({"augment": 1}, TypeError, "augment: "),
        ({"multi_label": "yes"}, TypeError, "multi_label: "),
        ({"class_names": ["a"]}, ValueError, "class_names: .*2 names, got 1"),
        ({"image_root": 5}, TypeError, "image_root: "),
        ({"protocol": "paper"}, TypeError, "protocol: .*no such option"),
    ],
)
def test_options_refused(root, options, error, match):
    with pytest.raises(error, match=match):
        load_dataset("list", root=root, **options)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>" + b, lambda b: None], ids=range(4)
)
@pytest.mark.parametrize("name", ["6.png", "7.jpg"])
def test_a_damaged_picture_is_named_when_it_is_opened(root, name, damage):
    data = load_dataset("list", root=root, **SMALL)
    path = root / "images" / name
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    i = 0 if name == "6.png" else 1
    for use in (lambda: data.query[i], lambda: data.query.batch([i]), lambda: data.query.raw(i)):
        with pytest.raises(ValueError, match=f"image file .*images/{name}: cannot be read"):
            use()
    assert data.query[1 - i][0].shape == (3, 16, 16)


def test_a_damaged_picture_is_named_through_a_worker(root):
    data = load_dataset("list", root=root, **SMALL)
    (root / "images" / "6.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"images/6\.png: cannot be read"):
        list(DataLoader(data.query, num_workers=1))
