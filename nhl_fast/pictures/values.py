"""What is drawn, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core import check


def named(value, name: str) -> dict:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {check.describe(value)}")
    if not value:
        raise ValueError(f"{name}: expected at least one entry, got none")
    return dict(value)


def unit_interval(values, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise ValueError(f"{name}: expected a list of numbers from 0 to 1, got another value or none")
    return values
