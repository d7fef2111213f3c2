"""docs/architecture.md and its picture are those of the tree as it is."""

import importlib.util
import itertools
import re
from pathlib import Path

from test_layout import FLOOR

ROOT = Path(__file__).resolve().parents[1]


def test_the_picture_has_the_floors_of_the_test():
    path = ROOT / "docs" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", path)
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    drawn = (ROOT / "docs" / "architecture.svg").read_text()
    assert drawn == draw.picture(), "out of date: python docs/draw.py"
    assert "core" in draw.floors()[0]


def listed() -> set[str]:
    """The folders in the table of the tree, braces written out."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = set()
    for name in re.findall(r"^\| `([^`]+)/` \|", text, re.MULTILINE):
        parts = [part.split(",") for part in re.split(r"[{}]", name)]
        found |= {"".join(choice) for choice in itertools.product(*parts)}
    return found


def test_every_folder_is_in_the_table_and_every_name_in_it_is_a_folder():
    there = {"kernels", "tests"}
    for parent in ("nhl_fast", "csrc", "bench"):
        folders = [p for p in (ROOT / parent).iterdir() if p.is_dir() and any(p.rglob("*.*")) and p.name[0] != "_"]
        there |= {f"{parent}/{p.name}" for p in folders}
    assert listed() == there


def test_the_floors_in_the_table_are_those_of_the_layout():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(?:nhl_fast/)?(\w+)(?:/|\.py)` \| (\d+) \|", text, re.MULTILINE)
    assert {name: int(floor) for name, floor in rows} == FLOOR
    assert len(rows) == len(FLOOR)
