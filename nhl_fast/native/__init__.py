"""The compiled libraries (csrc/): loading them, what they offer to the rest of the package, and building them.

They are built at installation, at their first use, or by `python -m nhl_fast.native build`; without `build` it
says what is there. The operators are `torch.ops.nhl_fast.*`.
"""

from .builder import BuildError
from .calls import topk_one
from .hamming import (
    distances,
    evaluate,
    histograms,
    label_words,
    pack,
    radius,
    score_codes,
    score_vectors,
    topk,
    topk_among,
    topk_buckets,
)
from .library import MAX_BITS, build, cpu_status, cuda_status, is_built, library_path, load

__all__ = [
    "MAX_BITS",
    "BuildError",
    "build",
    "cpu_status",
    "cuda_status",
    "distances",
    "evaluate",
    "histograms",
    "is_built",
    "label_words",
    "library_path",
    "load",
    "pack",
    "radius",
    "score_codes",
    "score_vectors",
    "topk",
    "topk_among",
    "topk_buckets",
    "topk_one",
]
