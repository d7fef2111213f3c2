"""How alike classes are in the training data, and centres that give similar classes similar short codes."""

from __future__ import annotations

import numpy as np
import torch

from ..core import check
from ..core.labels import check_labels, to_multi_hot

MAX_ROWS = 10_000
MAX_SWAPS = 400
RIDGE = 0.06


@check.memory
def class_similarity(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """How much a linear classifier takes one class for another.

    A ridge regression from the standardised features to +-1 labels is fitted; entry (c, e) is its mean output for
    class e over the rows of class c, made symmetric. `make_centers` uses it for the centres of kind "nested".

    Args:
        features: (N, ...) floating point, flattened; of more than 10,000 rows, so many evenly spaced ones are used.
        labels: class ids (N,) or multi-hot rows (N, C).
        num_classes: C.

    Returns:
        (C, C) float64, symmetric; a class without rows gets zeros.

    Raises:
        TypeError, ValueError: a wrong shape or dtype, no row, or features that are not finite.
    """
    features = check.present(check.tensor(features, "features", floating=True), "features")
    num_classes = check.positive_int(num_classes, "num_classes")
    if features.ndim < 2 or 0 in features.shape:
        raise ValueError(f"features: expected shape (N, ...), not empty, got {check.describe(features)}")
    labels = check.present(check_labels(labels, len(features), num_classes), "labels")
    if len(features) > MAX_ROWS:
        rows = torch.linspace(0, len(features) - 1, MAX_ROWS, device=features.device).long()
        features, labels = features[rows], labels[rows]
    x = features.detach().flatten(1).double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("features: expected finite numbers, got NaN or infinity")
    x = x - x.mean(0)
    deviation = x.square().mean(0).sqrt()
    x = x / torch.where(deviation > 0, deviation, 1.0)
    y = to_multi_hot(labels, num_classes, x.dtype)
    # The smaller of the two equal systems, d x d or N x N.
    if x.shape[1] <= len(x):
        system, right = x.T @ x, x.T @ (2 * y - 1)
    else:
        system, right = x @ x.T, 2 * y - 1
    system.diagonal().add_(RIDGE * len(x))
    weights = torch.linalg.solve(system, right)
    outputs = x @ (weights if x.shape[1] <= len(x) else x.T @ weights)
    means = (y.T @ outputs) / y.sum(0).clamp(min=1)[:, None]
    present = (y.sum(0) > 0).to(x.dtype)
    return ((means + means.T) / 2 * present[:, None] * present).cpu()


def check_similarity(similarity, num_classes: int) -> np.ndarray:
    """`similarity` as a symmetric, finite float64 array (C, C)."""
    try:
        array = np.asarray(similarity.detach().cpu() if isinstance(similarity, torch.Tensor) else similarity)
    except Exception:  # nested lists of unequal length, a tensor of a dtype that NumPy doesn't know, ...
        raise TypeError(f"similarity: expected a matrix of numbers, got {check.describe(similarity)}") from None
    if array.dtype.kind not in "iuf" or array.shape != (num_classes, num_classes):
        raise ValueError(f"similarity: expected numbers of shape ({num_classes}, {num_classes}), got {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all() or not np.allclose(array, array.T):
        raise ValueError("similarity: expected a symmetric matrix of finite numbers")
    return array


def arrange(rows: np.ndarray, lengths, similarity: np.ndarray) -> np.ndarray:
    """The centres' rows given to the classes anew, so that similar classes get similar codes.

    Swaps two classes' rows while that raises sum over lengths and pairs of similarity * cosine, the best swap first
    (at most MAX_SWAPS). Every minimum distance stays as it is.
    """
    alike = similarity - np.diag(np.diag(similarity))
    cosines = sum(rows[:, :b] @ rows[:, :b].T / b for b in lengths)
    np.fill_diagonal(cosines, 0)
    order = np.arange(len(rows))
    for _ in range(MAX_SWAPS):
        now = cosines[np.ix_(order, order)]
        product = alike @ now
        own = np.diag(product)
        gain = product + product.T - own[:, None] - own + 2 * alike * now
        i, j = np.unravel_index(np.argmax(np.round(gain, 9)), gain.shape)
        if gain[i, j] <= 1e-9:
            break
        order[[i, j]] = order[[j, i]]
    return rows[order]
