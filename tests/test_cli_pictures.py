"""A new user's own pictures on the command line: from folders per class to answers."""

import json

import numpy as np
import pytest
from PIL import Image

from nhl_fast.cli import main
from nhl_fast.core.files import read_json

COLORS = {"cat": (220, 20, 20), "dog": (20, 220, 20)}
TRAIN = ["--image-size", "8", "--epochs", "4", "--lengths", "4,8,12", "--quiet"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Pictures of two colours, and a run on them."""
    base = tmp_path_factory.mktemp("mine")
    for name, color in COLORS.items():
        (base / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng([i, *color]).integers(-20, 20, (20, 24, 3))
            pixels = (noise + color).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(base / "pictures" / name / f"{i:02}.png")
    assert main(["train", "--data", str(base / "pictures"), "--out", str(base / "run"), *TRAIN]) == 0
    return base


def test_a_run_on_a_folder(mine):
    stored = read_json(mine / "run" / "config.json")
    assert (stored["data"]["name"], stored["data"]["root"]) == ("folder", str(mine / "pictures"))
    assert stored["config"]["backbone"] == "conv"
    assert stored["inputs"]["class_names"] == ["cat", "dog"]
    metrics = read_json(mine / "run" / "metrics.json")
    assert (metrics["protocol"], metrics["num_queries"], metrics["num_database"]) == ("holdout", 4, 36)
    assert (mine / "run" / "pictures" / "gallery.png").is_file()


def test_codes_with_names(mine, tmp_path, capsys):
    argv = ["encode", str(mine / "run"), "--input", str(mine / "pictures"), "-o", str(tmp_path / "c.npy"), "--json"]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["codes"], said["names"]) == (40, str(tmp_path / "c.names.txt"))
    assert (tmp_path / "c.names.txt").read_text().splitlines()[19:21] == ["cat/19.png", "dog/00.png"]


@pytest.mark.parametrize(
    ("preset", "given", "backbone"), [("default", ["--backbone", "mlp"], "mlp"), ("tuned", [], "conv")]
)
def test_the_backbone_of_pictures(mine, tmp_path, preset, given, backbone):
    argv = ["train", "--data", "folder", "--root", str(mine / "pictures"), "--out", str(tmp_path / "r"), *TRAIN]
    argv += ["--preset", preset, "--centers", "nested", "--epochs", "1", "--no-evaluate", *given]
    assert main(argv) == 0
    assert read_json(tmp_path / "r" / "config.json")["config"]["backbone"] == backbone


def test_data_by_its_place(mine, tmp_path, capsys):
    np.savez(tmp_path / "f.npz", X=np.random.default_rng(0).normal(size=(40, 6)), y=["a", "b"] * 20)
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, rows in (("train", range(8)), ("test", range(8, 10)), ("database", range(8))):
        Image.new("RGB", (9, 9)).save(lists / "9.png")
        for i in rows:
            Image.new("RGB", (9, 9), (i, 0, 0)).save(lists / f"{i}.png")
        (lists / f"{name}.txt").write_text("".join(f"{i}.png,{i % 2}\n" for i in rows))
    few = ["--epochs", "1", "--lengths", "4", "--hidden", "4", "--quiet", "--no-evaluate"]
    for place, kind, key in ((tmp_path / "f.npz", "features", "path"), (lists, "list", "root")):
        size = ["--image-size", "8"] if kind == "list" else []
        assert main(["train", "--data", str(place), "--out", str(tmp_path / kind), *few, *size]) == 0
        data = read_json(tmp_path / kind / "config.json")["data"]
        assert (data["name"], data[key]) == (kind, str(place))
    capsys.readouterr()
    argv = ["train", "--data", str(lists), "--root", str(lists), "--out", str(tmp_path / "x")]
    assert main(argv) == 1
    assert "--root: --data" in capsys.readouterr().err
    argv = ["train", "--data", "features", "--path", str(lists), "--out", str(tmp_path / "x")]
    assert main(argv) == 1
    assert "--path: expected a file, got the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "x")])
    assert "--data: no such folder or file" in capsys.readouterr().err


def test_home_in_paths(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(mine))
    argv = ["train", "--data", "~/pictures", "--out", str(tmp_path / "r"), *TRAIN, "--epochs", "1", "--no-evaluate"]
    assert main(argv) == 0
    assert read_json(tmp_path / "r" / "config.json")["data"]["root"] == str(mine / "pictures")
