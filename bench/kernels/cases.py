"""The kernels, each beside the plain PyTorch that gives the same numbers: what the microbenchmarks time.

`CASES[name](n, d, dtype)` gives a `Case`. `d` is looked at by what reads the features alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from bench.common import data, losses
from bench.gpu.device import DEVICE, REHEARSAL
from bench.kernels import floors
from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, pad, segment_matrix, weighted_sum
from nhl_fast.head.distillation import expanded_distillation_losses
from nhl_fast.head.weighting import dominance_dots, dominance_weights
from nhl_fast.retrieval.codes import pack_codes
from nhl_fast.steps.fused import distillation, prepare, projection, weighting
from nhl_fast.steps.fused.bodies import values_and_deltas

LENGTHS = (4, 8, 16) if REHEARSAL else data.LENGTHS
LONGEST, TOTAL = LENGTHS[-1], sum(LENGTHS)
CLASSES, BANK = (5, 40) if REHEARSAL else (100, 13_000)
SHAPES = ((16, 300), (40, 12)) if REHEARSAL else ((64, 2048), (256, 2048), (4096, 768), (32768, 2048))
# Rows of a batch compared with itself; beyond, the work grows out of reason.
LIMITS = {"triplets": 256, "pairs": 4096, "distillation": 4096}


class Case(NamedTuple):
    """A kernel at one size: both implementations (each gives a sequence of tensors), and what it must do.

    Attributes:
        floor: (bytes, operations), see floors.py.
        unit: whose rate its operations are held against, "fp32" or "bf16".
        gap: what stands between the kernel and its floor.
        tolerance: how far the results may differ, relative, in the norm.
    """

    fused: Callable
    plain: Callable
    floor: tuple[float, float]
    gap: str
    unit: str = "fp32"
    tolerance: float = 1e-3


def _inputs(n, d, dtype):
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, device=DEVICE) for shape in ((n, d), (LONGEST, d), (LONGEST,)))
    return x.to(dtype), w / d**0.5, b


def _project(n, d, dtype):
    x, w, b = _inputs(n, d, dtype)
    gram = weighting.dots_kernels.uses_gram(n, d, LENGTHS)

    def plain():
        full = x.float()
        return torch.nn.functional.linear(full, w, b), *([full @ full.T] if gram else [])

    return Case(
        lambda: projection.project(x, w, b, gram)[: 1 + gram], plain,
        floors.projection(n, d, LONGEST, x.element_size(), gram), floors.GAPS["projection"], _unit(dtype),
    )  # fmt: skip


def _encode(n, d, dtype):
    x, w, b = _inputs(n, d, dtype)
    return Case(
        lambda: [projection.encode(x, w, b)],
        lambda: [pack_codes(torch.nn.functional.linear(x.float(), w, b))],
        floors.encode(n, d, LONGEST, x.element_size()), floors.GAPS["encode"], _unit(dtype),
        1e-2,  # outputs at 0 may round either way
    )  # fmt: skip


def _loss(name, n, d, dtype):
    torch.manual_seed(0)
    loss = losses.make(name, CLASSES, LENGTHS, max(BANK, n), DEVICE).eval()
    u, labels = torch.randn(n, LONGEST, device=DEVICE), torch.randint(0, CLASSES, (n,), device=DEVICE)

    def fused():
        values, deltas = values_and_deltas(loss.forms(), u, labels, list(LENGTHS))
        return (values.sum(0) if values.ndim == 2 else values), deltas

    def plain():
        values, deltas = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u, LENGTHS))
        return values.detach(), deltas

    terms = losses.terms(loss)
    return Case(fused, plain, floors.loss(terms, n, LENGTHS, CLASSES), floors.gap_of(terms))


def _distillation(n, d, dtype):
    torch.manual_seed(0)
    u, columns = torch.randn(n, LONGEST, device=DEVICE), segment_matrix(LENGTHS).to(DEVICE)

    def fused():
        deltas = torch.zeros(n, TOTAL, device=DEVICE)
        return distillation.distill(u, list(LENGTHS), 1.0, deltas), deltas

    def plain():
        values, deltas = per_length_gradients(
            lambda v: expanded_distillation_losses(v, LENGTHS, columns), expand(u, LENGTHS)
        )
        return values.detach(), deltas

    return Case(fused, plain, floors.distillation(n, LENGTHS), floors.GAPS["distillation"])


def _weights(n, d, dtype):
    x, w, b = _inputs(n, d, dtype)
    deltas, u = torch.randn(n, TOTAL, device=DEVICE), torch.zeros(n, LONGEST, device=DEVICE)
    full = x.float()
    gram = full @ full.T if weighting.dots_kernels.uses_gram(n, d, LENGTHS) else full.new_empty(0, 0)
    values = torch.ones(1, len(LENGTHS), device=DEVICE)
    arguments = (x, w, b, u, deltas, gram, values, None, 0.0, None, list(LENGTHS), False)

    def fused():
        found = weighting.combine(*arguments)
        return found[1:2] if gram.numel() else (found[1], found[5])

    def plain():
        padded = pad(deltas, LENGTHS)
        weights = dominance_weights(dominance_dots(padded, x.float(), LENGTHS))
        # With the Gram matrix at hand, dU is formed in the backward kernel.
        return (weights,) if gram.numel() else (weights, weighted_sum(padded, weights))

    floor = floors.weights(n, d, LENGTHS, x.element_size(), bool(gram.numel()))
    return Case(fused, plain, floor, floors.GAPS["weights"], _unit(dtype), 1e-2)


def _backward(n, d, dtype):
    x, w, _ = _inputs(n, d, dtype)
    du, scale = torch.randn(n, LONGEST, device=DEVICE), torch.tensor(2.0, device=DEVICE)
    empty = torch.empty(0, device=DEVICE)

    def plain():
        scaled = du * scale
        return (scaled @ w).to(dtype), scaled.T @ x.float(), scaled.sum(0)

    return Case(
        lambda: weighting.head_backward(
            scale, du, empty, empty, None, x, w, empty, empty, list(LENGTHS), True, True
        ), plain,
        floors.backward(n, d, LONGEST, x.element_size()), floors.GAPS["backward"], _unit(dtype),
        1e-2 if dtype != torch.float32 else 1e-3,
    )  # fmt: skip


def _bank(n, d, dtype):
    torch.manual_seed(0)
    size = max(BANK, n)
    index, labels = torch.randperm(size, device=DEVICE)[:n], torch.randint(0, CLASSES, (n,), device=DEVICE)
    u = torch.randn(n, LONGEST, device=DEVICE)
    banks = [
        (torch.zeros(size, LONGEST, device=DEVICE), torch.zeros(size, dtype=torch.long, device=DEVICE),
         torch.zeros(size, dtype=torch.bool, device=DEVICE))
        for _ in range(2)
    ]  # fmt: skip

    def fused():
        prepare.store_rows(*banks[0], index, u, labels, CLASSES)
        return banks[0]

    def plain():
        stored, ids, written = banks[1]
        stored[index], ids[index] = u, labels
        written.index_fill_(0, index, True)
        return banks[1]

    return Case(fused, plain, floors.bank_store(n, LONGEST), floors.GAPS["bank_store"], "fp32", 0.0)


def _unit(dtype) -> str:
    return "fp32" if dtype == torch.float32 else "bf16"


CASES: dict[str, Callable] = {
    "projection": _project,
    "encode": _encode,
    **{name: partial(_loss, name) for name in losses.CASES},
    "distillation": _distillation,
    "weights": _weights,
    "backward": _backward,
    "bank_store": _bank,
}
READS_FEATURES = ("projection", "encode", "weights", "backward")


def _limit(name: str) -> float:
    """Most rows of a batch."""
    limits = [LIMITS.get(name)]
    if name in losses.CASES:
        limits = [LIMITS.get(body) for body, rows in losses.terms(losses.make(name, 5, LENGTHS, 10)) if not rows]
    return min((limit for limit in limits if limit), default=float("inf"))


def wanted(names=None):
    """(name, n, d, dtype) of every case worth its time, or of those of the kernels `names`."""
    found = []
    for name in names or CASES:
        for n, d in SHAPES:
            if n > _limit(name):
                continue
            found.append((name, n, d, torch.float32))
            if name in READS_FEATURES and not REHEARSAL:
                found.append((name, n, d, torch.bfloat16))
    return found
