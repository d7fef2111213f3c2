"""Runs tests/triton in a process of its own: compiled on a CUDA device, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from nhl_fast.core import backend

HERE = Path(__file__).parent


@pytest.mark.slow
def test_kernels():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", str(HERE / "triton"), "-m", "not slow"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_without_the_interpreter_a_cpu_tensor_is_refused():
    """The variable is read when Triton is imported, so that each answer needs a process."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels run here")
    code = (
        "import torch, nhl_fast as nhl\n"
        "layer = nhl.NestedHashLayer(6, (4, 8))\n"
        "loss = nhl.losses.CSQ(3, (4, 8))\n"
        "x, y = torch.randn(5, 6), torch.zeros(5, dtype=torch.long)\n"
        "nhl.NestedObjective(layer, loss)(x, y).total.backward()\n"
        "for call in (lambda: nhl.NestedObjective(layer, loss, backend='triton')(x, y),\n"
        "             lambda: loss(layer.project(x), y, backend='triton'),\n"
        "             lambda: layer.encode(x, backend='triton')):\n"
        "    try: call()\n"
        "    except RuntimeError as error: assert 'TRITON_INTERPRET' in str(error), error\n"
        "    else: raise SystemExit('not refused')\n"
        "assert not nhl.backends()['triton'].available\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=HERE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "runs"),
    [("3.6.0", "2.4.6", False), ("3.6.0", "2.3.5", True), ("3.9.0", "2.4.6", True), ("3.10.1", "2.10.0", True)],
)
def test_an_interpreter_that_its_numpy_would_break_is_not_there(monkeypatch, triton_version, numpy_version, runs):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(numpy, "__version__", numpy_version)
    found = backend.probe.__wrapped__("triton")
    assert found.available is runs
    if not runs:
        assert f"Triton {triton_version} needs numpy<2.4" in found.detail
