"""A new user's own pictures on the command line: from folders per class to answers."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import nhl_fast as nhl
from nhl_fast.cli import main
from nhl_fast.core.files import read_json, write_json
from nhl_fast.data import load_dataset
from nhl_fast.pictures import plots
from nhl_fast.training.evaluate import evaluate_model
from nhl_fast.training.run import Run
from nhl_fast.training.run_pictures import write_gallery

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


def test_search_with_a_picture_of_ones_own(mine, tmp_path, capsys):
    picture = tmp_path / "my own.jpg"
    Image.new("RGB", (50, 40), (200, 30, 30)).save(picture)
    argv = ["search", str(mine / "run"), "--query", str(picture), "-k", "3", "--length", "8"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (query,) = said["queries"]
    assert (said["length"], query["query"], len(query["answers"])) == (8, str(picture), 3)
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{picture}, 8 bits:"
    assert lines[1].split() == ["id", "distance", "label", "name"]
    rows = [line.split() for line in lines[3:]]
    assert rows == [[str(a["id"]), str(a["distance"]), a["label"], a["name"]] for a in query["answers"]]
    # The answers are those of the codes, and the names those of the database.
    data = load_dataset("folder", root=mine / "pictures", image_size=8, split_file=mine / "run" / "split.json")
    codes = nhl.load(mine / "run").encode(str(picture))
    distances, ids = nhl.search(codes, np.load(mine / "run" / "codes" / "database.npy"), 3, length=8)
    assert [a["id"] for a in query["answers"]] == ids[0].tolist()
    assert [a["distance"] for a in query["answers"]] == distances[0].tolist()
    for answer in query["answers"]:
        assert (mine / "pictures" / answer["name"]).is_file()
        assert answer["name"].split("/")[0] == answer["label"]
        assert np.array_equal(
            data.database.raw(answer["id"]), np.array(Image.open(mine / "pictures" / answer["name"]))
        )
    assert main(["search", str(mine / "run"), "--query", str(mine / "pictures"), "-k", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [q["query"] for q in said["queries"]][20:22] == ["dog/00.png", "dog/01.png"]


def test_search_encodes_the_database_again_where_the_weights_are_others(mine, tmp_path, capsys):
    run = shutil.copytree(mine / "run", tmp_path / "run")
    argv = ["search", str(run), "--query", "0", "-k", "30", "--json"]
    assert main(argv) == 0
    before = json.loads(capsys.readouterr().out)
    assert all(a["name"].startswith(a["label"]) for a in before["queries"][0]["answers"])
    np.save(run / "codes" / "database.npy", np.zeros((36, 2), np.uint8))
    assert main(argv) == 0
    assert {a["distance"] for a in json.loads(capsys.readouterr().out)["queries"][0]["answers"]} != {
        a["distance"] for a in before["queries"][0]["answers"]
    }  # the codes of the evaluation, not encoded again
    metrics = read_json(run / "metrics.json")
    write_json(run / "metrics.json", {**metrics, "weights_sha256": "of others"})
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out) == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (["gone.jpg"], "image file gone.jpg: cannot be read"),
        (["gone.npy"], "--query: no such file"),
        (["gone.jpg", "1"], "--query: expected numbers of the run's queries or files, not both"),
        (["4"], "--query: expected 0 to 3, got 4"),
        (["-1"], "--query: expected 0 to 3, got -1"),
    ],
)
def test_queries_that_are_none(mine, capsys, query, message):
    assert main(["search", str(mine / "run"), "--query", *query]) == 1
    assert message in capsys.readouterr().err


def test_search_with_features(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez(tmp_path / "f.npz", X=x, y=["a", "b"] * 20)
    few = ["--epochs", "1", "--lengths", "4,8", "--hidden", "4", "--quiet", "--no-evaluate"]
    assert main(["train", "--data", str(tmp_path / "f.npz"), "--out", str(tmp_path / "r"), *few]) == 0
    np.save(tmp_path / "q.npy", x[:2])
    capsys.readouterr()
    assert main(["search", str(tmp_path / "r"), "--query", str(tmp_path / "q.npy"), "-k", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [q["query"] for q in said["queries"]] == [f"{tmp_path / 'q.npy'}[0]", f"{tmp_path / 'q.npy'}[1]"]
    assert set(said["queries"][0]["answers"][0]) == {"id", "distance", "label"}
    assert main(["search", str(tmp_path / "r"), "--query", "my.jpg"]) == 1
    assert "--query: this model takes numbers" in capsys.readouterr().err


def test_the_gallery_says_class_and_file(mine, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_gallery", lambda pictures, results, *a, **k: drawn.append((pictures, results)))
    run = Run.open(mine / "run")
    evaluation = evaluate_model(run.model, run.data)
    write_gallery(tmp_path / "g.png", evaluation, run.data)
    pictures, results = drawn[0]
    captions = [label for _, label in pictures] + [label for one in results[4] for _, label, _ in one]
    assert all(re.fullmatch(r"(cat|dog)\n\d\d\.png", text) for text in captions)
    assert {text.split("\n")[0] for text in captions[:2]} == {"cat", "dog"}


@pytest.mark.parametrize(("run", "said"), [("toy", "Training: toy"), ("other", "Training: toy, other")])
def test_titles_say_a_name_of_data_and_run_once(run, said, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "toy.npz", features=rng.standard_normal((60, 4), np.float32), labels=np.arange(60) % 3)
    titles = []
    draw = plots.plot_history

    def drawn(*args, title, **options):
        titles.append(title)
        return draw(*args, title=title, **options)

    monkeypatch.setattr(plots, "plot_history", drawn)
    out = str(tmp_path / "runs" / run)
    assert main(["train", "--data", str(tmp_path / "toy.npz"), "--out", out, "--epochs", "1", "--quiet"]) == 0
    assert titles == [said]
