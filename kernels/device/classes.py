"""Labels of a tile of rows and classes, as the bodies with classes for columns read them."""

import triton
import triton.language as tl


@triton.jit
def present(labels, first_row, start, num_rows, num_classes, SHAPE: tl.constexpr):
    """y of a tile, 0 or 1; labels are int64 ids, or contiguous multi-hot rows."""
    rows = first_row + tl.arange(0, SHAPE.tiles.rows)
    classes = start + tl.arange(0, SHAPE.tiles.columns)
    if SHAPE.multi:
        inside = (rows[:, None] < num_rows) & (classes[None, :] < num_classes)
        y = tl.load(labels + rows[:, None] * num_classes + classes[None, :], mask=inside, other=0).to(tl.float32)
        if not SHAPE.soft:
            tl.device_assert((y == 0) | (y == 1), "labels: expected multi-hot rows of zeros and ones")
    else:
        ids = tl.load(labels + rows, mask=rows < num_rows, other=0)
        tl.device_assert((ids >= 0) & (ids < num_classes), "labels: expected class ids below the number of classes")
        y = tl.where(ids[:, None] == classes[None, :], 1.0, 0.0)
    return y
