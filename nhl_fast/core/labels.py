"""Labels come as class ids (N,) or as multi-hot rows (N, C); here is what the two forms share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from . import check

_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_labels(labels, like: torch.Tensor, num_classes: int | None = None, name: str = "labels"):
    """Labels as loops give them, as a tensor: lists and NumPy arrays; a column (N, 1) and whole floats as ids.

    A column of a loss with one class is multi-hot rows, and stays; so is what is none of these.
    """
    if isinstance(labels, (list, tuple, np.ndarray, np.generic)):
        try:
            labels = np.asarray(labels)
            if labels.dtype.kind == "u" and labels.itemsize > 1:  # PyTorch computes little with them
                labels = labels.astype(np.int64)
            with torch.device("cpu"):
                labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"{name}: expected class ids or multi-hot rows, got {check.describe(labels)}") from None
        labels = labels.to(like.device)
    if not isinstance(labels, torch.Tensor):
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1 and num_classes not in (None, 1) and labels.dtype != torch.bool:
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.is_floating_point():
        whole = labels.long()
        check.values((whole == labels).all(), f"{name}: expected class ids, got floats that are no whole numbers")
        return whole
    return labels


def check_labels(labels, num_rows: int, num_classes: int | None = None, name: str = "labels") -> torch.Tensor:
    """Validate labels and return them: int64 ids (N,) or multi-hot rows (N, C), unchanged in value.

    Ids are integers in [0, num_classes). Multi-hot rows hold zeros and ones in any dtype; a row may be all
    zero (an item with no class is relevant to nothing).
    """
    check_form(labels, num_rows, num_classes, name)
    if labels.ndim == 1:
        labels = labels.long()
        if num_rows:
            low = labels.min() >= 0
            ok = low if num_classes is None else low & (labels.max() < num_classes)
            span = "non-negative class ids" if num_classes is None else f"class ids from 0 to {num_classes - 1}"
            check.values(ok, f"{name}: expected {span}, got one out of range")
        return labels
    if labels.dtype != torch.bool and labels.numel():
        ok = ((labels == 0) | (labels == 1)).all()
        check.values(ok, f"{name}: expected multi-hot rows of zeros and ones, got another value")
    return labels


def check_form(labels, num_rows: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Raise unless shape and dtype are those of ids (N,) or multi-hot rows (N, C); the values are not looked at."""
    check.tensor(labels, name)
    if labels.ndim not in (1, 2) or labels.shape[0] != num_rows:
        raise ValueError(
            f"{name}: expected ids of shape ({num_rows},) or multi-hot rows of shape ({num_rows}, C), "
            f"got {check.describe(labels)}"
        )
    if labels.ndim == 1:
        if labels.dtype not in _INTEGER:
            raise TypeError(f"{name}: expected integer class ids, got {check.describe(labels)}")
    elif num_classes is not None and labels.shape[1] != num_classes:
        raise ValueError(f"{name}: expected {num_classes} columns, one a class, got {check.describe(labels)}")


def to_multi_hot(labels: torch.Tensor, num_classes: int, dtype=torch.float32) -> torch.Tensor:
    """Multi-hot rows (N, C) of `dtype` from ids or multi-hot rows."""
    if labels.ndim == 1 and check.vmapped():  # one_hot looks at the values
        return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)
    if labels.ndim == 1:
        return F.one_hot(labels.long(), num_classes).to(dtype)
    return labels.to(dtype)


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """S_ij = [the label sets of a_i and b_j share a class], bool (N, M).

    Ids and multi-hot rows may meet: an id is then the one-hot row of its class.
    """
    if a.ndim == 1 and b.ndim == 1:
        return a[:, None] == b[None, :]
    classes = a.shape[1] if a.ndim == 2 else b.shape[1]
    return (to_multi_hot(a, classes) @ to_multi_hot(b, classes).T) > 0
