"""Writes a batch into the bank: outputs, labels and the mark of each row, in one launch."""

import triton
import triton.language as tl

from . import tiles

CONFIG = tiles.Tiles(rows=16, columns=64)


@triton.jit(do_not_specialize=["num_rows"])
def store_kernel(
    u, labels, index, bank_u, bank_labels, written, num_rows, longest, num_classes, num_train,
    IDS: tl.constexpr, BANK_IDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_rows
    places = tl.load(index + rows, mask=inside, other=0).to(tl.int64)
    known = (places >= 0) & (places < num_train)
    tl.device_assert(known, "index: expected rows of the bank, got one out of range")
    inside = inside & known
    for start in range(0, longest, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = inside[:, None] & (columns < longest)[None, :]
        x = tl.load(u + rows[:, None] * longest + columns[None, :], mask=mask, other=0.0)
        tl.store(bank_u + places[:, None] * longest + columns[None, :], x, mask=mask)
    tl.store(written + places, tl.full((ROWS,), 1, tl.uint8), mask=inside)
    if BANK_IDS:
        ids = tl.load(labels + rows, mask=inside, other=0)
        tl.device_assert((ids >= 0) & (ids < num_classes), "labels: expected class ids below the number of classes")
        tl.store(bank_labels + places, ids, mask=inside)
    else:
        for start in range(0, num_classes, COLUMNS):
            classes = start + tl.arange(0, COLUMNS)
            mask = inside[:, None] & (classes < num_classes)[None, :]
            if IDS:
                ids = tl.load(labels + rows, mask=inside, other=0)
                known = (ids >= 0) & (ids < num_classes)
                tl.device_assert(known, "labels: expected class ids below the number of classes")
                hot = ids[:, None] == classes[None, :]
            else:
                y = tl.load(labels + rows[:, None] * num_classes + classes[None, :], mask=mask, other=0).to(
                    tl.float32
                )
                tl.device_assert((y == 0) | (y == 1), "labels: expected multi-hot rows of zeros and ones")
                hot = y != 0
            tl.store(bank_labels + places[:, None] * num_classes + classes[None, :], hot.to(tl.uint8), mask=mask)


def launch(u, labels, index, bank_u, bank_labels, written, num_classes: int) -> None:
    """Write u (N, L), labels and the mark into the rows `index` (N,) of the bank, in place.

    labels and bank_labels are ids, or multi-hot rows; an id becomes a one-hot row where the bank's are multi-hot.
    """
    store_kernel[(CONFIG.row_tiles(u.shape[0]),)](
        u, tiles.as_bytes(labels.contiguous()), index.contiguous(), bank_u, tiles.as_bytes(bank_labels),
        tiles.as_bytes(written), u.shape[0], u.shape[1], num_classes, bank_u.shape[0], IDS=labels.ndim == 1,
        BANK_IDS=bank_labels.ndim == 1, ROWS=CONFIG.rows, COLUMNS=CONFIG.columns, **CONFIG.options(spend=False),
        **tiles.launch_options(u.device.type),
    )  # fmt: skip


def variants():
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    made = []
    forms = (("ids", "*i64", "*i64"), ("multi-hot", "*fp32", "*u8"), ("ids-in-multi-hot", "*i64", "*u8"))
    for form, labels, bank_labels in forms:
        signature = {
            "u": "*fp32", "labels": labels, "index": "*i64", "bank_u": "*fp32", "bank_labels": bank_labels,
            "written": "*u8", "num_rows": "i32", "longest": "i32:16", "num_classes": "i32", "num_train": "i32",
        }  # fmt: skip
        constants = {
            "IDS": form != "multi-hot",
            "BANK_IDS": form == "ids",
            "ROWS": CONFIG.rows,
            "COLUMNS": CONFIG.columns,
        }
        options = {**CONFIG.options(spend=False), **tiles.launch_options("cuda")}
        made.append((f"store/{form}", store_kernel, signature, constants, options))
    return made
