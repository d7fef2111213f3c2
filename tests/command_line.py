"""The command line as tests call it."""

import json

from nhl_fast.cli.arguments import main
from nhl_fast.core import extras

TINY = ["--epochs", "2", "--hidden", "32", "--lengths", "5,12,20"]


def output(capsys, *argv):
    """Status, output and errors of `nhl-fast` with these arguments."""
    status = main([str(a) for a in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def as_json(capsys, *argv):
    """What a command that succeeds says as JSON."""
    status, out, err = output(capsys, *argv, "--json")
    assert status == 0, err
    return json.loads(out)


def trained(folder):
    """A small run on digits in `folder`."""
    assert main(["train", "--out", str(folder), *TINY, "--best-per-length"]) == 0
    return folder


def hide_matplotlib(monkeypatch):
    """As where it isn't installed; pictures take most of a command's time."""
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a))
