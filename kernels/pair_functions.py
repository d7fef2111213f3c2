"""The pairwise losses, one function each: what one pair of rows adds, and how it pulls on the row.

    f(inner, coded, own, other, similar, b, c0, c1) -> loss, pull, keep

    inner     <u_i, U_j> over the first b bits; with a reference length (`scales`), times reference / b.
    coded     <sign u_i, sign U_j>, where the loss asks for it (`signs`), likewise.
    own, other    |u_i|^2 and |U_j|^2, where the loss asks for them (`squares`).
    similar   S_ij; b the code length as a float; c0, c1 the loss's constants.

The gradient of the loss with respect to u_i is sum_j pull_ij U_j + (sum_j keep_ij) u_i, where the body multiplies
`pull` by reference / b as it did the products. A loss within the batch
(`symmetric`) gives the gradient of both its orders, ij and ji. A new pairwise loss is one such function and a line
in `PAIR_LOSSES`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import penalties
from .arithmetic import inverse_norm, log1p, sigmoid, softplus


@triton.jit
def contrastive(inner, coded, own, other, similar, b, c0, c1):
    """DSH: S d / 2 + (1 - S) max(c0 b - d, 0) / 2 with d = |u_i - U_j|^2."""
    distance = own + other - 2 * inner
    short = tl.maximum(c0 * b - distance, 0.0)
    twice = tl.where(similar, 1.0, tl.where(short > 0, -1.0, 0.0))
    return 0.5 * tl.where(similar, distance, short), -twice, twice


@triton.jit
def likelihood(inner, coded, own, other, similar, b, c0, c1):
    """DHN, DBDH: softplus(theta) - S theta with theta = <u_i, U_j> / 2, written softplus(-+theta)."""
    side = tl.where(similar, -0.5, 0.5)
    x = side * inner
    return softplus(x), side * sigmoid(x), 0 * x


@triton.jit
def locality(inner, coded, own, other, similar, b, c0, c1):
    """LCDSH, both orders: softplus(-s theta) + c0 (sigma(theta) - sigma(coded / 2))^2, |theta| clamped to c1."""
    theta = 0.5 * inner
    inside = tl.abs(theta) <= c1
    theta = tl.minimum(tl.maximum(theta, -c1), c1)
    side = tl.where(similar, -1.0, 1.0)
    x = side * theta
    now = sigmoid(theta)
    gap = now - sigmoid(0.5 * coded)
    rise = side * sigmoid(x) + 2 * c0 * gap * now * sigmoid(-theta)
    return softplus(x) + c0 * gap * gap, tl.where(inside, rise, 0.0), 0 * x


@triton.jit
def cauchy(inner, coded, own, other, similar, b, c0, c1):
    """DCH, both orders: log(1 + d / c0) - (1 - S) log(d / c0), d the distance of the cosine capped at c1."""
    left = inverse_norm(own)
    right = inverse_norm(other)
    cosine = tl.where((left > 0) & (right > 0), inner * left * right, 0.0)
    distance, falls = penalties.cauchy_distance(cosine, b, c1)
    ratio = distance / c0
    loss = log1p(ratio) - tl.where(similar, 0.0, tl.log(ratio))
    rise = 2 * falls * (1 / (c0 + distance) - tl.where(similar, 0.0, 1 / distance))
    return loss, rise * left * right, -rise * cosine * left * left


@triton.jit
def attraction(inner, coded, own, other, similar, b, c0, c1):
    """MDSH's pair term: S log(1 + exp((1 - cos) / 2)); norms are at least 1e-12."""
    left = 1 / tl.maximum(tl.sqrt_rn(own), 1e-12)
    right = 1 / tl.maximum(tl.sqrt_rn(other), 1e-12)
    cosine = tl.where((left > 0) & (right > 0), inner * left * right, 0.0)
    x = 0.5 - 0.5 * cosine
    rise = tl.where(similar, -0.5 * sigmoid(x), 0.0)
    return (
        tl.where(similar, softplus(x), 0.0),
        rise * left * right,
        tl.where(left < 1e12, -rise * cosine * left * left, 0.0),
    )


class PairLoss(NamedTuple):
    """One pairwise loss: its function, what the kernel must compute for it, and the penalty that goes with it."""

    function: Any
    penalty: int = 0
    squares: bool = False  # needs |u_i|^2 and |U_j|^2, and gives `keep`
    signs: bool = False  # needs the inner product of the signs
    clamp: bool = False  # outputs and bank clamped to [-1, 1] first
    balanced: bool = False  # similar and dissimilar pairs weighed by how rare they are
    scales: bool = False  # its inner products can be those of a reference length
    count_similar: bool = False  # the mean is over the similar pairs, in place of all that count


PAIR_LOSSES = {
    "dsh": PairLoss(contrastive, penalties.ABSOLUTE.value, squares=True),
    "dhn": PairLoss(likelihood, penalties.LOG_COSH.value, scales=True),
    "dbdh": PairLoss(likelihood, penalties.BALANCE.value, clamp=True, scales=True),
    "dbdh_unclamped": PairLoss(likelihood, penalties.BALANCE.value, scales=True),
    "lcdsh": PairLoss(locality, signs=True, scales=True),
    "dch": PairLoss(cauchy, penalties.CAUCHY.value, squares=True, balanced=True),
    "mdsh_pairs": PairLoss(attraction, squares=True, count_similar=True),
}
