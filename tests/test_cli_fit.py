"""`nhl-fast fit`: its folder, encoding and searching with it, and sources that need other packages."""

import json
import re
import sys
import types

import killed
import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.cli import main
from nhl_fast.fit import embed
from nhl_fast.fit.run import FitRun

OPTIONS = ("--lengths", "4,8,12", "--queries", "20", "--steps", "8", "-k", "5")


def vectors(n=200, width=10):
    return np.random.default_rng(0).standard_normal((n, width)).astype(np.float32) * np.linspace(2, 0.3, width)


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "x.npy", vectors())
    return tmp_path / "x.npy"


def call(capsys, *argv, status=0):
    capsys.readouterr()
    assert main([str(a) for a in argv]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


@pytest.mark.parametrize("more", [(), ("--hidden", "6")], ids=["layer", "hidden"])
def test_a_fit_leaves_a_folder_that_encodes_and_searches(source, tmp_path, capsys, more):
    run = tmp_path / "run"
    said = call(capsys, "fit", source, "--out", run, *OPTIONS, *more)
    for method in ("learned", "raw query outputs", "random", "pca", "itq a length", "float vectors"):
        assert method in said
    assert (run / "pictures" / "recall.png").stat().st_size > 1000
    table = json.loads((run / "metrics.json").read_text())
    assert [table["queries"], table["database"], table["k"]] == [20, 180, 5]
    assert {row["method"]: row["recall"] for row in table["recall"]}["pca"]["12"] is None  # of 10 directions
    split = json.loads((run / "split.json").read_text())["query"]
    x = vectors()
    rest = np.delete(np.arange(200), split)
    fitted = FitRun.open(run)
    assert np.array_equal(np.load(run / "codes" / "database.npy"), fitted.encode(x[rest]))
    again = nhl.neighbor_recall(
        fitted.encode(x[split]), fitted.encode(x[rest]), x[split], x[rest], (4, 8, 12), 5, (5,)
    )
    assert table["recall"][0]["recall"] == {str(b): again.recall[b][5] for b in (4, 8, 12)}

    call(capsys, "encode", run, "--input", source, "-o", tmp_path / "codes.npy", "--length", "6")
    codes = np.load(tmp_path / "codes.npy")
    assert codes.shape == (200, 1)
    assert (codes & 3 == 0).all()
    call(capsys, "encode", run, "--split", "query", "-o", tmp_path / "q.npy")
    assert np.array_equal(np.load(tmp_path / "q.npy"), np.load(run / "codes" / "query.npy"))
    assert "--split" in call(capsys, "encode", run, "--split", "train", "-o", tmp_path / "q.npy", status=1)

    found = json.loads(call(capsys, "search", run, "--query", "0", "7", "-k", "4", "--length", "8", "--json"))
    distances, ids = nhl.search(fitted.encode(x[[split[7]]]), fitted.encode(x[rest]), 4, 8)
    answers = found["queries"][1]["answers"]
    assert found["queries"][1]["row"] == split[7]
    assert [a["row"] for a in answers] == rest[ids[0]].tolist()
    assert [a["distance"] for a in answers] == distances[0].tolist()
    assert "--query" in call(capsys, "search", run, "--query", "20", status=1)
    assert "row " in call(capsys, "search", run)
    for command in (("evaluate", run), ("encode", run, "--input", tmp_path / "q.npy", "-o", tmp_path / "n.npy")):
        call(capsys, *command, status=1)


def test_a_hidden_layer_trains_along(source, tmp_path, capsys):
    for name, more in (("plain", ()), ("hidden", ("--hidden", "6"))):
        call(capsys, "fit", source, "--out", tmp_path / name, *OPTIONS, *more, "--no-baselines")
    run = FitRun.open(tmp_path / "hidden")
    assert FitRun.open(tmp_path / "plain").backbone is None
    assert run.backbone.out.weight.abs().max() > 0  # where it started
    assert not run.backbone.training
    error = call(
        capsys, "fit", source, "--out", tmp_path / "n", *OPTIONS, "--hidden", "6", "--method", "itq", status=1
    )
    assert "--hidden: expected None with method 'itq'" in error
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(("stop", "more"), [(0, ()), (3, ()), (8, ()), (3, ("--hidden", "6"))])
def test_a_killed_fit_goes_on(source, tmp_path, capsys, monkeypatch, stop, more):
    call(capsys, "fit", source, "--out", tmp_path / "whole", *OPTIONS, *more, "--no-baselines")
    killed.after(stop, monkeypatch)
    broken = tmp_path / "broken"
    status = 130 if stop < 8 else 0
    call(capsys, "fit", source, "--out", broken, *OPTIONS, *more, "--no-baselines", status=status)
    monkeypatch.undo()
    assert "already holds a run" in call(capsys, "fit", source, "--out", broken, *OPTIONS, status=1)
    call(capsys, "fit", "--resume", broken)
    for name in ("model.safetensors", "codes/database.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (broken / name).read_bytes()
    assert "steps 8 -> 9" in call(capsys, "fit", "--resume", broken, "--steps", "9", status=1)
    np.save(source, vectors() + 1)
    assert "other vectors" in call(capsys, "fit", "--resume", broken, status=1)


def test_wrong_use(source, tmp_path, capsys):
    for argv, said in (
        (("fit", "--out", tmp_path / "r"), "give one of NPY"),
        (("fit", source, "--texts", source, "--out", tmp_path / "r"), "give one of NPY"),
        (("fit", source, "--model", "x", "--out", tmp_path / "r"), "--model: expected none"),
        (("fit", "--texts", source, "--out", tmp_path / "r"), "--model: expected the model"),
        (("fit", source, "--out", tmp_path), "--out: "),
        (("fit", source, "--resume", tmp_path / "no"), "--resume: "),
        (("fit", source, "--out", tmp_path / "r", "-k", "500"), "k: expected at most"),
    ):
        assert said in call(capsys, *argv, status=1)
    with pytest.raises(SystemExit):
        main(["fit", str(source)])
    assert not (tmp_path / "r").exists()


def test_without_a_terminal_lines_say_how_far_it_is(source, tmp_path, capsys):
    options = ["--lengths", "4,8", "--queries", "20", "--steps", "202", "-k", "5", "--no-baselines"]
    for quiet, steps in (([], ["100/202", "200/202", "202/202"]), (["--quiet"], [])):
        assert main(["fit", str(source), "--out", str(tmp_path / f"run{len(quiet)}"), *options, *quiet]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
        assert [line.split(":")[0].removeprefix("step ") for line in lines] == steps
        assert all(re.fullmatch(r"step \d+/202: loss [\d.]+, [\d.]+ s", line) for line in lines)


def test_vectors_of_an_archive(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", features=vectors(), other=np.zeros(3))
    call(capsys, "fit", tmp_path / "x.npz", "--out", tmp_path / "run", *OPTIONS, "--method", "itq", "--no-baselines")
    np.savez(tmp_path / "y.npz", other=np.zeros(3), another=np.zeros(3))
    said = call(capsys, "fit", tmp_path / "y.npz", "--out", tmp_path / "r", status=1)
    assert said.startswith("nhl-fast fit: embeddings: ")
    assert "y.npz: expected an array 'features', found ['another', 'other'] (or X, " in said
    np.savez(tmp_path / "X.npz", X=vectors())
    call(capsys, "fit", tmp_path / "X.npz", "--out", tmp_path / "X", *OPTIONS, "--method", "itq", "--no-baselines")
    gone = call(capsys, "fit", tmp_path / "gone.npy", "--out", tmp_path / "r", status=1)
    assert gone.startswith("nhl-fast fit: embeddings: no such file: ")
    (tmp_path / "z.npy").write_text("no array")
    assert "z.npy" in call(capsys, "fit", tmp_path / "z.npy", "--out", tmp_path / "r", status=1)


@pytest.mark.parametrize(
    ("option", "module", "extra"), [("--texts", "sentence_transformers", "text"), ("--images", "timm", "image")]
)
def test_a_missing_package_is_said_with_its_extra(tmp_path, capsys, monkeypatch, option, module, extra):
    place = tmp_path / "texts.txt"
    place.write_text("one\ntwo\n")
    if option == "--images":
        (tmp_path / "a.png").touch()
        (tmp_path / "b.png").touch()
        place = tmp_path
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = call(capsys, "fit", option, place, "--model", "m", "--out", tmp_path / "run", status=1)
    assert f"needs '{module}': pip install 'nhl-fast[{extra}]'" in said


def test_texts_are_embedded_once_and_shown(tmp_path, capsys, monkeypatch):
    lines = [f"text number {i}" for i in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
    calls = []

    class Encoder:
        def __init__(self, model, device, local_files_only):
            assert (model, local_files_only) == ("small", True)

        def encode(self, texts, normalize_embeddings, show_progress_bar, convert_to_numpy):
            calls.append(list(texts))
            return torch.nn.functional.normalize(torch.from_numpy(vectors(60)), dim=1).numpy()

    fake = types.ModuleType("sentence_transformers")
    fake.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    monkeypatch.setattr(embed, "require", lambda *_: None)
    run = tmp_path / "run"
    call(capsys, "fit", "--texts", tmp_path / "texts.txt", "--model", "small", "--out", run, *OPTIONS)
    call(capsys, "fit", "--resume", run)
    assert calls == [lines]
    row = json.loads((run / "split.json").read_text())["query"][2]
    assert f"text number {row}" in call(capsys, "search", run, "--query", "2")
    (tmp_path / "texts.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match=r"^texts: .* line 2 of"):
        embed.read_texts(tmp_path / "texts.txt")


def test_pictures_are_embedded_in_the_order_of_their_paths(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import Image

    for name, value in (("b.png", 200), ("a/c.png", 10), ("a/notes.txt", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("png"):
            Image.new("RGB", (4, 4), (value, 0, 0)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("x")
    fake = types.ModuleType("timm")

    def create(name, num_classes, pretrained):
        assert (name, num_classes, pretrained) == ("net", 0, True)
        return torch.nn.Flatten()

    fake.create_model = create
    fake.data = types.SimpleNamespace(
        resolve_model_data_config=lambda network: {},
        create_transform=lambda is_training: lambda picture: torch.from_numpy(np.array(picture)).float(),
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setattr(embed, "require", lambda *_: None)
    paths = embed.find_images(tmp_path)
    assert [p.name for p in paths] == ["c.png", "b.png"]
    found = embed.embed_images(paths, "net", batch=1)
    assert found[:, 0].tolist() == [10, 200]
    assert found.shape == (2, 48)
    with pytest.raises(ValueError, match=r"^images: "):
        embed.find_images(tmp_path / "a")


def test_settings_of_something_else_are_refused(tmp_path, source, capsys):
    run = tmp_path / "run"
    call(capsys, "fit", source, "--out", run, *OPTIONS, "--no-baselines")
    stored = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**stored, "config": {"depth": 3}}))
    assert "settings of a fit" in call(capsys, "search", run, status=1)
    (run / "config.json").write_text(json.dumps({**stored, "data": {"name": "digits"}}))
    assert "no fit of vectors" in call(capsys, "fit", "--resume", run, status=1)
