"""Commands of README.md and docs/ are right, and those of the pages on the command line run, in order."""

import glob
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_data_cifar10 import RECORDS, write_binary

from nhl_fast.cli.arguments import build_parser, main
from nhl_fast.core import extras
from nhl_fast.data import cifar10

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
WORDS = r"(?:\w+=\S+ )?(?:nhl-fast|make|python|pip|torchrun) "


def text_of(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(page):
    """The commands that stand in blocks, without their comments."""
    lines = re.findall(rf"^    ({WORDS}.*)$", text_of(page), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def spans(page):
    """The commands within sentences; capital words stand for something."""
    return [shlex.split(span) for span in re.findall(rf"`({WORDS}[^`]*)`", text_of(page).replace("\n", " "))]


def make(words, whole):
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return next((f"no target {w}" for w in words if "=" not in w and w not in known), None)


def pip(words, whole):
    names = [name for word in words for several in re.findall(r"\[([\w,]+)\]", word) for name in several.split(",")]
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return next((f"no extra {name}" for name in names if name not in known), None)


def python(words, whole):
    if words[0] != "-m":
        there = any((folder / words[0]).is_file() for folder in (ROOT, ROOT / "docs" / "examples"))
        return None if there else f"no file {words[0]}"
    if words[1] == "nhl_fast":
        return nhl_fast(words[2:], whole)
    return None if "PACKAGE" in words[1] or importlib.util.find_spec(words[1]) else f"no module {words[1]}"


def torchrun(words, whole):
    return python(words[words.index("-m") :] if "-m" in words else words[-1:], whole)


def nhl_fast(words, whole):
    if whole:
        try:
            unknown = build_parser().parse_known_args(words)[1]
        except SystemExit:
            return f"refused: {words}"
        return f"unknown: {unknown}" if unknown else None
    commands = build_parser().commands
    named = [w for w in words if w != "|"] if "|" in words else [w for w in words[:1] if w[0] != "-"]
    if unknown := [name for name in named if name not in commands]:
        return f"no command {unknown[0]}"
    parsers = [commands[name] for name in named] or [build_parser()]
    options = {option for parser in parsers for action in parser.actions for option in action.option_strings}
    return next((f"no option {w}" for w in words if w[0] == "-" and w not in options), None)


def problem(words, whole):
    """What is wrong with a command, or None; `whole` ones have all that they need."""
    words = words[1:] if "=" in words[0] else words
    tools = {"nhl-fast": nhl_fast, "make": make, "python": python, "pip": pip, "torchrun": torchrun}
    return tools[words[0]](words[1:], whole)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()  # --data takes what is there
    found = {shlex.join(words): problem(words, True) for words in blocks(page)}
    found |= {shlex.join(words): problem(words, False) for words in spans(page)}
    assert {words: said for words, said in found.items() if said is not None} == {}


@pytest.mark.parametrize(
    "command",
    [
        "nhl-fast trian --out a", "nhl-fast train --otu a", "nhl-fast evaluate a --topk b", "make tset",
        "nhl-fast report", "python -m bench.nothing", "python docs/nothing.py", "pip install '.[nothing]'",
        "torchrun --nproc-per-node 2 -m nhl_fast train --data nowhere",
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(command):
    assert problem(shlex.split(command), True)
    if command.startswith("nhl-fast tr"):
        assert problem(shlex.split(command), False)


# What keeps a command small; the last of equal options counts.
SMALL = {
    "train": "--epochs 1 --lengths 8,16,32,64 --quiet",
    "cifar10": "--queries-per-class 2 --train-per-class 4",
    "pictures/": "--image-size 16 --no-evaluate",
    "compare": "--epochs 1 --lengths 8,16 --seeds 1 --quiet",
    "advise": "--items 10k --min-map 0.01",
    "fit": "--steps 5 --queries 20",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the pages take as given."""
    image = pytest.importorskip("PIL.Image")
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(np.arange(RECORDS) % 10) for _ in range(6)]).astype(np.uint8)
    write_binary(tmp_path / "DIR", (rng.integers(0, 256, (6 * RECORDS, 3072), dtype=np.uint8), labels))
    rows = rng.normal(size=(200, 16)).astype(np.float32)
    np.savez(tmp_path / "features.npz", features=rows, labels=np.arange(200) % 4)
    np.save(tmp_path / "embeddings.npy", rows)
    np.save(tmp_path / "new.npy", rows[:5])
    for name in (
        "pictures/cat/1.jpg",
        "pictures/cat/2.jpg",
        "pictures/dog/1.jpg",
        "pictures/dog/2.jpg",
        "more/a.jpg",
        "my.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("page", ["docs/files.md", "docs/unlabelled.md"])
def test_the_pages_commands_run(page, place, capsys):
    for words in blocks(page):
        if words[0] != "nhl-fast" or "--model" in words:  # models of other packages
            continue
        small = [option for word in words for option in shlex.split(SMALL.get(word, ""))]
        argv = [name for word in words[1:] for name in (sorted(glob.glob(word)) or [word])]
        assert main(argv + small) == 0, (words, capsys.readouterr().err)
        for name, loss in (("digits", "csq-0"), ("features", "dch-0")):
            if (place / "runs" / name).is_dir() and not (place / "runs" / loss).is_dir():
                shutil.copytree(place / "runs" / name, place / "runs" / loss)
    said = capsys.readouterr().out
    if page == "docs/files.md":
        assert (place / "codes.names.txt").read_text() == "a.jpg\n"
        assert "CSQ" in (place / "table.tex").read_text()
        assert "my.jpg, 64 bits:" in said
