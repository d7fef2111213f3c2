"""The Triton kernels of kernels/ as PyTorch operators, and the training step built from them.

Imported only where `nhl_fast.core.backend` has found Triton. The kernels are packaged as `nhl_fast.kernels`; in a
checkout that is not installed they are taken from the folder beside the package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _find_kernels() -> None:
    name = "nhl_fast.kernels"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    folder = Path(__file__).resolve().parents[3] / "kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    sys.modules["nhl_fast"].kernels = module


_find_kernels()
