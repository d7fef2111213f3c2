"""The experiments on real images: one config file each, `python -m bench.experiments NAME` reruns it."""
