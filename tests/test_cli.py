"""The command line as a person uses it: on digits, and on files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import TINY, as_json, output, trained

from nhl_fast.cli.arguments import main, size
from nhl_fast.data import RetrievalData
from nhl_fast.training import lock
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.lock import hold
from nhl_fast.training.state import TrainState
from nhl_fast.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")  # but those of `run`


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cli") / "run")


def test_a_run_folder_holds_everything(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    expected = {"config.json", "log.jsonl", "model.safetensors", "checkpoint.safetensors", "split.json"}
    expected |= {"metrics.json", "metrics.csv", "model_5.safetensors", "model_12.safetensors", "model_20.safetensors"}
    expected |= {f"codes/{n}.npy" for n in ("query", "query_labels", "database", "database_labels")}
    pictures = "map_vs_bits precision_recall precision_recall_at_n distances bits confusion training gallery"
    expected |= {f"pictures/{n}.png" for n in pictures.split()}
    assert names == expected
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["prefix_map"]) == [str(b) for b in range(1, 21)]
    assert [row["bits"] for row in metrics["lengths"]] == [5, 12, 20]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in log] == [1, 2]
    codes = np.load(run / "codes" / "database.npy")
    assert codes.dtype == np.uint8
    assert codes.shape == (1597, 3)


def test_encode(run, capsys, tmp_path):
    said = as_json(capsys, "encode", run, "--split", "query", "-o", tmp_path / "q.npy")
    assert said["codes"] == 200
    assert np.array_equal(np.load(tmp_path / "q.npy"), np.load(run / "codes" / "query.npy"))
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.float32))
    as_json(capsys, "encode", run, "--input", tmp_path / "x.npy", "-o", tmp_path / "c.npy", "--length", "12")
    codes = np.load(tmp_path / "c.npy")
    assert codes.shape == (3, 2)
    assert not (codes[:, 1] & 0x0F).any()


def test_search(run, capsys):
    said = as_json(capsys, "search", run, "--query", "3", "5", "--length", "12", "-k", "4")
    assert [q["query"] for q in said["queries"]] == [3, 5]
    distances = [a["distance"] for a in said["queries"][0]["answers"]]
    assert distances == sorted(distances)
    codes = run / "codes"
    files = as_json(
        capsys,
        "search",
        "--queries",
        codes / "query.npy",
        "--codes",
        codes / "database.npy",
        "--length",
        "12",
        "-k",
        "4",
    )
    assert files["ids"][3] == [a["id"] for a in said["queries"][0]["answers"]]
    status, out, _ = output(capsys, "search", run)
    assert status == 0
    assert "query 0" in out


def test_compare(capsys, tmp_path):
    said = as_json(capsys, "compare", *TINY, "--out", tmp_path / "c")
    assert [r["bits"] for r in said["summary"]] == [5, 12, 20]
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == said
    assert (tmp_path / "c" / "compare.csv").read_text().startswith("bits,")
    assert set(said["seeds"][0]["single"]) == {"5", "12", "20"}
    assert said["time"]["all_single_seconds"] > 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    for path in (tmp_path / "c", tmp_path / "c" / "."):
        status, _, err = output(capsys, "compare", *TINY, "--out", path)
        assert status == 1
        assert "--out" in err
        assert "compare.json is the result of a comparison" in err
    assert {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()} == before


def test_resume_extends_a_run(tmp_path, capsys):
    assert output(capsys, "train", "--out", tmp_path / "r", *TINY, "--no-evaluate")[0] == 0
    status, _, err = output(capsys, "train", "--out", tmp_path / "r", *TINY, "--no-evaluate")
    assert status == 1
    assert "--resume" in err
    longer = [*TINY[2:], "--epochs", "3", "--resume", "--no-evaluate"]
    assert as_json(capsys, "train", "--out", tmp_path / "r", *longer)["epochs"] == 3
    assert as_json(capsys, "train", "--resume", tmp_path / "r", "--epochs", "4", "--no-evaluate")["epochs"] == 4


SETTINGS = ["--epochs", "3", "--hidden", "32", "--lengths", "5,12", "--loss", "dsh", "--loss-option", "balance=true"]
SETTINGS += ["--lr", "0.002", "--weighting", "1,2", "--split-seed", "3", "--validation", "0.2", "--seed", "1"]


def test_resume_reads_the_runs_own_settings_and_data(tmp_path, capsys, monkeypatch):
    whole = as_json(capsys, "train", "--out", tmp_path / "whole", *SETTINGS)
    close = TrainState.close_epoch

    def stop(self, record):
        close(self, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "close_epoch", stop)
        status, _, err = output(capsys, "train", "--out", tmp_path / "run", *SETTINGS)
    assert status == 130
    assert f"nhl-fast train --resume {tmp_path / 'run'}" in err
    resumed = as_json(capsys, "train", "--resume", tmp_path / "run")
    assert resumed["lengths"] == whole["lengths"]
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    again = as_json(capsys, "train", "--resume", "--out", tmp_path / "run", *SETTINGS, "--data", "digits")
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("given", "flag", "own", "other"),
    [
        (["--lr", "0.5"], "--lr", "0.002", "0.5"),
        (["--lengths", "5,13"], "--lengths", "5,12", "5,13"),
        (["--loss", "csq"], "--loss", "'dsh'", "'csq'"),
        (["--loss-option", "balance=false"], "--loss-option balance", "True", "False"),
        (["--loss-option", "alpha=1"], "--loss-option alpha", "none", "1"),
        (["--weighting", "dominance"], "--weighting", "1.0,2.0", "'dominance'"),
        (["--split-seed", "4"], "--split-seed", "3", "4"),
        (["--seed", "4"], "--seed", "1", "4"),
        (["--data", "cifar10"], "--data", "'digits'", "'cifar10'"),
        (["--as-images"], "--as-images", "none", "True"),
        (["--queries-per-class", "5"], "--queries-per-class", "none", "5"),
        (["--best-per-length"], "--best-per-length", "False", "True"),
        (["--preset", "paper"], "--preset paper: --backbone", "'mlp'", "'resnet50'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resume_with_other_settings_names_both(other_run, given, flag, own, other, capsys):
    before = {p: p.read_bytes() for p in other_run.rglob("*") if p.is_file()}
    status, _, err = output(capsys, "train", "--resume", other_run, *given)
    assert status == 1
    assert err == f"nhl-fast train: {flag}: the run has {own}, got {other}; it goes on with its own settings only\n"
    assert before == {p: p.read_bytes() for p in other_run.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "other"
    assert main(["train", "--out", str(path), *SETTINGS, "--no-evaluate"]) == 0
    return path


def test_runs_that_only_python_can_resume(tmp_path, capsys):
    labels = torch.arange(60) % 3
    data = RetrievalData.from_tensors(torch.randn(60, 4), labels, train=range(20, 60), query=range(20), num_classes=3)
    settings = {"code_lengths": (4,), "hidden": (4,), "epochs": 1}
    train(data, TrainConfig(**settings), tmp_path / "data", progress=False)
    backbone = torch.nn.Sequential(torch.nn.Linear(4, 3))
    backbone.out_features = 3
    train(data, TrainConfig(**settings, backbone="custom"), tmp_path / "net", backbone=backbone, progress=False)
    for name, message in (("data", "data of its own"), ("net", "backbone of its own")):
        status, _, err = output(capsys, "train", "--resume", tmp_path / name)
        assert status == 1
        assert message in err


def test_no_other_process_writes_into_a_run_that_is_evaluated_or_trained(run, capsys, monkeypatch):
    with hold(run):
        monkeypatch.setattr(lock, "_held", {})
        for argv in (["evaluate", run], ["train", "--resume", run]):
            status, _, err = output(capsys, *argv)
            assert status == 1
            assert f"in use by process {os.getpid()}" in err
        assert output(capsys, "search", run)[0] == 0  # it only reads


def test_images_and_a_convolutional_backbone(tmp_path, capsys):
    argv = ["--epochs", "1", "--as-images", "--backbone", "conv", "--hidden", "16", "--lengths", "8"]
    said = as_json(capsys, "train", "--out", tmp_path / "r", *argv)
    assert said["lengths"][0]["bits"] == 8


def test_features_from_a_file_that_moves(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(3, 6, generator=generator)[labels] + 0.3 * torch.randn(300, 6, generator=generator)
    np.savez(tmp_path / "f.npz", features=features.numpy(), labels=labels.numpy())
    argv = [
        "--data",
        "features",
        "--path",
        tmp_path / "f.npz",
        "--queries-per-class",
        "10",
        "--train-per-class",
        "30",
    ]
    said = as_json(capsys, "train", "--out", tmp_path / "r", *TINY, *argv)
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "f.npz", tmp_path / "moved" / "f.npz")
    status, _, err = output(capsys, "evaluate", tmp_path / "r")
    assert status == 1
    assert "f.npz" in err
    again = as_json(capsys, "evaluate", tmp_path / "r", "--path", tmp_path / "moved" / "f.npz")
    assert again["lengths"] == said["lengths"]


def test_standardized_features_are_encoded_as_they_were_trained(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = (rng.standard_normal((200, 6)) + 100 + 3 * labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "f.npz", features=features, labels=labels)
    argv = ["--data", "features", "--path", tmp_path / "f.npz", "--standardize", "--no-evaluate"]
    rows = ["--queries-per-class", "10", "--train-per-class", "30"]
    as_json(capsys, "train", "--out", tmp_path / "r", *TINY, *argv, *rows)
    as_json(capsys, "encode", tmp_path / "r", "--split", "query", "-o", tmp_path / "a.npy")
    split = json.loads((tmp_path / "r" / "split.json").read_text())
    np.save(tmp_path / "x.npy", features[split["indices"]["query"]])
    as_json(capsys, "encode", tmp_path / "r", "--input", tmp_path / "x.npy", "-o", tmp_path / "b.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    features[0, 0] += 1
    np.savez(tmp_path / "g.npz", features=features, labels=labels)
    status, _, err = output(capsys, "evaluate", tmp_path / "r", "--path", tmp_path / "g.npz")
    assert status == 1
    assert "other data" in err


def test_backends(capsys):
    said = as_json(capsys, "backends")
    assert said["reference"]["available"]
    assert set(said) == {"reference", "triton", "cpp", "cuda"}
    status, out, _ = output(capsys, "backends")
    assert status == 0
    machine, operations, _ = out.split("\n\n")
    assert all(line.split()[1] in ("yes", "no") for line in machine.splitlines())
    header, *rows = map(str.split, operations.splitlines())
    assert header == list(said)
    shown = {"serves": "yes", "has no implementation": "-"}
    for operation, *cells in rows:
        assert cells == [shown.get(said[name]["operations"][operation], "no") for name in header]
    assert {row[0] for row in rows} >= {"search", "pack_codes", "NestedObjective", "dominance_weights"}
    assert said["reference"]["operations"].keys() == {row[0] for row in rows}
    for name in header:  # what is missing says why
        reasons = set(said[name]["operations"].values())
        assert reasons <= {"serves", "has no implementation", said[name]["detail"]}
        assert ("serves" in reasons) == said[name]["available"]


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "encode", "search", "duplicates", "compare", "advise", "backends", None]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    assert "usage: nhl-fast" in capsys.readouterr().out


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "nhl_fast", "backends"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "reference" in done.stdout


def test_sizes():
    assert [size(t) for t in ("2GB", "512MiB", "100M", "7", "1.5k", "3B")] == [2e9, 512 * 2**20, 1e8, 7, 1500, 3]


BAD = [
    (["train", "--out", "{tmp}/r", "--data", "cifar10"], "root"),
    (["train", "--out", "{tmp}/r", "--data", "cifar10", "--root", "{tmp}/none"], "none"),
    (["train", "--out", "{tmp}/r", "--data", "features", "--path", "{tmp}/none.npz"], "none.npz"),
    (["train", "--out", "{tmp}/r", "--root", "{tmp}"], "root"),
    (["train", "--out", "{tmp}/r", "--backbone", "conv"], "images"),
    (["train", "--out", "{tmp}/r", "--lengths", "16,8"], "increasing"),
    (["train", "--out", "{tmp}/r", "--epochs", "0"], "epochs"),
    (["train", "--out", "{tmp}/r", "--lr=-1"], "lr"),
    (["train", "--out", "{tmp}/file/r", "--epochs", "1"], "file"),
    (["train", "--out", "{tmp}/r", "--loss-option", "margin=2"], "margin"),
    (["train", "--out", "{tmp}/r", "--validation", "1.5"], "validation"),
    (["evaluate", "{tmp}"], "config.json"),
    (["evaluate"], "run folder"),
    (["evaluate", "--query-codes", "{tmp}/a.npy"], "--database-codes"),
    (["evaluate", "{run}", "--topk", "0"], "topk"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--length", "21"], "--length"),
    (["encode", "{run}", "-o", "{tmp}/none/c.npy"], "none"),
    (["encode", "{run}", "-o", "{run}/model.safetensors"], "--output"),
    (["encode", "{run}", "-o", "{run}/codes/train.npy"], "file of the run"),
    (["encode", "{run}", "-o", "{tmp}/nan.npy", "--input", "{tmp}/nan.npy"], "reads"),
    (["report", "{run}", "--table", "{run}/metrics.csv"], "--table"),
    (["report", "{run}", "-o", "{run}/metrics.csv"], "--output"),
    (["train", "--out", "{run}", *TINY], "--resume"),
    (["train", "--out", "{tmp}", *TINY], "no run of nhl_fast"),
    (["train", "--out", "{tmp}/list_config", *TINY], "no run of nhl_fast"),
    (["train", "--resume", "{tmp}/r"], "does not exist"),
    (["train", "--resume", "--out", "{tmp}/r", *TINY], "does not exist"),
    (["train", "--resume", "{tmp}"], "config.json"),
    (["train", "--resume", "{tmp}/list_config"], "settings"),
    (["train", "--resume", "{run}", "--out", "{tmp}/r"], "--out"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--input", "{tmp}/bad.npy"], "bad.npy"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--input", "{tmp}/wide.npy"], "shape"),
    (["search", "{run}", "--query", "200"], "0 to 199"),
    (["search", "{run}", "-k", "0"], "search: -k: expected"),
    (["search", "{run}", "-k", "9999"], "search: -k: expected"),
    (["search", "{run}", "--length", "64"], "length"),
    (["search"], "run folder"),
    (["search", "--queries", "{tmp}/wide.npy"], "--codes"),
    (["search", "--queries", "{tmp}/wide.npy", "--codes", "{tmp}/wide.npy"], "uint8"),
    (["advise", "{tmp}", "--items", "10"], "evaluate"),
    (["advise", "{run}", "--items", "10", "--min-map", "2"], "min-map"),
    (["compare", "--seeds", "0", *TINY], "--seeds"),
    (["compare", "--out", "{tmp}/file", *TINY], "file"),
    (["train", "--out", "{tmp}/r", "--topk", "0", *TINY], "--topk"),
    (["train", "--out", "{tmp}/r", "--validation", "0", "--best-per-length", *TINY], "validation"),
    (["train", "--out", "{tmp}/r", "--loss", "dsh", "--loss-option", "margin=abc", *TINY], "margin"),
    (["train", "--out", "{tmp}/r", "--loss-option", "num_train=5", *TINY], "num_train"),
    (["train", "--out", "{tmp}/r", "--device", "cuad", *TINY], "cuad"),
    (["evaluate", "{tmp}/empty_config"], "settings"),
    (["search", "{tmp}/list_config"], "settings"),
    (["advise", "{tmp}/empty_config", "--items", "1M"], "evaluation"),
    (["advise", "{run}", "--items", "1M", "--tolerance=-1"], "tolerance"),
    (["advise", "{run}"], "--items"),
    (["advise", "{run}", "--items", "1M", "--codes", "{tmp}/a.npy"], "--recall"),
    (["advise", "{run}", "--codes", "{tmp}/a.npy", "--recall", "0.9"], "either a run folder or --codes"),
    (["advise", "{run}", "--queries", "{tmp}/a.npy", "--recall", "0.9"], "--queries: a run has queries"),
    (["advise", "{run}", "--recall", "1"], "--recall: expected a share"),
    (["advise", "{run}", "--recall", "0.9", "--items", "10"], "--items: expected at least"),
    (["advise", "--codes", "{tmp}/none.npy", "--recall", "0.9"], "none.npy"),
    (["advise", "{tmp}", "--recall", "0.9"], "evaluate"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--input", "{tmp}/zip.npy"], "zip.npy"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--input", "{tmp}/several.npz"], "found ['a', 'b']"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--input", "{tmp}/nan.npy"], "NaN"),
    (["encode", "{run}", "-o", "{tmp}/c.npy", "--device", "meta"], "meta"),
    (["search", "--queries", "{tmp}/zero.npy", "--codes", "{tmp}/zero.npy"], "rows"),
    (["evaluate", "{run}", "--lengths", "8,64"], "64"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(b[0]).replace("{tmp}/", "") for b in BAD])
def test_bad_input_is_said_in_one_line(argv, message, run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY damaged")
    np.save(tmp_path / "wide.npy", np.zeros((2, 65), np.float32))
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 damaged")
    np.savez(tmp_path / "several.npz", a=np.zeros(2), b=np.zeros(2))
    np.save(tmp_path / "nan.npy", np.full((2, 64), np.nan, np.float32))
    np.save(tmp_path / "zero.npy", np.array(7, np.uint8))
    for name, config in (("empty_config", "{}"), ("list_config", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "metrics.json").write_text(config)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    status, out, err = output(capsys, *(a.format(tmp=tmp_path, run=run) for a in argv))
    assert status == 1
    assert out == "" or argv[0] == "train"
    assert message in err
    assert err.startswith(f"nhl-fast {argv[0]}: ")
    assert len(err.strip().splitlines()) == 1
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "--out", "x", "--lengths", "a,b"],
        ["search", "-k", "x"],
        ["advise", "x", "--items", "inf"],
        ["advise", "x", "--items", "-3"],
    ],
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
