"""Penalties on the outputs of a row, as functions of one sum over its bits: `statistic` summed, then `value`.

The kinds are integers because a kernel takes them as compile-time constants. `value` is a row's part of the mean
over rows, `slope` its derivative with respect to one output.
"""

import triton
import triton.language as tl

from .arithmetic import bit_sign, inverse_norm, load_tile, log1p, sign, softplus

NONE = tl.constexpr(0)
ABSOLUTE = tl.constexpr(1)  # mean over bits of | |u| - 1 |
LOG_COSH = tl.constexpr(2)  # mean over bits of log cosh(|u| - 1)
BALANCE = tl.constexpr(3)  # (mean over bits of u)^2
CAUCHY = tl.constexpr(4)  # log(1 + d(|u|, 1) / gamma), see cauchy_distance
SQUARE = tl.constexpr(5)  # mean over bits of (|u| - 1)^2
SIGN_GAP = tl.constexpr(6)  # mean over bits of (u - sign u)^2


@triton.jit
def cauchy_distance(cosine, b, cap):
    """Relaxed Hamming distance in bits of a cosine capped at `cap` (inf: no cap, at least 1e-6), and its slope."""
    raw = (0.5 * b) * (1 - tl.minimum(cosine, cap))
    passes = (cosine <= cap) & (raw >= 1e-6)
    return tl.maximum(raw, 1e-6), tl.where(passes, -0.5 * b, 0.0)


@triton.jit
def statistic(x, KIND: tl.constexpr):
    if KIND == 1:
        return tl.abs(tl.abs(x) - 1)
    elif KIND == 2:
        y = tl.abs(tl.abs(x) - 1)
        return y + softplus(-2 * y) - 0.6931471805599453
    elif KIND == 3:
        return x
    elif KIND == 4:
        return tl.abs(x)
    elif KIND == 5:
        y = tl.abs(x) - 1
        return y * y
    else:
        y = x - bit_sign(x)
        return y * y


@triton.jit
def value(total, squares, b, c0, c1, KIND: tl.constexpr):
    """Penalty of rows whose statistics sum to `total` and squares to `squares`."""
    if KIND == 3:
        mean = total / b
        return mean * mean
    elif KIND == 4:
        cosine = total * inverse_norm(squares) / tl.sqrt_rn(b)
        distance, _ = cauchy_distance(cosine, b, c1)
        return log1p(distance / c0)
    else:
        return total / b


@triton.jit
def slope(x, total, squares, b, c0, c1, KIND: tl.constexpr):
    """Derivative of `value` with respect to the output x of such a row."""
    if KIND == 1:
        return sign(tl.abs(x) - 1) * sign(x) / b
    elif KIND == 2:
        y = tl.abs(x) - 1
        e = tl.exp(-2 * tl.abs(y))
        return sign(y) * (1 - e) / (1 + e) * sign(x) / b
    elif KIND == 3:
        return 2 * total / (b * b) + 0 * x
    elif KIND == 4:
        inverse = inverse_norm(squares)
        root = tl.sqrt_rn(b)
        cosine = total * inverse / root
        distance, falls = cauchy_distance(cosine, b, c1)
        direction = (sign(x) / root - cosine * (x * inverse)) * inverse
        return falls / (c0 + distance) * direction
    elif KIND == 5:
        return 2 * (tl.abs(x) - 1) * sign(x) / b
    else:
        return 2 * (x - bit_sign(x)) / b


@triton.jit
def row_sums(
    u, first_row, num_rows, B: tl.constexpr, KIND: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
    BITS: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Sums over the first B bits of a tile of rows of u (N, L): of the statistics, and of the squares."""
    total = tl.zeros((ROWS, BITS), tl.float32)
    squares = tl.zeros((ROWS, BITS), tl.float32)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, CLAMP)
        if KIND != 0:
            total += tl.where(bits[None, :] < B, statistic(x, KIND), 0.0)
        squares += x * x
    return tl.sum(total, axis=1), tl.sum(squares, axis=1)
