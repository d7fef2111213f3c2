"""The published losses, each with one value a code length, two without labels, and `PerLength` for any other."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..core import check
from .described import described

if TYPE_CHECKING:
    from .base import NestedLoss

# The published losses and their modules. What else there is to know of them is said there, and nowhere outside this
# package. Loaded when first used: the command line knows the names before PyTorch is loaded.
_PUBLISHED = {
    "CSQ": "center",
    "DPN": "center",
    "DSH": "pairs",
    "DHN": "pairs",
    "DBDH": "pairs",
    "DTSH": "triplet",
    "LCDSH": "pairs",
    "DCH": "pairs",
    "MDSH": "softmax",
    "SHCIR": "softmax",
    "DPSH": "pairs",
    "HashNet": "bounded",
    "OrthoCos": "cross_entropy",
    "OrthoArc": "cross_entropy",
    "IDHN": "bounded",
    "GreedyHash": "cross_entropy",
    "HyP2": "proxies",
}
# Two need no classes: their targets are vectors, or which rows show one thing.
_UNLABELLED = {"Contrastive": "unlabelled", "Neighbors": "unlabelled"}
_HOMES = {**_PUBLISHED, **_UNLABELLED, "Bank": "bank", "NestedLoss": "base", "PerLength": "per_length"}
NAMES = tuple(name.lower() for name in _PUBLISHED)

__all__ = [*_HOMES, "REGISTRY", "build"]  # noqa: PLE0604 (the keys are strings)


@functools.cache
def _registry() -> dict[str, type[NestedLoss]]:
    return {name.lower(): __getattr__(name) for name in _PUBLISHED}


def __getattr__(name: str) -> Any:
    if name == "REGISTRY":
        return _registry()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def descriptions() -> dict[str, tuple[str, tuple[str, ...]]]:
    """{name: (what it is, its keyword arguments)} of the published losses, without loading them."""
    return {name.lower(): described(name) for name in _PUBLISHED}


def options_of(name: str) -> tuple[str, ...]:
    """The keyword arguments of the published loss `name`."""
    parameters = inspect.signature(_registry()[check.one_of(name, "name", tuple(_registry()))]).parameters
    return tuple(p for p in parameters if p not in ("num_classes", "code_lengths"))


def build(
    name: str,
    *,
    num_classes: int,
    code_lengths=check.DEFAULT_CODE_LENGTHS,
    num_train: int | None = None,
    **options,
) -> NestedLoss:
    """The published loss `name`, a key of `REGISTRY`.

    Args:
        num_classes: number of classes.
        code_lengths: the code lengths in bits.
        num_train: number of training items; needed by the losses that compare a batch with a bank of them all, used
            by those with a term of such pairs, ignored by the others.
        options: keyword arguments of that loss.
    """
    taken = options_of(name)
    cls, own = _registry()[name], [option for option in taken if option != "num_train"]
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise TypeError(f"{name}: unknown option {', '.join(unknown)}; it takes {', '.join(own) or 'none'}")
    if "num_train" in taken:
        if num_train is None and inspect.signature(cls).parameters["num_train"].default is inspect.Parameter.empty:
            raise ValueError(f"num_train: the loss {name!r} keeps a bank and needs the number of training items")
        options["num_train"] = num_train
    return cls(num_classes, code_lengths, **options)
