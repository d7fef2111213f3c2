"""Measured numbers of README.md and docs/, made from bench/results; see `python -m bench.readme --help`."""
