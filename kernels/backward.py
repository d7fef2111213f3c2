"""The head's backward pass: dF = dU W, dW = dU^T F and dc = sum dU, in one launch, times the incoming gradient.

Floor: F and dF once, dU and W from L2; 4 N d L operations.
"""

import triton
import triton.language as tl

from .dots import sum_splits
from .projection import MODES, multiply, precision
from .weighting import combined_tile


@triton.jit
def gradient_tile(
    du, weights, u, rows, columns, N, L, T: tl.constexpr, LENGTHS: tl.constexpr, FORM: tl.constexpr,
    NAN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of dU; FORM: `du` holds the lengths' deltas (N, T), which the weights combine here."""
    if FORM:
        return combined_tile(weights, du, u, rows, columns, N, L, T, LENGTHS, NAN, ROWS, COLUMNS)
    else:
        mask = (rows < N)[:, None] & (columns < L)[None, :]
        return tl.load(du + rows[:, None] * L + columns[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["N", "splits", "first_weight"])
def backward_kernel(
    scale, du, weights, u, features, w, product, sums, df, dw, db,
    N, L, d, splits, x_row, x_column, w_row, w_column, first_weight, wide_tiles, T: tl.constexpr,
    LENGTHS: tl.constexpr, FORM: tl.constexpr, NAN: tl.constexpr,
    SCALED: tl.constexpr, READY: tl.constexpr, NEED_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dF = dU W in the first programs, dW = dU^T F and dc = sum dU in the rest, times the incoming 0-d gradient.

    READY: dW and dc are there, as slices to add up, and want the factor alone. FORM: see `gradient_tile`.
    """
    program = tl.program_id(0)
    wide = (program % wide_tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = 1.0
    if SCALED:
        factor = tl.load(scale).to(tl.float32)
    if program < first_weight:
        rows = (program // wide_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for first in range(0, L, BLOCK_K):
            ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
            x = gradient_tile(du, weights, u, rows, ks, N, L, T, LENGTHS, FORM, NAN, BLOCK_M, BLOCK_K)
            y = tl.load(
                w + ks[:, None] * w_row + wide[None, :] * w_column,
                mask=(ks < L)[:, None] & (wide < d)[None, :],
                other=0.0,
            ).to(tl.float32)
            acc = multiply(x, y, acc, PRECISION, "both")
        at = df + rows[:, None] * d + wide[None, :]
        tl.store(at, (acc * factor).to(df.dtype.element_ty), mask=(rows < N)[:, None] & (wide < d)[None, :])
    elif NEED_W:
        rest = program - first_weight
        rows = (rest // wide_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < L)[:, None] & (wide < d)[None, :]
        bias = tl.zeros((BLOCK_M,), tl.float32)
        if READY:
            acc = sum_splits(product, rows, wide, mask, splits, L, d)
            for split in range(splits):
                bias += tl.load(sums + split * L + rows, mask=rows < L, other=0.0)
        else:
            acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in range(0, N, BLOCK_K):
                ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
                x = gradient_tile(du, weights, u, ks, rows, N, L, T, LENGTHS, FORM, NAN, BLOCK_K, BLOCK_M)
                y = tl.load(
                    features + ks[:, None] * x_row + wide[None, :] * x_column,
                    mask=(ks < N)[:, None] & (wide < d)[None, :],
                    other=0.0,
                ).to(tl.float32)
                acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
                bias += tl.sum(x, 0)
        tl.store(dw + rows[:, None] * d + wide[None, :], (acc * factor).to(dw.dtype.element_ty), mask=mask)
        if rest % wide_tiles == 0:
            tl.store(db + rows, (bias * factor).to(db.dtype.element_ty), mask=rows < L)


def backward_block(num_rows: int, longest: int, mode: str) -> dict[str, int]:
    """Small batches: many small tiles, two or three a multiprocessor."""
    if mode == "ieee":
        return {"BLOCK_M": 64 if max(num_rows, longest) > 32 else 32, "BLOCK_D": 64, "BLOCK_K": 16}
    return {"BLOCK_M": 128 if num_rows > 1024 else 32, "BLOCK_D": 64, "BLOCK_K": 32}


def options(mode: str, form: bool) -> dict:
    """Launch options; five lengths' deltas in three stages would take more shared memory than some devices have."""
    return {"num_warps": 8 if mode == "ieee" else 4, "num_stages": 2 if form else 3, "maxnreg": 255}


def backward(
    scale, du, features, w, product=None, sums=None, *, df=None, dw=None, db=None, form=None, nan=None
) -> None:
    """Fill df (N, d) if given, and dw (L, d) with db (L,) if given, times the 0-d `scale` (None: 1).

    product (splits, L, d) and sums (splits, L): dW and dc, unscaled, in slices; computed here if None.
    form: (weights (m,), code lengths), where `du` holds the lengths' deltas (N, T); nan: outputs (N, L), which make
    dU NaN where they are not finite.
    """
    (n, d), longest, mode = features.shape, w.shape[0], precision(features)
    block = backward_block(n, longest, mode)
    rows = block["BLOCK_M"]
    wide_tiles = triton.cdiv(d, block["BLOCK_D"])
    first_weight = triton.cdiv(n, rows) * wide_tiles if df is not None else 0
    programs = first_weight + (triton.cdiv(longest, rows) * wide_tiles if dw is not None else 0)
    ready = product is not None
    weights, lengths = form if form is not None else (du, (longest,))
    tensors = (du if t is None else t for t in (product, sums, df, dw, db))
    backward_kernel[(programs,)](
        du if scale is None else scale, du, weights, du if nan is None else nan, features, w, *tensors,
        n, longest, d, product.shape[0] if ready else 1, *features.stride(), *w.stride(), first_weight, wide_tiles,
        T=sum(lengths), LENGTHS=tuple(lengths), FORM=form is not None, NAN=nan is not None,
        SCALED=scale is not None, READY=ready, NEED_W=dw is not None, PRECISION=mode, **block,
        **options(mode, form is not None),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    found = []
    for dtype, mode in MODES:
        types = dict.fromkeys(("scale", "du", "weights", "u", "w", "product", "sums", "dw", "db"), "*fp32")
        types |= {"features": f"*{dtype}", "df": f"*{dtype}", "first_weight": "i32", "wide_tiles": "i32:16"}
        types |= dict.fromkeys(("L", "d", "x_row", "w_row"), "i32:16") | {"splits": "i32", "N": "i32"}
        for form, ready, rows in ((True, False, 64), (False, False, 64), (False, True, 256), (False, True, 32768)):
            constants = {"SCALED": True, "READY": ready, "NEED_W": True, "PRECISION": mode, "FORM": form}
            constants |= {"NAN": form, "LENGTHS": lengths if form else (128,), "T": sum(lengths) if form else 128}
            constants |= {**backward_block(rows, 128, mode), "x_column": 1, "w_column": 1}
            name = f"{dtype}_{mode}{'_form' if form else '_ready' if ready else ''}_n{rows}"
            found.append((name, backward_kernel, types, constants, options(mode, form)))
    return found
