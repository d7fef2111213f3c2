"""nhl_fast: nested binary codes, from training to search.

One hash layer whose first 8, 16, 32, 64 and 128 outputs are all good codes (arXiv 2412.08922), ten published
losses, dominance-aware weights and self-distillation; Hamming evaluation and search on packed codes.
"""

from . import losses
from .aligned_centers import class_similarity
from .backend import backends
from .centers import make_centers, min_distances
from .code_quality import code_quality
from .codes import pack_codes, unpack_codes
from .distillation import distillation_losses
from .hamming import hamming_distances, radius_search, search
from .index import IndexFileError, NestedIndex
from .layer import NestedHashLayer
from .metrics import RetrievalResult, evaluate_retrieval
from .objective import NestedObjective, ObjectiveResult
from .weighting import dominance_weights

__all__ = [
    "IndexFileError",
    "NestedHashLayer",
    "NestedIndex",
    "NestedObjective",
    "ObjectiveResult",
    "RetrievalResult",
    "backends",
    "class_similarity",
    "code_quality",
    "distillation_losses",
    "dominance_weights",
    "evaluate_retrieval",
    "hamming_distances",
    "losses",
    "make_centers",
    "min_distances",
    "pack_codes",
    "radius_search",
    "search",
    "unpack_codes",
]
__version__ = "0.1.0"
