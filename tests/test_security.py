"""What docs/SECURITY.md promises: files from strangers run no code, whatever reads them."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.cli import main
from nhl_fast.data import cifar10

ROOT = Path(__file__).resolve().parents[1]


class Bomb:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    """Nothing under test may set it off."""
    path = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.is_dir()
    path.rmdir()
    yield Bomb(path)
    assert not path.exists()


def as_npy(path, bomb):
    np.save(path, np.array([bomb] * 4, dtype=object), allow_pickle=True)


def as_npz(path, bomb):
    with open(path, "wb") as file:
        np.savez(file, features=np.array([bomb] * 4, dtype=object), labels=np.arange(4))


def as_torch(path, bomb):
    torch.save({"features": bomb, "labels": torch.arange(4)}, path)


def as_pickle(path, bomb):
    path.write_bytes(pickle.dumps(bomb))


EVALUATE = ["evaluate", "--database-codes", "{good}", "--database-labels", "{good}"]
CODES = [
    ["search", "--queries", "{bad}", "--codes", "{good}"],
    ["search", "--queries", "{good}", "--codes", "{bad}"],
    [*EVALUATE, "--query-codes", "{bad}", "--query-labels", "{good}"],
    [*EVALUATE, "--query-codes", "{good}", "--query-labels", "{bad}"],
    ["duplicates", "{bad}", "--radius", "1"],
    ["advise", "--codes", "{bad}", "--recall", "0.9"],
    ["encode", "{run}", "--input", "{bad}", "-o", "{tmp}/c.npy"],
    ["fit", "{bad}", "--out", "{tmp}/fit"],
    ["train", "--data", "features", "--path", "{good}", "--labels", "{bad}", "--out", "{tmp}/out"],
]  # fmt: skip
FEATURES = [["train", "--data", "{bad}", "--out", "{tmp}/out"]]
CALLS = [(write, "x.npy", call) for write in (as_npy, as_pickle, as_npz) for call in CODES]
CALLS += [(write, "x.npz", call) for write in (as_npz, as_pickle) for call in (*FEATURES, *CODES[-3:-1])]
CALLS += [(write, f"x{suffix}", FEATURES[0]) for write in (as_torch, as_pickle) for suffix in (".pt", ".pth")]
CALLS += [(as_pickle, "x.safetensors", FEATURES[0]), (as_torch, "x.safetensors", FEATURES[0])]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security")
    np.savez(folder / "f.npz", features=np.random.default_rng(0).normal(size=(60, 6)), labels=np.arange(60) % 3)
    argv = ["train", "--data", str(folder / "f.npz"), "--out", str(folder / "run"), "--epochs", "1", "--quiet"]
    assert main([*argv, "--lengths", "4,8", "--hidden", "8", "--no-evaluate"]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("write", "name", "call"), CALLS, ids=[f"{w.__name__} {n} {c[0]} {c.index('{bad}')}" for w, n, c in CALLS]
)
def test_hostile_arrays_are_refused_by_name(write, name, call, run, bomb, tmp_path, capsys):
    bad, good = tmp_path / name, tmp_path / "good.npy"
    write(bad, bomb)
    np.save(good, np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8))
    assert main([part.format(bad=bad, good=good, run=run, tmp=tmp_path) for part in call]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nhl-fast {call[0]}: ")
    assert name in said
    assert len(said.splitlines()) == 1


def test_hostile_weights_and_settings_of_a_run(run, bomb, tmp_path):
    for name in ("model.safetensors", "config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for kept in ("model.safetensors", "config.json"):
            (folder / kept).write_bytes((run / kept).read_bytes())
        as_pickle(folder / name, bomb)
        with pytest.raises(ValueError, match=re.escape(name)):
            nhl.load(folder)


def test_hostile_indexes(bomb, tmp_path):
    as_pickle(tmp_path / "x.nhl", bomb)
    with pytest.raises(nhl.IndexFileError, match=r"x\.nhl"):
        nhl.NestedIndex.load(tmp_path / "x.nhl")


def test_hostile_batches_of_cifar10(bomb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps({"data": bomb, "labels": [0] * 4}, protocol=2))
    assert main(["train", "--data", "cifar10", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "data_batch_1" in capsys.readouterr().err


def test_hostile_splits_and_logs(run, bomb, tmp_path):
    as_pickle(tmp_path / "split.json", bomb)
    with pytest.raises(ValueError, match=r"split\.json"):
        nhl.data.load_dataset("features", path=run.parent / "f.npz", split_file=tmp_path / "split.json")
    assert json.loads((run / "config.json").read_text())["config"]["loss"] == "csq"


def test_no_pickle_is_read_anywhere():
    """The one that is, of CIFAR-10, admits arrays alone (tests/test_data_cifar10.py)."""
    found = set()
    for path in (ROOT / "nhl_fast").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        loads = re.findall(r"\b(?:np|numpy|torch)\.load\((?:[^()]|\([^()]*\))*\)", text)
        assert all("allow_pickle=False" in call or "weights_only=True" in call for call in loads), path
        if re.search(
            r"^(?:import|from) (?:pickle|cPickle|dill|marshal|shelve)\b|(?<![.\w])exec\(", text, re.MULTILINE
        ):
            found.add(path.name)
    assert found == {"unpickle.py"}
