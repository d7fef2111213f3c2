"""A trained model, used without the data it was trained on."""

import numpy as np
import pytest
import torch
from PIL import Image

import nhl_fast as nhl
from nhl_fast.cli import main
from nhl_fast.core.files import read_json, write_json
from nhl_fast.data import load_dataset
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.model import encode_split
from nhl_fast.training.trainer import train

SMALL = {"epochs": 1, "hidden": (8,), "code_lengths": (4, 8, 12)}
RNG = np.random.default_rng(0)


@pytest.fixture
def features(tmp_path):
    """A run on standardised features with names, and the data; the file is gone."""
    path = tmp_path / "mine.npz"
    np.savez(path, X=RNG.normal(5, 3, (80, 6)).astype(np.float32), y=np.array(["cat", "dog"] * 40))
    spec = {"name": "features", "path": str(path), "standardize": True}
    data = load_dataset(**spec)
    train(data, TrainConfig(**SMALL), tmp_path / "run", data_spec=spec)
    raw = np.load(path)["X"][data.query.indices.numpy()]
    path.unlink()
    return tmp_path / "run", data, raw


@pytest.fixture
def pictures(tmp_path):
    """A run on pictures of a list."""
    root = tmp_path / "pictures"
    root.mkdir()
    lines = []
    for i in range(18):
        Image.fromarray(RNG.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(root / f"{i:02}.png")
        lines.append(f"{i:02}.png {i % 2} {1 - i % 2}\n")
    for name, part in (("train", lines[:12]), ("database", lines[:12]), ("test", lines[12:])):
        (root / f"{name}.txt").write_text("".join(part))
    spec = {"name": "list", "root": str(root), "resize": 10, "image_size": 8, "validation": 0}
    data = load_dataset(**spec)
    train(data, TrainConfig(**SMALL), tmp_path / "run", data_spec=spec)
    return tmp_path / "run", data, root


def test_features_without_their_file(features):
    run, data, raw = features
    trained = nhl.load(run)
    assert (trained.class_names, trained.code_lengths) == (["cat", "dog"], (4, 8, 12))
    wanted = encode_split(trained.model, data.query)
    assert torch.equal(trained.encode(raw), wanted)
    assert torch.equal(trained.encode(torch.from_numpy(raw), batch_size=3), wanted)
    assert torch.equal(trained.encode(raw, length=4), wanted[:, :1] & 0xF0)
    assert trained.encode(raw[:0]).shape == (0, 2)


def test_pictures_by_path(pictures):
    run, data, root = pictures
    trained = nhl.load(run)
    wanted = encode_split(trained.model, data.query)
    paths = [root / f"{i:02}.png" for i in range(12, 18)]
    assert torch.equal(trained.encode(paths), wanted)
    assert torch.equal(trained.encode(str(paths[2])), wanted[2:3])
    assert torch.equal(trained.encode(root), torch.cat([encode_split(trained.model, data.database), wanted]))


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (np.zeros((3, 5)), ValueError, r"inputs: expected rows of shape \(6,\)"),
        (np.array([["a"] * 6]), TypeError, "inputs: expected an array of numbers"),
        (np.full((1, 6), np.inf), ValueError, "inputs: expected finite"),
        ("x.jpg", TypeError, "inputs: this model takes numbers"),
        (7, TypeError, "inputs: "),
    ],
)
def test_wrong_inputs(features, inputs, error, match):
    with pytest.raises(error, match=match):
        nhl.load(features[0]).encode(inputs)


def test_wrong_length(features):
    with pytest.raises(ValueError, match="length: expected 1 to 12 bits, got 13"):
        nhl.load(features[0]).encode(features[2], length=13)


def test_a_run_of_before_needs_its_data(pictures):
    run, data, root = pictures
    stored = read_json(run / "config.json")
    assert stored.pop("inputs")["shape"] == [3, 8, 8]
    write_json(run / "config.json", stored)
    assert torch.equal(nhl.load(run).encode(root / "12.png"), encode_split(nhl.load(run).model, data.query)[:1])
    (root / "train.txt").unlink()
    with pytest.raises(FileNotFoundError):
        nhl.load(run)


def test_encode_command_on_features(features, tmp_path, capsys):
    run, data, raw = features
    np.save(tmp_path / "few.npy", raw)
    assert main(["encode", str(run), "--input", str(tmp_path / "few.npy"), "-o", str(tmp_path / "c.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "c.npy"), encode_split(nhl.load(run).model, data.query).numpy())
    assert not (tmp_path / "c.names.txt").exists()
    np.savez(tmp_path / "few.npz", X=raw, y=np.arange(len(raw)))
    torch.save({"features": torch.from_numpy(raw)}, tmp_path / "few.pt")
    for name in ("few.npz", "few.pt"):
        assert main(["encode", str(run), "--input", str(tmp_path / name), "-o", str(tmp_path / "d.npy")]) == 0
        assert np.array_equal(np.load(tmp_path / "c.npy"), np.load(tmp_path / "d.npy"))
    np.savez(tmp_path / "few.npz", a=raw, b=raw)
    assert main(["encode", str(run), "--input", str(tmp_path / "few.npz"), "-o", str(tmp_path / "d.npy")]) == 1
    assert "few.npz: expected an array 'features', found ['a', 'b']" in capsys.readouterr().err
    assert main(["encode", str(run), "--input", str(tmp_path), "-o", str(tmp_path / "c.npy")]) == 1
    assert "expected pictures" in capsys.readouterr().err


def test_encode_command_on_a_folder_of_pictures(pictures, tmp_path, capsys):
    run, data, root = pictures
    assert main(["encode", str(run), "--input", str(root), "-o", str(tmp_path / "c.npy")]) == 0
    assert "names in" in capsys.readouterr().out
    assert (tmp_path / "c.names.txt").read_text().split() == [f"{i:02}.png" for i in range(18)]
    wanted = encode_split(nhl.load(run).model, data.query).numpy()
    assert np.array_equal(np.load(tmp_path / "c.npy")[12:], wanted)
