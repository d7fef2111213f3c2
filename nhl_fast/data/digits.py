"""The 1,797 handwritten digits (8 x 8 pixels) that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from ..core import check, extras
from . import splits
from .dataset import Table
from .rows import TensorRows


def load(as_images: bool = False, queries_per_class: int = 20):
    """The table, and a function of the seed that splits it (see `nhl_fast.data.load_dataset`)."""
    queries = check.positive_int(queries_per_class, "queries_per_class")
    extras.require("sklearn", "data", "the data set 'digits'")
    from sklearn.datasets import load_digits

    source = load_digits()
    inputs = torch.from_numpy((source.images / 16).astype(np.float32))
    labels = torch.from_numpy(source.target.astype(np.int64))
    table = Table(
        name="digits",
        rows=TensorRows(
            inputs.unsqueeze(1) if as_images else inputs.flatten(1),
            pictures=np.round(source.images * (255 / 16)).astype(np.uint8),
        ),
        labels=labels,
        num_classes=10,
        input_kind="images" if as_images else "features",
        class_names=[str(name) for name in source.target_names],
    )

    def split(seed: int):
        indices = splits.pooled(labels.numpy(), queries, None, True, seed)
        return indices, f"{queries} queries a class, the rest is database and training"

    return table, split
