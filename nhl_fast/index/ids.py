"""Checks of the ids that callers pass to an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core import check

LIMIT = 2**63


def check_ids(value, name: str, copy: bool = True) -> np.ndarray:
    """Integers of at least 0 as an int64 array; with `copy`, one of its own."""
    if isinstance(value, torch.Tensor):
        on_cpu(value, name)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected integers without a mask, got {check.describe(value)}")
    try:
        ids = np.asarray(value)
    except Exception:  # whatever a foreign class raises where it is taken for a sequence
        raise TypeError(f"{name}: expected a sequence of integers, got {check.describe(value)}") from None
    if ids.ndim == 0:
        raise TypeError(f"{name}: expected a sequence of integers, got {check.describe(value)}")
    if ids.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got {check.describe(value)}")
    if not ids.size:
        return np.empty(0, np.int64)
    # Integers that fit no common dtype have become objects or floats.
    if ids.dtype.kind in "Of" and not hasattr(value, "dtype") and all(isinstance(i, int) for i in value):
        raise ValueError(f"{name}: expected integers from 0 to 2**63 - 1, got {check.digits(max(value, key=abs))}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected a sequence of integers, got {check.describe(value)}")
    if ids.min() < 0 or ids.max() >= LIMIT:
        wrong = (ids < 0) | (ids > np.iinfo(np.int64).max)
        raise ValueError(f"{name}: expected integers from 0 to 2**63 - 1, got {some(ids[wrong])}")
    return ids.astype(np.int64, copy=copy)


def check_distinct(value, count: int | None = None) -> np.ndarray:
    """`check_ids` for ids that must differ (and be `count` in number)."""
    ids = check_ids(value, "ids")
    if count is not None and len(ids) != count:
        raise ValueError(f"ids: expected {count}, one for each code, got {len(ids)}")
    if (ids[1:] > ids[:-1]).all():
        return ids
    ascending = np.sort(ids)
    repeated = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(repeated):
        raise ValueError(f"ids: expected distinct ids, got {some(np.unique(repeated))} more than once")
    return ids


def on_cpu(value: torch.Tensor, name: str) -> torch.Tensor:
    """`value` if it is a CPU tensor."""
    if value.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor (the index lives in main memory), got one on {value.device}")
    return value


def on_device(value: torch.Tensor, name: str, devices: Sequence[torch.device]) -> torch.Tensor:
    """`value` if it is a CPU tensor, or one on a device where the index is searched."""
    if value.device.type == "cpu" or value.device in devices:
        return value
    places = ", ".join(sorted({str(device) for device in devices if device.type != "cpu"}))
    if not places:
        return on_cpu(value, name)
    raise ValueError(f"{name}: expected a tensor on the CPU or the index's {places}, got one on {value.device}")


def some(ids: np.ndarray, limit: int = 5) -> str:
    """A few ids for an error message."""
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(str, ids[:limit].tolist())) + more
