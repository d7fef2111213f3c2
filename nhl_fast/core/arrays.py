"""NumPy arrays as tensors that share their memory, and as files; memory maps."""

from __future__ import annotations

import mmap
import warnings
import zipfile
from collections.abc import Iterable

import numpy as np
import torch

from . import check


def as_tensor(value, name: str = "value"):
    """`value` as a tensor that shares its memory, where possible, where it is a NumPy array; anything else as it is.

    Raises:
        TypeError: an array that is masked, or whose dtype PyTorch doesn't know.
    """
    if not isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {check.describe(value)}")
    if value.dtype.kind not in "biufc" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
        raise TypeError(
            f"{name}: expected a tensor or an array of numbers that PyTorch knows (of at most 64 bits), "
            f"got {check.describe(value)}"
        )
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    # Other strides than PyTorch's: backwards (even along a dimension of one), or fields of records.
    if any(stride < 0 or stride % value.itemsize for stride in value.strides):
        value = value.copy()
    if value.flags.writeable:
        return torch.from_numpy(value)
    with warnings.catch_warnings():
        # Read-only arrays (memory maps) are fine here: codes and labels are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(value)


def check_output(output) -> str:
    """`output` if it says what results are: "tensor" or "numpy"."""
    return check.one_of(output, "output", ("tensor", "numpy"))


def as_output(results: tuple[torch.Tensor, ...], output: str) -> tuple:
    """Results as they are, or as arrays (that share the memory of CPU tensors)."""
    return results if output == "tensor" else tuple(result.cpu().numpy() for result in results)


def write_npz(handle, arrays: Iterable[tuple[str, np.dtype, tuple[int, ...], Iterable[np.ndarray]]]) -> None:
    """An .npz file as `numpy.savez` writes it, of (name, dtype, shape, parts in C order), a part at a time."""
    with zipfile.ZipFile(handle, "w") as archive:
        for name, dtype, shape, parts in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for part in parts:
                    out.write(part.astype(dtype, copy=False).tobytes())


def read_ahead(array) -> None:
    """Start to read the pages of a `numpy.memmap`, so that the disk works while the processor does.

    Nothing for what lies in memory, or where there is no madvise.
    """
    pages = getattr(array, "_mmap", None)
    if not isinstance(array, np.memmap) or not hasattr(pages, "madvise") or array.size == 0:
        return
    if any(stride < 0 for stride in array.strides):
        return
    start = np.frombuffer(pages, np.uint8).ctypes.data
    first = array.ctypes.data - start
    length = array.itemsize + sum((size - 1) * stride for size, stride in zip(array.shape, array.strides))
    begin = first // mmap.PAGESIZE * mmap.PAGESIZE
    pages.madvise(mmap.MADV_WILLNEED, begin, first - begin + length)
