"""The numbers that each protocol of splitting takes."""

from __future__ import annotations

from ..core import check


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
