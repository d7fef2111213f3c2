"""Pictures of every depth and orientation, and list files with names of every kind."""

import numpy as np
import pytest

from nhl_fast.data import load_dataset
from nhl_fast.data.images import eight_bits, open_picture

Image = pytest.importorskip("PIL.Image")


def grey(path):
    pixels = np.asarray(open_picture(path)).astype(int)
    assert pixels.shape[2] == 3
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ..., 65535


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(grey(tmp_path / f"x.{suffix}"), np.arange(256).reshape(16, 16))
    dark = (RAMP // 257).astype(np.uint16)  # a dark picture of 16 bits is dark
    Image.fromarray(dark).save(tmp_path / f"d.{suffix}")
    assert grey(tmp_path / f"d.{suffix}").max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32), np.arange(256)),
        (np.arange(256, dtype=np.int32), np.arange(256)),
        (np.arange(256, dtype=np.float32) / 255, np.arange(256)),
        (np.arange(256, dtype=np.float32), np.arange(256)),
        (RAMP.astype(np.float32), np.arange(256)),
        (np.arange(-128, 128, dtype=np.float32), np.arange(256)),
        (np.arange(256, dtype=np.int32) * 1000 - 5, np.arange(256)),
        (np.full(256, 300.0, np.float32), None),
    ],
)
def test_integers_and_floats_keep_their_range(tmp_path, values, expected):
    Image.fromarray(values.reshape(16, 16)).save(tmp_path / "x.tif")
    if expected is None:  # one value has no range
        assert len(np.unique(grey(tmp_path / "x.tif"))) == 1
    else:
        assert np.array_equal(grey(tmp_path / "x.tif").ravel(), expected)


def test_numbers_that_are_none_are_refused(tmp_path):
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: cannot be read .*NaN"):
        open_picture(tmp_path / "x.tif")
    assert eight_bits(np.zeros((0, 4), np.float32), "F").shape == (0, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_as_pillow_converts_them(tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    picture.save(path)
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(open_picture(path)), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as stored:
        stored.load()
        turned = np.asarray(ImageOps.exif_transpose(stored))
    assert turned.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    assert np.array_equal(np.asarray(open_picture(path)), turned)
    assert np.array_equal(np.asarray(open_picture(path, upright=False)), pixels)


def test_exif_of_a_sixteen_bit_picture_and_damaged_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(RAMP).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(grey(tmp_path / "x.png"), np.arange(255, -1, -1).reshape(16, 16))
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "d.jpg", exif=b"Exif\0\0nothing of the kind")
    assert grey(tmp_path / "d.jpg").shape == (16, 16)


# -------------------------------------------------------------------------------------------------- list files

NAMES = [
    "plain.png", "with space.png", "two  spaces 1 0.png", "ends in 1", "ends in 0 1", "no-break\u00a0space.png",
    "line\u2028separator.png", "next\x85line.png", "thin\u2009space.png", "file\x1cseparator.png", "schön.png", "0",
]  # fmt: skip


def pixels_of(name):
    return np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write(root, names, image_names=None):
    for name in NAMES if image_names is None else image_names:
        Image.fromarray(pixels_of(name)).save(root / name, format="png")
    for file, chosen in zip(("train.txt", "test.txt", "database.txt"), names):
        text = "".join(f"{name}{gap}1 0\t0\n" for name, gap in zip(chosen, (" ", "\t", " \t ") * 9))
        (root / file).write_bytes(text.encode())


@pytest.mark.parametrize("first", range(len(NAMES)))
def test_names_of_every_kind(tmp_path, first):
    names = NAMES[first:] + NAMES[:first]
    write(tmp_path, (names[:5], names[5:6], names[6:]))
    data = load_dataset("list", root=tmp_path, image_size=8, resize=8, validation=0)
    assert data.num_classes == 3
    assert (len(data.train), len(data.query), len(data.database)) == (5, 1, 6)
    assert data.train.labels.tolist() == [0] * 5
    for i, name in enumerate(names[:5]):
        assert np.array_equal(data.train.raw(i), pixels_of(name))


def test_labels_are_counted_from_the_right(tmp_path):
    """`a` and `a 1` both exist; the first line alone decides how many labels there are."""
    names = ["b.png", "a", "a 1", "c.png"]
    write(tmp_path, (names[:1], names[1:2], names[2:]), names)
    data = load_dataset("list", root=tmp_path, image_size=8, resize=8, validation=0)
    assert data.num_classes == 3
    (tmp_path / "test.txt").write_text("a 1 0\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 1: .*3, as in the first line, labels, got 2"):
        load_dataset("list", root=tmp_path, image_size=8, resize=8, validation=0)


def test_upright_is_an_option(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif)
    for file, name in zip(("train", "test", "database"), "abc"):
        (tmp_path / f"{file}.txt").write_text(f"{name}.png 1 0\n")
    options = {"root": tmp_path, "image_size": 8, "resize": 8, "validation": 0}
    assert load_dataset("list", **options).query.raw(0).shape == (12, 8, 3)
    assert np.array_equal(load_dataset("list", upright=False, **options).query.raw(0), pixels)
    with pytest.raises(TypeError, match="upright: expected True or False"):
        load_dataset("list", upright=1, **options)
