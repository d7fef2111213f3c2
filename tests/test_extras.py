"""The extra that an error names brings the package that is missing, and the page on installing has them all."""

import re
from pathlib import Path

import pytest

from nhl_fast.pictures.projection import METHODS

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "umap": "umap-learn"}


def extras():
    """{extra: the names of its packages}."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[project.urls]")[0]
    found = re.findall(r"^(\w+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r'"([\w-]+)', packages)) for name, packages in found}


def required():
    """(module, extra) of every call in the package."""
    call = re.compile(r"\brequire\(\s*\"(\w+)\",\s*\"(\w+)\"")
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "nhl_fast").rglob("*.py"))
    return sorted({*call.findall(text), *(method[:2] for method in METHODS.values())})


def test_the_calls_are_found():
    assert {("shtab", "completion"), ("sklearn", "data"), ("umap", "umap"), ("pymilvus", "milvus")} <= set(required())


@pytest.mark.parametrize(("module", "extra"), required())
def test_the_extra_brings_the_package(module, extra):
    assert NAMES.get(module, module.replace("_", "-")) in extras()[extra]


def test_every_extra_is_on_the_page():
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras())
