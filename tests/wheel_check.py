"""What an installed wheel must do, run as a program in its own environment: `python tests/wheel_check.py`.

It builds nothing: the library has to be the wheel's own, and to agree with the PyTorch reference.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["NHL_FAST_BUILD"] = "0"

import numpy as np
import torch

import nhl_fast as nhl
from nhl_fast.native import library


def check_search(rng):
    codes = rng.integers(0, 256, (500, 16), dtype=np.uint8)
    for length in (8, 40, 128):
        found = nhl.search(codes[:7], codes, 20, length=length, backend="cpp")
        wanted = nhl.search(codes[:7], codes, 20, length=length, backend="reference")
        for one, other in zip(found, wanted):
            np.testing.assert_array_equal(one, other)
    with tempfile.TemporaryDirectory() as folder:
        index = nhl.NestedIndex(length=128)
        index.add(codes)
        index.save(Path(folder) / "codes.nhl")
        _, ids = nhl.NestedIndex.load(Path(folder) / "codes.nhl").search(codes[:3], k=1)
        assert ids[:, 0].tolist() == [0, 1, 2], ids


def check_step():
    torch.manual_seed(0)
    layer = nhl.NestedHashLayer(16, code_lengths=(8, 16, 32))
    features, labels = torch.randn(24, 16), torch.arange(24) % 4
    gradients = {}
    for backend in ("cpp", "reference"):
        loss = nhl.losses.CSQ(num_classes=4, code_lengths=layer.code_lengths, centers="nested")
        layer.zero_grad()
        nhl.NestedObjective(layer, loss, backend=backend)(features, labels).total.backward()
        gradients[backend] = [p.grad.clone() for p in layer.parameters()]
    for one, other in zip(gradients["cpp"], gradients["reference"]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def main():
    package = Path(nhl.__file__).resolve().parent
    assert library.library_path("cpp").is_file(), f"no library in {package}"
    assert (package / "py.typed").is_file()
    backend = nhl.backends()["cpp"]
    assert backend.available, backend
    check_search(np.random.default_rng(0))
    check_step()
    done = subprocess.run([sys.executable, "-m", "nhl_fast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"nhl-fast {nhl.__version__}", done.stdout
    print(
        f"nhl_fast {nhl.__version__} in {package}: Python {sys.version.split()[0]}, torch {torch.__version__}, "
        f"{backend.detail}"
    )


if __name__ == "__main__":
    main()
