"""The protocols of splitting, and the numbers that each takes."""

from __future__ import annotations

import numpy as np

from ..core import check
from . import splits


def protocol_sizes(protocol: str, multi_label: bool, given: dict) -> dict:
    """The options of `protocol`, checked, with defaults; ValueError for one that it does not use."""
    if protocol == "holdout":
        used, defaults = (), {}
    elif protocol == "full":
        used, defaults = ("num_train",), {}
    elif multi_label:
        used, defaults = ("num_queries", "num_train"), {}
    else:
        used = ("queries_per_class", "train_per_class")
        defaults = {"queries_per_class": 100, "train_per_class": 500}
    kind = "multi-label" if multi_label else "single-label"
    for name, value in given.items():
        if value is not None and name not in used:
            takes = " and ".join(used) or "no numbers"
            raise ValueError(f"{name}: protocol {protocol!r} of {kind} data takes {takes}, got {value!r}")
    sizes = {}
    for name in used:
        value = defaults.get(name) if given[name] is None else given[name]
        if value is None:
            raise ValueError(f"{name}: protocol {protocol!r} of {kind} data needs it")
        sizes[name] = check.positive_int(value, name)
    return sizes


def by_protocol(labels: np.ndarray, protocol: str | None, given: dict, seed: int) -> tuple[splits.Indices, str]:
    """The split of rows with `labels`, and the name of its protocol.

    `protocol` None is "holdout" where no numbers are `given`, else "full" for `num_train` alone, else "paper".
    """
    if protocol is None and all(value is None for value in given.values()):
        protocol = "holdout"
    if protocol is None:
        protocol = "full" if given.get("num_train") is not None and given["num_queries"] is None else "paper"
    sizes = protocol_sizes(protocol, labels.ndim == 2, given)
    if protocol == "holdout":
        return splits.holdout(labels, seed), protocol
    if protocol == "full":
        return splits.leading(len(labels), sizes["num_train"]), protocol
    return splits.pooled(labels, *sizes.values(), protocol == "keep-train", seed, tuple(sizes)), protocol
