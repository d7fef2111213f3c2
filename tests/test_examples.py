"""The programs of docs/examples run, each in a process of its own, and print what they promise.

One whose packages are missing is skipped; NHL_FAST_EXAMPLES=all (`make test-examples`) makes that an error.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "examples"
ALL = os.environ.get("NHL_FAST_EXAMPLES") == "all"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def says(text: str) -> Callable[[str], None]:
    def check(out):
        assert text in out

    return check


def map_above(least: float) -> Callable[[str], None]:
    """Of every length; the data have classes enough for random codes to be far below."""

    def check(out):
        (line,) = re.findall(r"^mAP: (.*)$", out, re.MULTILINE)
        found = dict(re.findall(r"(\d+) bits (\d\.\d+)", line))
        assert list(found) == ["8", "16", "32"]
        assert min(map(float, found.values())) > least, line

    return check


def rescoring_helps(out):
    found = dict(re.findall(r"^(codes|float queries|float vectors): (\d\.\d+)$", out, re.MULTILINE))
    codes, queries, vectors = (float(found[name]) for name in ("codes", "float queries", "float vectors"))
    assert 0.7 < codes < queries < vectors
    assert vectors > 0.9


class Example(NamedTuple):
    check: Callable[[str], None]
    needs: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()


EXAMPLES = {
    "accelerate_loop": Example(map_above(0.6), ("accelerate", "sklearn")),
    "duckdb_handover": Example(says("DuckDB: equal ids and distances"), ("duckdb", "pyarrow")),
    "faiss_usearch": Example(says("faiss and usearch: equal distances"), ("faiss", "usearch")),
    "hf_trainer": Example(map_above(0.7), ("transformers", "accelerate")),
    "lightning_module": Example(map_above(0.6), ("lightning", "sklearn")),
    "onnx_export": Example(says("onnxruntime: 1024 equal bytes"), ("onnxscript", "onnxruntime")),
    "sentence_transformers_ubinary": Example(rescoring_helps, ("sentence_transformers",)),
    "sharded_search": Example(says("2 ranks, 2001 items"), launch=TORCHRUN),
    "timm_loop": Example(map_above(0.7), ("timm", "torchvision", "sklearn")),
    "torch_loop": Example(map_above(0.6), ("sklearn",)),
    "two_processes": Example(says("two processes agree with one"), launch=TORCHRUN),
    "two_processes_train": Example(map_above(0.5), launch=TORCHRUN),
}


def need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        (pytest.fail if ALL else pytest.skip)(f"{', '.join(missing)} not installed: `make test-examples` brings it")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    example = EXAMPLES[name]
    need(*example.needs)
    command = [sys.executable, *example.launch, str(FOLDER / f"{name}.py")]
    # Nothing is fetched: a model or data set of a hub would be an error.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    example.check(done.stdout)


def stored_text(cell) -> str:
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def test_notebook_prints_what_it_holds(monkeypatch):
    """Each cell runs and prints its stored output, numbers up to what another processor's rounding makes of them."""
    need("sklearn", "matplotlib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    (path,) = FOLDER.glob("*.ipynb")
    assert path.stat().st_size < 100_000
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    space, shown = {"__name__": "__main__"}, 0
    number = re.compile(r"\d+\.\d+")
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            exec(compile("".join(cell["source"]), path.name, "exec"), space)
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        stored = stored_text(cell)
        assert number.sub("#", printed.getvalue()) == number.sub("#", stored)
        for found, expected in zip(number.findall(printed.getvalue()), number.findall(stored)):
            assert float(found) == pytest.approx(float(expected), abs=0.1)
        shown += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert shown == 1
    map_above(0.6)("".join(map(stored_text, cells)))


def test_every_example_is_run_and_in_the_list():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert sorted(EXAMPLES) == names
    listed = re.findall(r"^\| \[`(\w+\.\w+)`\]\((\w+\.\w+)\) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert all(name == link for name, link in listed)
    assert sorted(name for name, _ in listed) == sorted(p.name for p in FOLDER.glob("*.[pi]*"))


def test_examples_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name
