"""nhl_fast: nested binary codes, from training to search.

One hash layer whose first 8, 16, 32, 64 and 128 outputs are all good codes (arXiv 2412.08922), the published
losses, dominance-aware weights and self-distillation; Hamming evaluation and search on packed codes.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from .core.first_use import on_first_use
from .core.version import __version__ as __version__

if TYPE_CHECKING:
    from . import losses
    from .centers.aligned import class_similarity
    from .centers.make import make_centers, min_distances
    from .core.backend import backends
    from .fit.coder import NestedCoder
    from .fit.layer import fit_layer
    from .head.distillation import distillation_losses
    from .head.graphs import make_graphed
    from .head.layer import NestedHashLayer
    from .head.objective import NestedObjective, ObjectiveResult
    from .head.weighting import dominance_weights
    from .index.filter import Filter
    from .index.funnel.advise import FunnelAdvice, advise_funnel
    from .index.nested_index import IndexFileError, NestedIndex
    from .retrieval.codes import pack_codes, unpack_codes
    from .retrieval.convert import as_codes
    from .retrieval.duplicates import near_duplicate_blocks, near_duplicates
    from .retrieval.funnel.search import funnel_search, search
    from .retrieval.hamming import hamming_distances, radius_search
    from .retrieval.metrics import RetrievalResult, class_confusion, evaluate_retrieval
    from .retrieval.quality import bit_statistics, code_quality
    from .retrieval.recall import NeighborRecall, neighbor_recall
    from .retrieval.rescore import rescore
    from .training.trained import load

__all__ = [
    "Filter",
    "FunnelAdvice",
    "IndexFileError",
    "NeighborRecall",
    "NestedCoder",
    "NestedHashLayer",
    "NestedIndex",
    "NestedObjective",
    "ObjectiveResult",
    "RetrievalResult",
    "advise_funnel",
    "as_codes",
    "backends",
    "bit_statistics",
    "class_confusion",
    "class_similarity",
    "code_quality",
    "distillation_losses",
    "dominance_weights",
    "evaluate_retrieval",
    "fit_layer",
    "funnel_search",
    "hamming_distances",
    "load",
    "losses",
    "make_centers",
    "make_graphed",
    "min_distances",
    "near_duplicate_blocks",
    "near_duplicates",
    "neighbor_recall",
    "pack_codes",
    "radius_search",
    "rescore",
    "search",
    "unpack_codes",
]

# Modules are loaded when their names are first used, so that the command line answers without PyTorch. No module
# may bear the name of a public function: its import would hide the function.
_HOMES = {
    "Filter": "index.filter",
    "FunnelAdvice": "index.funnel.advise",
    "IndexFileError": "index.nested_index",
    "NeighborRecall": "retrieval.recall",
    "NestedCoder": "fit.coder",
    "NestedHashLayer": "head.layer",
    "NestedIndex": "index.nested_index",
    "NestedObjective": "head.objective",
    "ObjectiveResult": "head.objective",
    "RetrievalResult": "retrieval.metrics",
    "advise_funnel": "index.funnel.advise",
    "as_codes": "retrieval.convert",
    "backends": "core.backend",
    "bit_statistics": "retrieval.quality",
    "class_confusion": "retrieval.metrics",
    "class_similarity": "centers.aligned",
    "code_quality": "retrieval.quality",
    "distillation_losses": "head.distillation",
    "dominance_weights": "head.weighting",
    "evaluate_retrieval": "retrieval.metrics",
    "fit_layer": "fit.layer",
    "funnel_search": "retrieval.funnel.search",
    "hamming_distances": "retrieval.hamming",
    "load": "training.trained",
    "make_centers": "centers.make",
    "make_graphed": "head.graphs",
    "min_distances": "centers.make",
    "near_duplicate_blocks": "retrieval.duplicates",
    "near_duplicates": "retrieval.duplicates",
    "neighbor_recall": "retrieval.recall",
    "pack_codes": "retrieval.codes",
    "radius_search": "retrieval.hamming",
    "rescore": "retrieval.rescore",
    "search": "retrieval.funnel.search",
    "unpack_codes": "retrieval.codes",
}

# What registers with core from above, imported before a backend is probed, an operation served, all of them listed.
for _name in ("cpp", "cuda"):
    on_first_use(_name, f"{__name__}.native")
for _name in ("NestedHashLayer.encode", "NestedHashLayer.project", "NestedLoss", "NestedObjective"):
    on_first_use(_name, f"{__name__}.steps")
on_first_use("operations", *sorted({f"{__name__}.{home}" for home in _HOMES.values()}))


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
