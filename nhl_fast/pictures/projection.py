"""Codes in the plane, by t-SNE or UMAP; both are optional packages, imported on use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ..core import check
from ..core.extras import require
from ..retrieval.codes import check_lengths, check_packed, unpack_codes

# Package, the extra that brings it, name.
METHODS = {"tsne": ("sklearn", "data", "t-SNE"), "umap": ("umap", "umap", "UMAP")}
FEWEST = 5


def project_codes(
    codes, lengths: Sequence[int] | None = None, method: str = "tsne", *, seed: int = 0
) -> dict[int, np.ndarray]:
    """Places of codes in the plane in which codes of small Hamming distance lie together, at every length.

    Only who is near whom means something: axes, distances between groups and their sizes do not. Equal codes share a
    place. (van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008; McInnes, Healy and Melville, UMAP,
    arXiv 1802.03426.)

    Args:
        codes: (n, bytes) packed uint8 rows, tensor or NumPy array; at least 5 distinct ones at every length. Time
            grows a little faster than n: a thousand take some seconds.
        lengths: strictly increasing code lengths in bits, each a prefix; None for those of 8, 16, 32, 64 and 128
            that the rows hold.
        method: "tsne" (scikit-learn) or "umap" (umap-learn).
        seed: of the method.

    Returns:
        {length: (n, 2) float64 array}.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it, or too few distinct codes.
        ImportError: the method's package is missing; the message says what to install.
    """
    require_method(method)
    codes = check_packed(codes, "codes")
    lengths = check_lengths(lengths, codes.shape[1])
    seed = check.positive_int(seed, "seed", minimum=0, maximum=2**32 - 1)
    places = {}
    for b in lengths:
        bits, which = np.unique((unpack_codes(codes.cpu(), b) > 0).numpy(), axis=0, return_inverse=True)
        if len(bits) < FEWEST:
            raise ValueError(f"codes: expected at least {FEWEST} distinct ones, got {len(bits)} at {b} bits")
        places[b] = bits, which.reshape(-1)
    fit = _tsne if method == "tsne" else _umap
    return {b: fit(bits, seed).astype(np.float64)[which] for b, (bits, which) in places.items()}


def require_method(method, name: str = "method") -> None:
    """Raise ValueError for an unknown method (`name` is the argument's), ImportError where its package is missing."""
    require(*METHODS[check.one_of(method, name, tuple(METHODS))])


def _tsne(bits: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(bits) - 1) / 3)
    # Started at the bits' principal components, which places the groups the same way for every seed.
    return TSNE(n_components=2, perplexity=perplexity, metric="hamming", init="pca", random_state=seed).fit_transform(
        bits
    )


def _umap(bits: np.ndarray, seed: int) -> np.ndarray:
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        model = UMAP(
            n_components=2, n_neighbors=min(15, len(bits) - 1), metric="hamming", random_state=seed, init="random"
        )
        return model.fit_transform(bits)
