"""The kernels' tests: compiled where there is a CUDA device, else in Triton's interpreter.

The interpreter is chosen when Triton is imported, for a whole process. So these tests have a process of their own,
`pytest tests/triton`; in a run over all tests they are left out, and `tests/test_triton.py` starts that process.
"""

import os
import sys

import pytest
import torch

ALONE = any("triton" in argument for argument in sys.argv[1:] if not argument.startswith("-"))
if ALONE and not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
if RUNS:
    import nhl_fast.steps.fused  # noqa: F401  (nhl_fast.kernels, also in a checkout that is not installed)


def pytest_ignore_collect(collection_path, config):
    alone = all("triton" in str(argument) for argument in config.args)
    return None if RUNS and alone else True


@pytest.fixture
def device():
    from nhl_fast.kernels.device import arrival

    found = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    arrival.prepare(found)  # what is made once a device is no launch of a step
    return found


@pytest.fixture(autouse=True)
def _poisoned():
    """Memory that nothing wrote holds NaN (or the largest integer)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
