"""Penalties on the outputs of a row, as functions of one sum over its bits: `statistic` summed, then `value`.

A kind's name is known when a kernel is compiled. `value` is a row's part of the mean over rows, `slope` its
derivative with respect to one output; c are the constants of the loss.
"""

import triton
import triton.language as tl

from .arithmetic import bit_sign, inverse_norm, largest, load_tile, log1p, sign, smallest, softplus

KINDS = (
    "none",
    "absolute",  # mean over bits of | |u| - 1 |
    "log_cosh",  # mean over bits of log cosh(|u| - 1)
    "balance",  # (mean over bits of u)^2
    "cauchy",  # log(1 + d(|u|, 1) / c[0]), see cauchy_distance
    "square",  # mean over bits of (|u| - 1)^2
    "sign",  # mean over bits of (u - sign u)^2
    "cube",  # mean over bits of ||u| - 1|^3
)


@triton.jit
def cauchy_distance(cosine, b, cap):
    """Relaxed Hamming distance in bits of a cosine capped at `cap` (inf: no cap, at least 1e-6), and its slope."""
    raw = (0.5 * b) * (1 - smallest(cosine, cap))
    passes = (cosine <= cap) & (raw >= 1e-6)
    return largest(raw, 1e-6), tl.where(passes, -0.5 * b, 0.0)


@triton.jit
def statistic(x, KIND: tl.constexpr):
    if KIND == "absolute":
        return tl.abs(tl.abs(x) - 1)
    elif KIND == "log_cosh":
        y = tl.abs(tl.abs(x) - 1)
        return y + softplus(-2 * y) - 0.6931471805599453
    elif KIND == "balance":
        return x
    elif KIND == "cauchy":
        return tl.abs(x)
    elif KIND == "square":
        y = tl.abs(x) - 1
        return y * y
    elif KIND == "cube":
        y = tl.abs(tl.abs(x) - 1)
        return y * y * y
    else:
        y = x - bit_sign(x)
        return y * y


@triton.jit
def value(total, squares, b, c, KIND: tl.constexpr):
    """Penalty of rows whose statistics sum to `total` and squares to `squares`."""
    if KIND == "balance":
        mean = total / b
        return mean * mean
    elif KIND == "cauchy":
        cosine = total * inverse_norm(squares) / tl.sqrt_rn(b)
        distance, _ = cauchy_distance(cosine, b, c[1])
        return log1p(distance / c[0])
    else:
        return total / b


@triton.jit
def slope(x, total, squares, b, c, KIND: tl.constexpr):
    """Derivative of `value` with respect to the output x of such a row."""
    if KIND == "absolute":
        return sign(tl.abs(x) - 1) * sign(x) / b
    elif KIND == "log_cosh":
        y = tl.abs(x) - 1
        e = tl.exp(-2 * tl.abs(y))
        return sign(y) * (1 - e) / (1 + e) * sign(x) / b
    elif KIND == "balance":
        return 2 * total / (b * b) + 0 * x
    elif KIND == "cauchy":
        inverse = inverse_norm(squares)
        root = tl.sqrt_rn(b)
        cosine = total * inverse / root
        distance, falls = cauchy_distance(cosine, b, c[1])
        direction = (sign(x) / root - cosine * (x * inverse)) * inverse
        return falls / (c[0] + distance) * direction
    elif KIND == "square":
        return 2 * (tl.abs(x) - 1) * sign(x) / b
    elif KIND == "cube":
        y = tl.abs(x) - 1
        return 3 * y * tl.abs(y) * sign(x) / b
    else:
        return 2 * (x - bit_sign(x)) / b


@triton.jit
def row_sums(
    u, first_row, num_rows, B: tl.constexpr, KIND: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
    BITS: tl.constexpr, CLAMP: tl.constexpr = float("inf"),
):  # fmt: skip
    """Sums over the first B bits of a tile of rows of u (N, L): of the statistics, and of the squares."""
    total = tl.zeros((ROWS, BITS), tl.float32)
    squares = tl.zeros((ROWS, BITS), tl.float32)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, CLAMP)
        if KIND != "none":
            total += tl.where(bits[None, :] < B, statistic(x, KIND), 0.0)
        squares += x * x
    return tl.sum(total, axis=1), tl.sum(squares, axis=1)
