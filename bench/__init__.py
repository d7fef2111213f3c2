"""Benchmarks and their results: `python -m bench.PACKAGE.MODULE` from a checkout."""
