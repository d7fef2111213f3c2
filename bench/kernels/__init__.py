"""Every Triton kernel by itself, beside its floor; `python -m bench.kernels` prints a table each."""
