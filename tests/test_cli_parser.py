"""What the command line says before PyTorch is loaded: help, near words, options that cannot go together."""

import inspect

import pytest
import torch

from nhl_fast import losses
from nhl_fast.cli import data_options
from nhl_fast.cli.arguments import build_parser, main
from nhl_fast.core import names
from nhl_fast.training.config import TrainConfig


def said(capsys, *argv):
    """(exit status, stdout, stderr)."""
    try:
        status = main(list(argv))
    except SystemExit as stopped:
        status = stopped.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--out", "x", "--loss", "cqs"], "did you mean csq?"),
        (["train", "--out", "x", "--epohcs", "3"], "no such option: --epohcs (did you mean --epochs?)"),
        (["train", "--out", "x", "--epohcs=3"], "did you mean --epochs?"),
        (["train", "--out", "x", "runs"], "not expected: runs"),
    ],
)
def test_a_wrong_word_gets_the_near_one_in_one_line(argv, near, capsys):
    status, out, err = said(capsys, *argv)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert near in err
    assert "usage" not in err


def test_no_command_shows_help(capsys):
    status, out, _ = said(capsys)
    assert status == 2
    assert out.startswith("usage: nhl-fast")
    assert "train one nested model" in out


def test_help_says_defaults_and_losses(capsys):
    status, out, _ = said(capsys, "train", "--help")
    assert status == 0
    words = " ".join(out.split())
    assert f"(default {TrainConfig.lr})" in words
    assert f"of initial weights, batches and centres (default {TrainConfig.seed})" in words
    for name, (what, options) in losses.descriptions().items():
        assert f"  {name:8} {what}" in out
        assert len(what) > 20
        assert f"options: {', '.join(o for o in options if o != 'num_train')}" in out


def test_losses_in_help_are_those_of_the_registry():
    assert tuple(losses.descriptions()) == losses.NAMES
    for name, (_, options) in losses.descriptions().items():
        assert set(options) == set(losses.options_of(name))


def test_options_of_data_sets_are_those_of_the_loaders():
    import importlib

    from nhl_fast.data import _LOADERS

    flags = {action.dest for action in build_parser()._subparsers._group_actions[0].choices["train"]._actions}
    assert tuple(data_options.TAKEN) == names.DATASETS
    for name, module in _LOADERS.items():
        allowed = inspect.signature(importlib.import_module(f"nhl_fast.data.{module}").load).parameters
        assert set(data_options.TAKEN[name]) == set(allowed) & flags
        needed = {n for n, p in allowed.items() if p.default is p.empty}
        assert needed == ({data_options.NEEDED[name][0]} if name in data_options.NEEDED else set())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "cifar10"], "nhl-fast train: --root: --data cifar10 needs it"),
        (["--data", "features"], "nhl-fast train: --path: --data features needs it"),
        (["--root", "x"], "nhl-fast train: --root: --data digits takes --queries-per-class, --as-images, not --root"),
        (["--batch-size", "0"], "nhl-fast train: --batch-size: expected"),
        (["--lengths", "8,8"], "nhl-fast train: --lengths: expected"),
        (["--threads", "0"], "nhl-fast train: --threads: expected"),
        (["--threads", "100000"], "nhl-fast train: --threads: expected at most"),
    ],
)
def test_messages_in_the_words_of_the_command_line(argv, message, capsys, tmp_path):
    status, out, err = said(capsys, "train", "--out", str(tmp_path / "run"), *argv)
    assert (status, out) == (1, "")
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_line_an_epoch_without_a_terminal(quiet, capsys, tmp_path):
    before = torch.get_num_threads()
    try:
        argv = ["train", "--out", str(tmp_path / "r"), "--epochs", "2", "--hidden", "8", "--lengths", "4,8"]
        argv += ["--threads", "1", "--no-evaluate", *(["--quiet"] if quiet else [])]
        status, _, err = said(capsys, *argv)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert status == 0
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == ([] if quiet else ["epoch 1/2", "epoch 2/2"])
    assert all("loss" in line and "validation mAP" in line and line.endswith(" s") for line in lines)
