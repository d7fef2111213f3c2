"""A user's program is clean for mypy and pyright: the package says what its calls take and give."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from typing import Any

import numpy as np
import torch

import nhl_fast as nhl
from nhl_fast.data import load_dataset
from nhl_fast.training.callbacks import Callback
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.trainer import Trainer

layer = nhl.NestedHashLayer(16, code_lengths=(8, 16))
loss = nhl.losses.CSQ(num_classes=3, code_lengths=layer.code_lengths, centers="nested")
result = nhl.NestedObjective(layer, loss)(torch.randn(6, 16), torch.arange(6) % 3)
result.total.backward()
codes = layer.encode(torch.randn(6, 16))
distances, ids = nhl.search(codes, codes, k=2, length=8)
labels = torch.arange(6)
evaluated = nhl.evaluate_retrieval(codes, codes, labels, labels, lengths=(8, 16))
maps: dict[int, float] = evaluated.mean_average_precision
index = nhl.NestedIndex(length=16)
index.add(np.zeros((4, 2), np.uint8))
index.save("codes.nhl")
index.to_faiss()
packed = nhl.NestedCoder().fit_transform(np.zeros((100, 16), np.float32))
available: bool = nhl.backends()["cpp"].available
fitted: nhl.NestedHashLayer = nhl.fit_layer(torch.randn(100, 16), code_lengths=(8, 16), steps=1)
scores, candidates = nhl.rescore(torch.randn(6, 16), ids, vectors=torch.randn(6, 16))
graphed = nhl.make_graphed(nhl.NestedObjective(layer, loss), torch.randn(6, 16), torch.arange(6) % 3)
pairs = nhl.near_duplicates(codes, radius=1)
centers = nhl.make_centers(3, (8, 16), "nested")
trained = nhl.load("runs/mine")
names: list[str] | None = trained.class_names
lengths: tuple[int, ...] = trained.code_lengths
rows: torch.Tensor = trained.encode("pictures/")


class Log(Callback):
    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        print(record["epoch"])


data = load_dataset("features", path="mine.npz")
config = TrainConfig.preset("tuned", loss="dch", epochs=3)
outcome = Trainer(data, config, "runs/other", loss=None, callbacks=[Log()]).fit()
best: int = outcome.best_epoch
own = nhl.losses.PerLength([lambda u, y: u.mean(), lambda u, y: u.mean()], code_lengths=(8, 16))
built = nhl.losses.build("dsh", num_classes=3, code_lengths=(8, 16), num_train=100)
"""
WRONG = "import nhl_fast as nhl\nlength: str = nhl.NestedIndex(length=16).length\n"


def check(tool, text, folder, *options):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"no {tool} (pip install '.[types]')")
    (folder / "program.py").write_text(text)
    command = [sys.executable, "-m", tool, *options, "program.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a checker sees no editable installation
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "options"), [("mypy", ["--strict"]), ("pyright", ["--pythonpath", sys.executable])])
def test_a_program_is_clean(tool, options, tmp_path):
    status, said = check(tool, PROGRAM, tmp_path, *options)
    assert status == 0, said
    status, said = check(tool, WRONG, tmp_path, *options)
    assert status == 1, said
    assert "str" in said
