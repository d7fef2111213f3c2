"""Package layout and (where a compiler and PyTorch are at hand) the native extension; see pyproject.toml."""

from setuptools import setup

setup(
    packages=["nhl_fast", "nhl_fast.losses", "nhl_fast.data", "nhl_fast.kernels"],
    package_dir={"nhl_fast.kernels": "kernels"},
)
