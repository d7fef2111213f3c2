import shutil

import numpy as np
import pytest
import torch
from command_line import hide_matplotlib
from report_cases import TINY, seeds_of

from nhl_fast.cli.arguments import main


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders: csq (three seeds) and dch on digits, features with and without standardisation, a comparison."""
    root = tmp_path_factory.mktemp("runs")
    labels = torch.arange(300) % 3
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, generator=generator)[labels] + 0.4 * torch.randn(300, 6, generator=generator)
    np.savez(root / "mine.npz", features=features.numpy(), labels=labels.numpy())
    mine = ["--data", "features", "--path", root / "mine.npz", "--queries-per-class", 10, "--train-per-class", 50]
    found = {
        "csq": seeds_of(root / "csq", seeds=(1, 0)),
        "dch": seeds_of(root / "dch", "--loss", "dch", "--centers", "random"),
        "bare": seeds_of(root / "bare", "--no-evaluate"),
    }
    with pytest.MonkeyPatch.context() as patch:  # pictures take most of the time
        hide_matplotlib(patch)
        found["csq"] += seeds_of(root / "csq", seeds=(2,))
        found["plain"] = seeds_of(root / "plain", *mine)
        found["standard"] = seeds_of(root / "standard", *mine, "--standardize")
    assert main(["compare", *TINY, "--seeds", "2", "--out", str(root / "both")]) == 0
    return {**found, "both": [root / "both"], "root": root}


@pytest.fixture
def copy(runs, tmp_path):
    """A run folder to damage."""
    return shutil.copytree(runs["csq"][0], tmp_path / "copy")
