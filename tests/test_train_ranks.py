"""Training with several ranks: the result of one rank, one writer, and going on after an end."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import in_ranks

from nhl_fast.cli.arguments import main
from nhl_fast.data import load_dataset
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.lock import hold
from nhl_fast.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")

# 1,438 training rows: the last batch has one, and leaves ranks without any.
SETTINGS = {"epochs": 2, "batch_size": 479, "hidden": (8,), "code_lengths": (4, 8), "optimizer": "sgd", "lr": 0.05}


def trained(loss, accumulate=1, run_dir=None, epochs=2, resume=False):
    data = load_dataset("digits")
    assert len(data.train) % SETTINGS["batch_size"] == 1
    config = TrainConfig(loss=loss, accumulate=accumulate, **{**SETTINGS, "epochs": epochs})
    trainer = Trainer(data, config, run_dir, progress=False)
    result = trainer.fit(resume)
    weights = {key: value.numpy().copy() for key, value in result.model.state_dict().items()}
    bank = getattr(trainer.objective.loss, "bank", None)
    if bank is not None:
        weights["bank"] = bank.u.numpy().copy()
    for record in result.history:
        del record["seconds"]
    return weights, result.history


def of_rank(rank, count, cases, folder):
    out = [trained(*case) for case in cases]
    trained("dsh", run_dir=f"{folder}/run", epochs=1)
    return [*out, trained("dsh", run_dir=f"{folder}/run", epochs=2, resume=True)]


CASES = [("csq",), ("dsh",), ("mdsh",), ("dch", 2)]


def far(a, b) -> float:
    return max(float(np.linalg.norm(a[k] - b[k]) / (np.linalg.norm(b[k]) + 1e-6)) for k in b)


def test_ranks_train_what_one_rank_does(tmp_path):
    found = in_ranks(3, of_rank, CASES, str(tmp_path))
    for number, case in enumerate([*CASES, ("dsh",)]):
        weights, history = trained(*case)
        for rank in found:
            assert rank[number][0].keys() == weights.keys()
            assert all(np.array_equal(rank[number][0][k], found[0][number][0][k]) for k in weights), case
            assert rank[number][1] == found[0][number][1]
        ours = found[0][number]
        assert far(ours[0], weights) < 1e-4, (case, far(ours[0], weights))
        for a, b in zip(ours[1], history, strict=True):
            np.testing.assert_allclose(a["losses"], b["losses"], rtol=1e-4)
            assert a["steps"] == b["steps"]
    # Not every pair of trainings is as near: the loss's own choice moves the weights by far more.
    assert far(trained("dsh")[0], {k: v for k, v in trained("dhn")[0].items() if k != "bank"}) > 1e-2


def torchrun(*arguments, folder, module=("-m", "nhl_fast")):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *module, *arguments], capture_output=True, text=True, timeout=240, env=env, cwd=folder
    )


ENDS = """
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from nhl_fast.core import ranks


def threads():
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:  # it has just ended
            pass
    return names


with ranks.launched("cpu") as several:
    assert several and torch.distributed.get_world_size() == 2
    DistributedDataParallel(torch.nn.Linear(2, 3))(torch.ones(4, 2)).sum().backward()
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads")
def test_a_group_ends_with_its_block(tmp_path):
    """Its threads end before Python does: one that frees a tensor while Python ends aborts the process."""
    (tmp_path / "ends.py").write_text(ENDS)
    said = torchrun("ends.py", folder=tmp_path, module=())
    assert said.returncode == 0, said.stderr


def of_command(rank, count, arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue()


def test_a_folder_in_use_is_told_by_every_rank(tmp_path):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run"):
        first, other = in_ranks(
            2, of_command, ["train", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "run")]
        )
    assert first[0] == other[0] == 1
    assert "is in use by process" in first[1]
    assert "the first rank failed: RunInUseError: run: " in other[1]


def test_the_command_line_under_torchrun(tmp_path):
    settings = ("--data", "digits", "--lengths", "8,16", "--batch-size", "128", "--loss", "dsh")
    said = torchrun("train", *settings, "--epochs", "1", "--out", "run", "--no-evaluate", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("trained 1 epoch ") == 1
    said = torchrun("train", "--resume", "run", "--epochs", "2", "--json", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["epochs"] == 2
    assert len((Path(tmp_path) / "run" / "log.jsonl").read_text().splitlines()) == 2
