"""Trained codes of a million items and queries for them: what bench.search.funnel measures on.

Layers are learned on the texts' vectors but for some held out, the queries. The database repeats those
that were fitted to, each time with fresh Gaussian noise, until it has as many items as are asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import nhl_fast as nhl
from nhl_fast.core.files import atomic_write

QUERIES = 1000
NOISE = 0.5  # length of the noise, of vectors of length 1
LENGTHS = {256: (8, 16, 32, 64, 128, 256), 1024: (32, 64, 128, 256, 512, 1024)}


def vectors(path: Path, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries, others), rows of length 1."""
    x = torch.nn.functional.normalize(torch.from_numpy(np.load(path)["features"].astype(np.float32)))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:QUERIES]], x[order[QUERIES:]]


def fitted(path: Path, bits: int, folder: Path) -> nhl.NestedHashLayer:
    """The layer of `bits` bits, learned once and kept in `folder`."""
    kept = folder / f"layer_{bits}.pt"
    if not kept.exists():
        _, others = vectors(path)
        checkpoint = folder / f"fit_{bits}"
        resume = (checkpoint / "checkpoint.safetensors").exists()
        layer = nhl.fit_layer(others, LENGTHS[bits], checkpoint=checkpoint, resume=resume)
        with atomic_write(kept) as handle:
            torch.save(layer.state_dict(), handle)
    layer = nhl.NestedHashLayer(vectors(path)[0].shape[1], LENGTHS[bits], dtype=torch.float32)
    layer.load_state_dict(torch.load(kept, weights_only=True))
    return layer.eval()


def repeated(others: torch.Tensor, n: int, seed: int = 0):
    """Blocks of `n` vectors in all: the rows in turn, the first time as they are, then with noise."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, len(others)):
        rows = others[: n - start]
        if start:
            noise = torch.randn(rows.shape, generator=generator) * (NOISE / rows.shape[1] ** 0.5)
            rows = torch.nn.functional.normalize(rows + noise)
        yield rows


def database_of(path: Path, bits: int, n: int, folder: Path, k: int):
    """(codes, packed queries, the queries' exact k nearest (Q, k)); made once and kept in `folder`."""
    kept = folder / f"codes_{bits}_{n}.npz"
    if not kept.exists():
        layer, (queries, others) = fitted(path, bits, folder), vectors(path)
        codes, best = [], (torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64))
        start = 0
        for rows in repeated(others, n):
            codes.append(layer.encode(rows))
            scores = torch.cat([best[0], queries @ rows.T], 1)
            ids = torch.cat([best[1], torch.arange(start, start + len(rows)).expand(len(queries), -1)], 1)
            values, columns = scores.topk(k, 1)
            best, start = (values, ids.gather(1, columns)), start + len(rows)
        arrays = {"codes": torch.cat(codes), "queries": layer.encode(queries), "neighbors": best[1]}
        with atomic_write(kept) as handle:
            np.savez(handle, **{name: array.numpy() for name, array in arrays.items()})
    found = np.load(kept)
    return tuple(torch.from_numpy(found[name]) for name in ("codes", "queries", "neighbors"))
