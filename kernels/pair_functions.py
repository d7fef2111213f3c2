"""The pairwise losses, one function each: what one pair of rows adds, and how that changes with the pair's number x.

    f(x, coded, similar, b, c0, c1) -> loss, slope in x

    x         by the function's geometry, over the first b bits of u_i and U_j: their "product" <u_i, U_j> (with a
              reference length, times reference / b), squared "distance" |u_i - U_j|^2, or "cosine".
    coded     <sign u_i, sign U_j>, where the function asks for it (`signs`), scaled like a product.
    similar   S_ij, or where a function is `graded` how much, from 0 to 1; b the code length as a float; c0, c1 the
              loss's constants, or those of the length.

All else belongs to the body (`pairs`): the geometry and its gradient, clamping, weights of pairs, the mean,
penalties. A new pairwise loss is one such function and a line in `PAIR_FUNCTIONS`.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .device.arithmetic import largest, log1p, sigmoid, softplus, within
from .device.penalties import cauchy_distance


@triton.jit
def contrastive(x, coded, similar, b, c0, c1):
    """DSH: S x / 2 + (1 - S) max(c0 b - x, 0) / 2 of the squared distance x."""
    short = largest(c0 * b - x, 0.0)
    return 0.5 * tl.where(similar, x, short), tl.where(similar, 0.5, tl.where(short > 0, -0.5, 0.0))


@triton.jit
def likelihood(x, coded, similar, b, c0, c1):
    """DHN, DBDH, DPSH, HashNet: softplus(x / 2) - S x / 2 of the product x, written softplus(-+x / 2)."""
    side = tl.where(similar, -0.5, 0.5)
    y = side * x
    return softplus(y), side * sigmoid(y)


@triton.jit
def locality(x, coded, similar, b, c0, c1):
    """LCDSH: softplus(-s theta) + c0 (sigma(theta) - sigma(coded / 2))^2, theta = x / 2 clamped to +-c1."""
    theta = 0.5 * x
    inside = tl.abs(theta) <= c1
    theta = within(theta, -c1, c1)
    side = tl.where(similar, -1.0, 1.0)
    y = side * theta
    now = sigmoid(theta)
    gap = now - sigmoid(0.5 * coded)
    rise = side * sigmoid(y) + 2 * c0 * gap * now * sigmoid(-theta)
    return softplus(y) + c0 * gap * gap, tl.where(inside, 0.5 * rise, 0.0)


@triton.jit
def cauchy(x, coded, similar, b, c0, c1):
    """DCH: log(1 + d / c0) - (1 - S) log(d / c0), d the relaxed distance of the cosine x capped at c1."""
    d, falls = cauchy_distance(x, b, c1)
    ratio = d / c0
    loss = log1p(ratio) - tl.where(similar, 0.0, tl.log(ratio))
    return loss, falls * (1 / (c0 + d) - tl.where(similar, 0.0, 1 / d))


@triton.jit
def attraction(x, coded, similar, b, c0, c1):
    """MDSH's pair term: S log(1 + exp((1 - x) / 2)) of the cosine x."""
    y = 0.5 - 0.5 * x
    return tl.where(similar, softplus(y), 0.0), tl.where(similar, -0.5 * sigmoid(y), 0.0)


@triton.jit
def graded(x, coded, similar, b, c0, c1):
    """IDHN: softplus(c0 x / b) - S c0 x / b of the product x where S is 0 or 1, else c1 b ((x / b + 1) / 2 - S)^2."""
    mean = x / b
    y = c0 * mean
    turned = tl.where(similar > 0.5, -y, y)
    rest = tl.where(similar > 0.5, 1 - similar, similar)  # what the sure side lacks
    entropy = softplus(turned) - rest * turned
    slope = tl.where(similar > 0.5, -c0, c0) * (sigmoid(turned) - rest) / b
    gap = 0.5 * mean + 0.5 - similar
    whole = (similar < 0.01) | (similar > 0.99)
    return tl.where(whole, entropy, c1 * b * gap * gap), tl.where(whole, slope, c1 * gap)


@triton.jit
def margin(x, coded, similar, b, c0, c1):
    """HyP2: S (1 - x) + (1 - S) max(x - c0, 0) of the cosine x."""
    above = largest(x - c0, 0.0)
    return tl.where(similar, 1 - x, above), tl.where(similar, -1.0, tl.where(above > 0, 1.0, 0.0))


class PairFunction(NamedTuple):
    """A function of pairs, and what the body must know of it.

    Attributes:
        code: the function.
        geometry: "product", "distance" or "cosine".
        signs: it looks at the product of the signs, too.
        graded: it is a function of how similar two rows are, from 0 to 1.
        by_length: it has a constant for every length.
        of_zero: what stands for 1 / norm of a row without a direction, in a cosine.
        large: when its large tiles fit into the registers: "always", "unweighed" or "never".
        ships: with what it is compiled ahead of time: penalty, clamp, whether against a bank, ways to weigh, mean.
    """

    code: Any
    geometry: str
    signs: bool = False
    graded: bool = False
    by_length: bool = False
    of_zero: float = 0.0
    large: str = "never"
    ships: tuple = ()


def _bank(*penalties, weigh=("no", "halves"), over="pairs"):
    return tuple((kind, clamp, True, way, over) for kind, clamp in penalties for way in weigh)


PAIR_FUNCTIONS = {
    "contrastive": PairFunction(contrastive, "distance", large="unweighed", ships=_bank(("absolute", math.inf))),
    "likelihood": PairFunction(
        likelihood, "product", large="always",
        ships=(
            *_bank(("log_cosh", math.inf), ("balance", 1.0), ("balance", math.inf), ("sign", math.inf)),
            ("none", math.inf, False, "rarity", "pairs"),
        ),
    ),
    "locality": PairFunction(locality, "product", signs=True, ships=(("none", math.inf, False, "no", "pairs"),)),
    "cauchy": PairFunction(cauchy, "cosine", ships=(("cauchy", math.inf, False, "rarity", "pairs"),)),
    "graded": PairFunction(
        graded, "product", graded=True, ships=(("absolute", math.inf, False, "no", "pairs"),)
    ),
    "attraction": PairFunction(
        attraction, "cosine", of_zero=1e12, ships=_bank(("none", math.inf), weigh=("no",), over="similar")
    ),
    "margin": PairFunction(margin, "cosine", by_length=True, ships=_bank(("none", math.inf), weigh=("no",))),
}  # fmt: skip
