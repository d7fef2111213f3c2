"""The programs of docs/examples run, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"
NEEDS = {"faiss_usearch": ("faiss", "usearch"), "torch_loop": ("sklearn",)}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCH = {"two_processes": TORCHRUN, "sharded_search": TORCHRUN}
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_example(name, tmp_path):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    command = [sys.executable, *LAUNCH.get(name, []), str(FOLDER / f"{name}.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_every_example_is_in_the_list():
    listed = re.findall(r"^\| `(\w+)\.py` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES
