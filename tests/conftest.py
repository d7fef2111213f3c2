from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["single10", "single100", "multi12"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz") as archive:
        data = {name: archive[name] for name in archive.files}
    data["name"] = request.param
    return data


@pytest.fixture
def no_pictures(monkeypatch):
    """As without matplotlib: quick, too."""
    from command_line import hide_matplotlib

    hide_matplotlib(monkeypatch)


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, kept for a look at their contents."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    return kept
