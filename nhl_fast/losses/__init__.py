"""The ten published losses, each with one value a code length, two without labels, and `PerLength` for any other."""

from __future__ import annotations

import inspect

from ..core import check
from .bank import Bank
from .bank_pairs import DBDH, DHN, DSH
from .base import NestedLoss
from .batch_pairs import DCH, LCDSH
from .center import CSQ, DPN
from .per_length import PerLength
from .softmax import MDSH, SHCIR
from .triplet import DTSH
from .unlabelled import Contrastive, Neighbors

REGISTRY: dict[str, type[NestedLoss]] = {
    "csq": CSQ,
    "dpn": DPN,
    "dsh": DSH,
    "dhn": DHN,
    "dbdh": DBDH,
    "dtsh": DTSH,
    "lcdsh": LCDSH,
    "dch": DCH,
    "mdsh": MDSH,
    "shcir": SHCIR,
}

__all__ = [
    "CSQ",
    "DBDH",
    "DCH",
    "DHN",
    "DPN",
    "DSH",
    "DTSH",
    "LCDSH",
    "MDSH",
    "REGISTRY",
    "SHCIR",
    "Bank",
    "Contrastive",
    "Neighbors",
    "NestedLoss",
    "PerLength",
    "build",
]


def build(
    name: str,
    *,
    num_classes: int,
    code_lengths=check.DEFAULT_CODE_LENGTHS,
    num_train: int | None = None,
    **options,
) -> NestedLoss:
    """The published loss `name` (csq dpn dsh dhn dbdh dtsh lcdsh dch mdsh shcir).

    Args:
        num_classes: number of classes.
        code_lengths: the code lengths in bits.
        num_train: number of training items; needed by the losses with a bank (dsh, dhn, dbdh), used by mdsh for
            its pair term, ignored by the others.
        options: keyword arguments of that loss.
    """
    cls = REGISTRY[check.one_of(name, "name", tuple(REGISTRY))]
    parameters = inspect.signature(cls).parameters
    own = [p for p in parameters if p not in ("num_classes", "code_lengths", "num_train")]
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise TypeError(f"{name}: unknown option {', '.join(unknown)}; it takes {', '.join(own) or 'none'}")
    if "num_train" in parameters:
        if num_train is None and parameters["num_train"].default is inspect.Parameter.empty:
            raise ValueError(f"num_train: the loss {name!r} keeps a bank and needs the number of training items")
        options["num_train"] = num_train
    return cls(num_classes, code_lengths, **options)
