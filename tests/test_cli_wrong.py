"""Every option of every command with wrong values: one line that names it, and never a traceback."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nhl_fast.cli import arguments
from nhl_fast.training.model import batches
from nhl_fast.training.trainer import Trainer

TINY = ["--epochs", "1", "--hidden", "8", "--lengths", "4,8"]
FEW = ["--data", "features", "--queries-per-class", "3", "--train-per-class", "8", "--validation", "0.3"]
NUMBERS = [
    "",
    "x",
    "-1",
    "0",
    "1",
    "2.5",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "é",
    "\0",
    " ",
    "0x10",
    "1_0",
    "99999999999",
]
NUMBERS += [str(2**31), str(2**63 - 1), str(2**63), str(2**64), "1" + "0" * 30, "9" * 5000]
LENGTHS = ["", ",", "1,", "8,8", "16,8", "0,8", "-1,8", "8.5", "x", "8,99999999999", f"8,{2**63}", "1" + "0" * 30]
OPTIONS = ["", "=", "a", "a=", "a=1", "=1", "margin=nan", "quantization=x", "quantization=1e400", "quantization=-1"]
OPTIONS += ["num_classes=3", "code_lengths=[1]", "num_train=2", "seed=x", "centers=3", "centers=[[1]]", "self=1"]
OPTIONS += ["backend=1", "balance=3", "quantization=[1,2]", "quantization=NaN", 'name="dsh"', "a b=1"]
TEXTS = [
    "",
    "x",
    "\0",
    "é\u2028",
    "a" * 5000,
    "/dev/null",
    "{tmp}/folder",
    "{tmp}/file",
    "{tmp}/missing/x",
    "-",
    "--",
]
ARRAYS = {
    "codes": np.zeros((4, 2), np.uint8),
    "labels": np.zeros(4, np.int64),
    "negative": -np.ones(4, np.int64),
    "objects": np.array([{}], object),
    "rows": np.zeros((4, 64), np.float32),
    "none": np.zeros((0, 64), np.float32),
    "vectors": np.random.default_rng(0).standard_normal((40, 6)),
    "text": np.array(["a", "b"]),
    "complex": np.zeros((3, 64), np.complex64),
    "fields": np.zeros(3, [("a", int)]),
    "long": np.zeros((3, 64), np.longdouble),
    "dates": np.zeros((3, 64), "datetime64[s]"),
    "swapped": np.zeros((2, 64), ">f4"),
    "cube": np.zeros((2, 2, 2), np.uint8),
    "empty": np.zeros((4, 0), np.uint8),
    "number": np.array(7),
}
FILES = [*TEXTS, *(f"{{tmp}}/{name}.npy" for name in ARRAYS)]
# Pictures take most of the time: they are drawn with the first right value of what they depend on.
DRAWN = ("--topk", "--lengths")
# What an error may call an option besides its flag.
ALSO = {
    "--split-seed": "seed",
    "--lr": "diverged",
    "--loss-option": "option|quantization|seed",
    "run": "run|JSON",
    "runs": "run|JSON",
}
ALSO |= {"--max-memory": "no length meets every bound", "--min-map": "no length meets every bound"}
ALSO |= dict.fromkeys(("embeddings", "--texts", "--images"), "give one of NPY|such file|embeddings|empty|held out")
ALSO |= dict.fromkeys(("--query-codes", "--database-codes"), "give either a run folder")
ALSO |= dict.fromkeys(("--query-labels", "--database-labels"), "give either a run folder")
INTERNAL = re.compile(
    r"Traceback|Overflow|unpacking|has no attribute|embedded null|expected str, bytes|can't convert|frame #|Error: |"
    r"multiple values|out of range integral|\bC long\b|Fatal|\.py\b|\n."
)


def base(command, folder, run):
    few = [*FEW, "--path", f"{run}.npz"]
    return {
        "train": ["train", "--out", f"{folder}/new", *TINY, *few, "--no-evaluate"],
        "evaluate": ["evaluate", str(run)],
        "encode": ["encode", str(run), "-o", f"{folder}/new.npy"],
        "search": ["search", str(run)],
        "compare": ["compare", *TINY, *few],
        "report": ["report", str(run), "-o", f"{folder}/new.html"],
        "fit": [
            "fit",
            "vectors.npy",
            "--out",
            f"{folder}/new",
            "--lengths",
            "4,8",
            "--method",
            "itq",
            "--queries",
            "5",
        ],
        "duplicates": ["duplicates", "codes.npy", "--radius", "1"],
        "advise": ["advise", str(run), "--items", "1000"],
        "backends": ["backends"],
        "completion": ["completion", "bash"],
    }[command]


def cases():
    for command, parser in arguments.build_parser()._subparsers._group_actions[0].choices.items():
        for action in parser._actions:
            if action.nargs != 0 and not (command == "backends" or (command, action.dest) == ("compare", "seeds")):
                yield command, action.option_strings[-1] if action.option_strings else action.dest


def wrong_values(command, option):
    parser = arguments.build_parser()._subparsers._group_actions[0].choices[command]
    action = next(a for a in parser._actions if option in (*a.option_strings, a.dest))
    if action.choices:
        return ["", "x", "\0"]
    kind = getattr(action.type, "__name__", None)
    return {
        "int": NUMBERS, "float": NUMBERS, "size": NUMBERS, "lengths": LENGTHS,
        "weighting": LENGTHS + NUMBERS, "option": OPTIONS,
    }.get(kind, FILES)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on few rows, whose data are the file beside it."""
    path = tmp_path_factory.mktemp("wrong") / "run"
    labels = np.arange(60) % 3
    np.savez(f"{path}.npz", features=np.random.default_rng(0).normal(labels[:, None], 1, (60, 64)), labels=labels)
    assert arguments.main(["train", "--out", str(path), *TINY, *FEW, "--path", f"{path}.npz"]) == 0
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(argv, capsys):
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = arguments.main(argv)
        except SystemExit as stopped:
            status = stopped.code
    return status, capsys.readouterr().err


def without_matplotlib(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a))


@pytest.mark.parametrize(("command", "option"), list(cases()))
def test_wrong_values(command, option, run, folder, capsys, monkeypatch):
    if option not in DRAWN:
        without_matplotlib(monkeypatch)
    epoch = Trainer._epoch

    def limited(self, number):  # any number of epochs is right, but not in a test
        if number > 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    monkeypatch.setattr(Trainer, "_epoch", limited)
    refused = 0
    for i, value in enumerate(wrong_values(command, option)):
        value = value.format(tmp=folder) if "{tmp}" in value else value
        place = folder / str(i)
        place.mkdir()
        argv = base(command, place, run)
        if not option.startswith("-"):
            argv[1] = value
            if value == "--":  # the end of the options
                argv = [command, *argv[2:], "--"]
        elif value.startswith("-") and option.startswith("--"):
            argv.append(f"{option}={value}")
        else:
            argv += [option, value]
        status, err = call(argv, capsys)
        assert status in (0, 1, 2, 130), (argv, err)
        refused += status in (1, 2)
        if status == 0:
            without_matplotlib(monkeypatch)
        if status == 1:
            assert err.startswith(f"nhl-fast {command}: "), (argv, err)
            assert not INTERNAL.search(err.strip()), (argv, err)
            names = f"{re.escape(option.lstrip('-'))}|{ALSO.get(option, '^$')}".replace(r"\-", "[-_]")
            assert re.search(names, err) or (value.strip() and value[:60] in err), (argv, err)
        if status == 2:
            assert "Traceback" not in err
            assert err.splitlines()[-1].startswith(f"nhl-fast {command}: error: "), (argv, err)
    assert refused, "not one wrong value among them"


def test_any_other_error_is_one_line_too(run, capsys, monkeypatch):
    from nhl_fast.cli import actions as cli_actions

    torch_error = "shape mismatch\nException raised from somewhere at x.cpp:1\nframe #0: y"
    for error, said in (
        (KeyError("lost"), "KeyError: 'lost'"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(torch_error), "shape mismatch"),
        (MemoryError(), "out of memory"),
        (RuntimeError("alloc.cpp: can't allocate memory: you tried to allocate 32 bytes. Error code 12"), "32 bytes"),
        (ValueError("two\nlines"), "two lines"),
    ):

        def fail(args, error=error):
            raise error

        monkeypatch.setattr(cli_actions, "backends", fail)
        status, err = call(["backends"], capsys)
        assert status == 1
        assert err.startswith("nhl-fast backends: ")
        assert said in err
        assert len(err.splitlines()) == 1
        assert "frame" not in err


# ------------------------------------------------------------------------------------------ processes


def command(*argv, **options):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-m", "nhl_fast", *map(str, argv)],
        stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    lines = {"train": [], "test": [], "database": []}
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines[("train", "test", "database")[i % 3]].append(f"{i}.png {1 - i // 3 % 2} {i // 3 % 2}\n")
    for name, rows in lines.items():
        (tmp_path / f"{name}.txt").write_text("".join(rows))
    return tmp_path


def test_an_error_in_a_worker_process_is_one_line(pictures):
    (pictures / "3.png").write_text("no picture")
    options = ["--data", "list", "--root", pictures, "--image-size", "16", "--backbone", "conv", "--validation", "0"]
    done = command("train", "--out", pictures / "run", *TINY, *options, "--workers", "2", stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"nhl-fast train: image file {pictures / '3.png'}: cannot be read")


class Deaf:
    """Rows that say whether their process blocks Ctrl-C."""

    in_memory = False

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.tensor(float(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))), 0, i


def test_workers_leave_interrupts_to_their_parent():
    assert torch.cat([inputs for inputs, _, _ in batches(Deaf(), 2, workers=1)]).tolist() == [1] * 4
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_interrupted(pictures, workers):
    options = ["--data", "list", "--root", pictures, "--image-size", "16", "--backbone", "conv", "--validation", "0"]
    argv = [
        "train",
        "--out",
        pictures / "run",
        *options,
        "--hidden",
        "8",
        "--epochs",
        "100000",
        "--workers",
        workers,
        "--quiet",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "nhl_fast", *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        process.stdout.readline()
        while not (pictures / "run" / "checkpoint.safetensors").exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert err == f"nhl-fast: interrupted; go on with: nhl-fast train --resume {pictures / 'run'}\n"


def test_outputs_that_nobody_reads(run):
    read, write = os.pipe()
    os.close(read)
    done = command("search", run, "-k", "20", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = command("search", run, "-k", "20", stdout=full)
        assert done.returncode == 1
        assert done.stderr == "nhl-fast search: [Errno 28] No space left on device\n"
