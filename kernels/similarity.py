"""Which rows are similar: class ids compared, or multi-hot rows packed into 32-bit words that share a bit.

Ids are compared and nothing else: no address is made of one, so that one out of range is a class of its own (beside
multi-hot rows: of none). Pairs and triplets look no further on a CUDA device; what reads or writes by id asserts the
range.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles

PACK = tiles.Tiles(rows=32)
COUNT = tiles.Tiles(rows=64, columns=64)


class Shape(NamedTuple):
    """What is fixed when the kernel that counts is compiled."""

    tiles: tiles.Tiles
    multi: bool
    masked: bool


@triton.jit
def similar_tile(left, right, rows, columns, num_rows, num_columns, words, MULTI: tl.constexpr):
    """S of a tile (rows, columns), false outside: class ids (int64), or with MULTI `words` words of a packed row."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    if not MULTI:
        a = tl.load(left + rows, mask=rows < num_rows, other=0)
        b = tl.load(right + columns, mask=columns < num_columns, other=0)
        shared = (a[:, None] == b[None, :]).to(tl.int32)
    else:
        shared = inside.to(tl.int32) * 0
        for w in range(words):
            a = tl.load(left + rows * words + w, mask=rows < num_rows, other=0)
            b = tl.load(right + columns * words + w, mask=columns < num_columns, other=0)
            shared = shared | (a[:, None] & b[None, :]).to(tl.int32)
    return (shared != 0) & inside


@triton.jit
def _pack_rows(labels, packed, tile, num_rows, num_classes, words, IDS: tl.constexpr, ROWS: tl.constexpr):
    rows = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    bits = tl.arange(0, 32)
    for w in range(words):
        classes = 32 * w + bits
        if IDS:
            ids = tl.load(labels + rows, mask=rows < num_rows, other=-1)
            chosen = ids[:, None] == classes[None, :]
        else:
            mask = (rows[:, None] < num_rows) & (classes[None, :] < num_classes)
            hot = tl.load(labels + rows[:, None] * num_classes + classes[None, :], mask=mask, other=0)
            hot = hot.to(tl.float32)
            tl.device_assert((hot == 0) | (hot == 1), "labels: expected multi-hot rows of zeros and ones")
            chosen = hot != 0
        word = tl.sum(chosen.to(tl.int32) << bits[None, :], axis=1)
        tl.store(packed + rows * words + w, word, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_left", "num_right"])
def pack_kernel(
    left, right, packed_left, packed_right, num_left, num_right, num_classes, words,
    LEFT_IDS: tl.constexpr, RIGHT_IDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    left_tiles = tl.cdiv(num_left, ROWS)
    if tile < left_tiles:
        _pack_rows(left, packed_left, tile, num_left, num_classes, words, LEFT_IDS, ROWS)
    else:
        _pack_rows(right, packed_right, tile - left_tiles, num_right, num_classes, words, RIGHT_IDS, ROWS)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "tiles_per_part"])
def count_kernel(
    left, right, written, partial, num_rows, num_columns, tiles_per_part, words, SHAPE: tl.constexpr
):  # fmt: skip
    """partial[tile, part] (two int64): similar pairs, and all pairs that count, of a tile of rows and columns."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    tile = tl.program_id(0)
    part = tl.program_id(1)
    rows = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    similar_pairs = tl.zeros((ROWS,), tl.int32)
    pairs = tl.zeros((ROWS,), tl.int32)
    first = part * tiles_per_part * COLUMNS
    for start in range(first, min(first + tiles_per_part * COLUMNS, num_columns), COLUMNS):
        columns = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        if SHAPE.masked:
            inside = inside & (tl.load(written + columns, mask=columns < num_columns, other=0)[None, :] != 0)
        similar = similar_tile(left, right, rows, columns, num_rows, num_columns, words, SHAPE.multi)
        similar_pairs += tl.sum((similar & inside).to(tl.int32), axis=1)
        pairs += tl.sum(inside.to(tl.int32), axis=1)
    place = partial + 2 * (tile * tl.num_programs(1) + part)
    tl.store(place, tl.sum(similar_pairs.to(tl.int64)))
    tl.store(place + 1, tl.sum(pairs.to(tl.int64)))


def comparable(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Labels of two sets of rows in a form the kernels compare, and the words of a packed row (0: class ids).

    Ids (N,) or multi-hot rows (N, C) in, either side; ids where both are, else int32 words (N, ceil(C / 32)).
    """
    if left.ndim == 1 and right.ndim == 1:
        return left.contiguous(), right.contiguous(), 0
    num_classes = (left if left.ndim == 2 else right).shape[1]
    words = max(1, -(-num_classes // 32))
    same = left is right
    packed = left.new_empty((left.shape[0], words), dtype=torch.int32)
    other = packed if same else right.new_empty((right.shape[0], words), dtype=torch.int32)
    programs = PACK.row_tiles(left.shape[0]) + (0 if same else PACK.row_tiles(right.shape[0]))
    pack_kernel[(programs,)](
        tiles.as_bytes(left.contiguous()), tiles.as_bytes(right.contiguous()), packed, other, left.shape[0],
        right.shape[0], num_classes, words, LEFT_IDS=left.ndim == 1, RIGHT_IDS=right.ndim == 1, ROWS=PACK.rows,
        **PACK.options(spend=False), **tiles.launch_options(left.device.type),
    )  # fmt: skip
    return packed, other, words


def count_pairs(left: torch.Tensor, right: torch.Tensor, written: torch.Tensor | None, words: int) -> torch.Tensor:
    """(parts, 2) int64 whose sums are the numbers of similar pairs and of all pairs; labels as from `comparable`.

    written (M,) bool: the rows of `right` that count, or None for all.
    """
    n, m = left.shape[0], right.shape[0]
    row_tiles, column_tiles = COUNT.row_tiles(n), triton.cdiv(m, COUNT.columns)
    parts = tiles.splits(row_tiles, column_tiles, left.device)
    partial = left.new_empty((row_tiles * parts, 2), dtype=torch.int64)
    count_kernel[(row_tiles, parts)](
        left, right, left if written is None else written.view(torch.uint8), partial, n, m,
        triton.cdiv(column_tiles, parts), words, SHAPE=Shape(COUNT, words > 0, written is not None),
        **COUNT.options(),
    )  # fmt: skip
    return partial


def variants():
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    sizes = {"num_left": "i32", "num_right": "i32", "num_classes": "i32", "words": "i32"}
    counted = {"num_rows": "i32", "num_columns": "i32", "tiles_per_part": "i32", "words": "i32"}
    packed = {"packed_left": "*i32", "packed_right": "*i32"}
    return [
        (
            "pack",
            pack_kernel,
            {"left": "*i64", "right": "*u8", **packed, **sizes},
            {"LEFT_IDS": False, "RIGHT_IDS": False, "ROWS": PACK.rows},
            {**PACK.options(spend=False), **tiles.launch_options("cuda")},
        ),
        *(
            (
                f"count/{form}{'/bank' if masked else ''}",
                count_kernel,
                {**dict.fromkeys(("left", "right"), pointer), "written": "*u8", "partial": "*i64", **counted},
                {"SHAPE": Shape(COUNT, multi, masked)},
                COUNT.options(),
            )
            for form, pointer, multi in (("ids", "*i64", False), ("multi-hot", "*i32", True))
            for masked in (False, True)
        ),
    ]
