"""The script that completes commands in a shell."""

import json
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


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab")
    code = (
        "import sys; from nhl_fast.cli import main; sys.exit(main(['completion', 'bash']) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # and PyTorch was not loaded
    path = tmp_path_factory.mktemp("shell") / "completion.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
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
    ],
)
def test_words_are_completed(script, tmp_path, words, found):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "q.npy").write_bytes(b"")
    argv = ["bash", "-c", TRY, "bash", str(script), "nhl-fast", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert sorted(done.stdout.split()) == found


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
        main(["completion", "fish"])
    assert "invalid choice: 'fish'" in capsys.readouterr().err
