"""Random codes, and codes with labels of the sizes that the field evaluates on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import nhl_fast as nhl

LENGTHS = (8, 16, 32, 64, 128)
# name: (queries, items, classes, mean labels a row (None: one id), K (None: the whole ranking))
PROTOCOLS = {
    "cifar10": (1000, 54_000, 10, None, None),
    "imagenet100": (5000, 128_503, 100, None, 1000),
    "coco": (5000, 117_218, 80, 2.9, 5000),
}


def random_rows(n: int, bits: int, seed: int, device="cpu") -> torch.Tensor:
    """(n, bits / 8) uint8: packed random codes."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(0, 256, (n, bits // 8), dtype=torch.uint8, device=device, generator=generator)


def protocol(queries: int, items: int, classes: int, per_row: float | None, bits: int, device="cpu"):
    """([query codes, item codes], [their labels]) of a protocol's sizes.

    Items of a class share bits, so that rankings are neither random nor perfect. Labels are ids, or, with `per_row`
    labels a row in the mean, multi-hot rows of classes some of which are common and most rare.
    """
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape):
        return torch.rand(shape, device=device, generator=generator)

    def normal(*shape):
        return torch.randn(shape, device=device, generator=generator)

    centers, labels, codes = normal(classes, bits), [], []
    popularity = 1 / (1 - uniform(classes)) - 0.8  # Pareto's, from 0.2 on
    for rows in (queries, items):
        if per_row is None:
            label = torch.randint(0, classes, (rows,), device=device, generator=generator)
        else:
            label = uniform(rows, classes) < (per_row * popularity / popularity.sum()).clamp(max=0.6)
        multi_hot = F.one_hot(label, classes) if per_row is None else label
        labels.append(label)
        codes.append(nhl.pack_codes(multi_hot.float() @ centers + 2 * normal(rows, bits)))
    return codes, labels
