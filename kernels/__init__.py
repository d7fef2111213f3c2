"""Triton kernels of nhl_fast (packaged as `nhl_fast.kernels`)."""
