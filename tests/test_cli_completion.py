"""The script that completes commands in a shell."""

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from nhl_fast.cli import main
from nhl_fast.cli.arguments import build_parser
from nhl_fast.cli.completion import FILES, FOLDERS, SHELLS
from nhl_fast.core import extras

# Free text that names nothing on the disk.
WORDS = {"weights", "device", "title", "model", "weighting", "hidden", "loss_options"}

TRY = """
source "$1"; shift
found=$(complete -p nhl-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$found 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script_of(shell, folder):
    call = f"main(['completion', {shell!r}])"
    code = f"import sys; from nhl_fast.cli import main; sys.exit({call} or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # and PyTorch was not loaded
    path = folder / f"completion.{shell}"
    path.write_text(done.stdout)
    return path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of a shell, made once."""
    return functools.cache(lambda shell: script_of(shell, tmp_path_factory.mktemp("shell")))


def bash(script, words, folder):
    pytest.importorskip("shtab")
    argv = ["bash", "-c", TRY, "bash", str(script("bash")), "nhl-fast", *words]
    return subprocess.run(argv, capture_output=True, text=True, cwd=folder).stdout.split()


def fish(script, words, folder):
    line = shlex.join(["nhl-fast", *words[:-1]]) + f" {words[-1]}"
    code = f"source {shlex.quote(str(script('fish')))}; complete -C {shlex.quote(line)}"
    home = {**os.environ, "HOME": str(folder.parent), "XDG_DATA_HOME": str(folder.parent)}
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, cwd=folder, env=home)
    assert done.stderr == ""
    return [line.partition("\t")[0].rstrip("/") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", [bash, fish])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], ["train"]),
        (["train", "--loss"], ["--loss", "--loss-option"]),
        (["train", "--loss", "csq"], ["csq"]),
        (["train", "--data", "pic"], ["pictures"]),
        (["train", "--root", ""], ["pictures"]),
        (["search", "run", "--query", ""], ["pictures", "q.npy"]),
        (["encode", "run", "--split", "q"], ["query"]),
        (["encode", "run", "--split", "train", "--epo"], []),  # a word that is a command, too
    ],
)
def test_words_are_completed(shell, scripts, tmp_path, words, found):
    if shutil.which(shell.__name__) is None:
        pytest.skip(f"needs {shell.__name__}")
    folder = tmp_path / "here"
    (folder / "pictures").mkdir(parents=True)
    (folder / "q.npy").write_bytes(b"")
    assert sorted(shell(scripts, words, folder)) == found


def test_fish_needs_no_package_and_quotes_help(monkeypatch, capsys):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" -l lengths " in line and "'__nhl_fast_command train'" in line for line in lines) == 1
    for line in lines[6:]:
        assert line.startswith("complete -c nhl-fast -n '")
        assert shlex.split(line.replace("\\'", "")), line
    assert any(r"a run\'s" in line for line in lines)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shell"] == shell
    assert "validate-every" in said["script"]


def test_every_path_is_completed():
    commands = build_parser()._subparsers._group_actions[0].choices
    actions = [action for sub in commands.values() for action in sub._actions]
    free = {a.dest for a in actions if a.nargs != 0 and a.choices is None and a.type in (None, str)}
    assert free - WORDS <= {*FILES, *FOLDERS}
    assert {*FILES, *FOLDERS} <= {a.dest for a in actions}
    assert not {*FILES} & {*FOLDERS}


def test_what_to_install_and_which_shells(monkeypatch, capsys):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert main(["completion", "zsh"]) == 1
    assert capsys.readouterr().err == (
        "nhl-fast completion: shell completion needs 'shtab': pip install 'nhl-fast[completion]'\n"
    )
    with pytest.raises(SystemExit):
        main(["completion", "ksh"])
    assert "invalid choice: 'ksh' (choose from 'bash', 'zsh', 'tcsh', 'fish')" in capsys.readouterr().err
