"""Elementwise functions shared by the training kernels: stable, float32, from `tl.exp` and `tl.log` alone."""

import triton
import triton.language as tl


@triton.jit
def _twice_atanh(t):
    """2 atanh(t) for |t| <= 1/3."""
    s = t * t
    tail = 1 / 9 + s * (1 / 11 + s * (1 / 13 + s * (1 / 15)))
    return 2 * t * (1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * tail))))


@triton.jit
def log1p(z):
    """log(1 + z) for z >= 0, accurate also where 1 + z rounds to 1."""
    small = tl.minimum(z, 1.0)
    return tl.where(z <= 1, _twice_atanh(small / (2 + small)), tl.log(1 + z))


@triton.jit
def log_of_sum(z, one):
    """log(1 + z) for z >= 0, `one` being 1 + z rounded: what that lost cancels in the quotient."""
    return tl.where(one == 1, z, tl.log(one) * (z / tl.where(one == 1, 1.0, one - 1)))


@triton.jit
def log1m(p):
    """log(1 - p) for 0 <= p <= 1/2, accurate also where 1 - p rounds to 1."""
    p = tl.minimum(p, 0.5)
    return -_twice_atanh(p / (2 - p))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def log_add_exp(a, b):
    """log(exp(a) + exp(b)) of finite numbers."""
    return tl.maximum(a, b) + log1p(tl.exp(-tl.abs(a - b)))


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def bit_sign(x):
    """+-1 by the bit rule: +1 where x > 0."""
    return tl.where(x > 0, 1.0, -1.0)


@triton.jit
def signs(x, bits, B: tl.constexpr):
    """+-1 of a tile's columns `bits` by the bit rule, 0 beyond the code; NaN stays."""
    return tl.where(bits[None, :] < B, tl.where(x == x, bit_sign(x), x), 0.0)


@triton.jit
def cosine_and_sine(x):
    """cos x and sin x of a few turns at most: Taylor's series of a quarter of x, the angle doubled twice.

    A device's own, which reduce an angle of any size, take so many registers that a program spills.
    """
    turns = tl.floor(x * 0.15915494309189535 + 0.5)
    y = 0.25 * ((x - turns * 6.28125) - turns * 1.9353071795864769e-3)  # 2 pi; the first part's products are exact
    s = y * y
    sine = y * (1 - s * (1 / 6 - s * (1 / 120 - s * (1 / 5040 - s * (1 / 362880)))))
    fall = s * (1 / 2 - s * (1 / 24 - s * (1 / 720 - s * (1 / 40320 - s * (1 / 3628800)))))  # 1 - cos y
    for _ in tl.static_range(2):
        sine, fall = 2 * sine * (1 - fall), 2 * sine * sine
    return 1 - fall, sine


@triton.jit
def largest(x, low):
    """max(x, low); NaN stays, which `tl.maximum` drops."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smallest(x, high):
    """min(x, high); NaN stays."""
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def within(x, low, high):
    """x clamped to low .. high; NaN stays."""
    return smallest(largest(x, low), high)


@triton.jit
def clamped(x, LIMIT: tl.constexpr):
    """x clamped to +-LIMIT (inf: as it is); NaN stays."""
    if LIMIT < float("inf"):  # noqa: SIM300
        x = tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))
    return x


@triton.jit
def inverse_norm(squares, OF_ZERO: tl.constexpr = 0.0):
    """1 / norm from the sum of squares; OF_ZERO for rows of norm 1e-12 or less, without a direction; NaN stays."""
    return tl.where(squares <= 1e-24, OF_ZERO, 1 / tl.sqrt_rn(largest(squares, 1e-24)))


@triton.jit
def rounded_to_tf32(x):
    """float32 rounded to the nearest number of tf32 (10 bits of mantissa); NaN, all ones on a GPU, stays NaN."""
    nearest = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return tl.where(x == x, nearest, x)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b of float32 tiles: for "tf32" rounded first, since the tensor cores cut off, which biases sums."""
    if PRECISION == "tf32":
        return tl.dot(rounded_to_tf32(a), rounded_to_tf32(b), acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, SPLIT: tl.constexpr):
    """acc + a @ b for float32 tiles.

    "half": the features came in half precision, which tf32 holds exactly; the float32 operand named by SPLIT ("a",
    "b", "both" or "none") is taken as the sum of two tf32 numbers, so that nothing is rounded to half precision.
    """
    if PRECISION == "half":
        if SPLIT == "a":
            high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            acc = tl.dot(high, b, acc, input_precision="tf32")
            return tl.dot(a - high, b, acc, input_precision="tf32")
        elif SPLIT == "b":
            high = (b.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            acc = tl.dot(a, high, acc, input_precision="tf32")
            return tl.dot(a, b - high, acc, input_precision="tf32")
        elif SPLIT == "both":
            return tl.dot(a, b, acc, input_precision="tf32x3")
        else:
            return tl.dot(a, b, acc, input_precision="tf32")
    else:
        return dot(a, b, acc, PRECISION)


@triton.jit
def dot_of_signs(a, b, acc, PRECISION: tl.constexpr, SPLIT: tl.constexpr):
    """`dot` where the operand that SPLIT ("a" or "b") does not name is of signs, which need no second tf32 number."""
    if PRECISION == "tf32x3":
        return multiply(a, b, acc, "half", SPLIT)
    else:
        return dot(a, b, acc, PRECISION)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def load_tile(
    pointer, first, limit, columns, width, ROWS: tl.constexpr, STRIDE: tl.constexpr,
    CLAMP: tl.constexpr = float("inf"),
):  # fmt: skip
    """float32 tile, rows first .. first + ROWS (first an int64 scalar) of a contiguous matrix of STRIDE columns.

    0 outside rows < limit and columns < width; clamped to +-CLAMP.
    """
    rows = tl.arange(0, ROWS)  # within the tile: 32-bit arithmetic
    mask = (rows < (limit - first).to(tl.int32))[:, None] & (columns < width)[None, :]
    tile = tl.load(pointer + first * STRIDE + (rows[:, None] * STRIDE + columns[None, :]), mask=mask, other=0.0)
    return clamped(tile, CLAMP)
