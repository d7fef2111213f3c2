"""Tile sizes and the split of the work, chosen by plain functions of the sizes; what every launch needs."""

from functools import cache
from typing import NamedTuple

import torch

MAX_LENGTHS = 16
MAX_BITS = 1024
PRECISIONS = ("tf32x3", "tf32", "ieee")  # of float32 products, see `dot_precision`
# (features' dtype, precision) of what is compiled ahead of time.
MODES = (*(("fp32", mode) for mode in PRECISIONS), ("bf16", "half"), ("fp16", "half"))


class Tiles(NamedTuple):
    """A program's tile. All sides are powers of two; a kernel uses some of them.

    Attributes:
        rows, columns: of what it forms at a time.
        bits: of the codes, loaded at once.
        width: gradient columns that it keeps.
        depth: of what else its products go over, loaded at once.
    """

    rows: int
    columns: int = 0
    bits: int = 0
    width: int = 0
    warps: int = 4
    stages: int = 2
    depth: int = 0

    def options(self, spend: bool = True) -> dict:
        """Launch options; `spend`: all registers are used before any is spilled for the sake of occupancy.

        Multiply-adds are fused, whatever Triton's default.
        """
        chosen = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**chosen, "maxnreg": 255} if spend else chosen

    def row_tiles(self, num_rows: int) -> int:
        """Programs that cover the rows."""
        return -(-num_rows // self.rows)


class Job(NamedTuple):
    """Gradient columns of one program: of length number `k` those from `first`, padded to `width`.

    offset: the length's first column in the expanded form.
    """

    k: int
    first: int
    width: int
    offset: int


def power_of_two(n: int, minimum: int = 16) -> int:
    """The smallest power of two that is at least n and at least `minimum` (the smallest side of a product)."""
    return max(minimum, 1 << max(n - 1, 0).bit_length())


def offsets(lengths) -> list[int]:
    """First column of each length in the expanded form."""
    return [sum(lengths[:k]) for k in range(len(lengths))]


def check_lengths(lengths) -> tuple[int, ...]:
    """The code lengths as a tuple; ValueError, before any launch, for what the kernels are not made for."""
    lengths = tuple(lengths)
    if len(lengths) > MAX_LENGTHS or lengths[-1] > MAX_BITS:
        raise ValueError(
            f"code_lengths: the Triton kernels take at most {MAX_LENGTHS} lengths of at most {MAX_BITS} bits, "
            f"got {lengths} (backend='reference' has no limit)"
        )
    return lengths


@cache
def jobs(lengths: tuple[int, ...], width: int) -> tuple[Job, ...]:
    """Who computes which gradients.

    A length longer than `width` is cut into several jobs, which compute its pairs again; the one whose first column
    is 0 also gives its value. The longest come first: what starts last should be short.
    """
    return tuple(
        Job(k, first, power_of_two(min(b - first, width)), offset)
        for k, (b, offset) in reversed([*enumerate(zip(lengths, offsets(lengths)))])
        for first in range(0, b, width)
    )


@cache
def generation(device: torch.device) -> int:
    """Major compute capability of a CUDA device; that of Hopper on a CPU (the interpreter).

    Before it, the operands of a tensor core's products take registers, and some tiles are smaller.
    """
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; on a CPU (the interpreter) a small number, so that work is still split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def splits(row_tiles: int, column_tiles: int, device: torch.device) -> int:
    """Into how many parts the columns are split, so that every multiprocessor has about three programs.

    row_tiles: programs that share the columns (of all jobs together).
    """
    wanted = -(-3 * multiprocessors(device) // row_tiles)
    per_part = -(-column_tiles // max(1, min(wanted, column_tiles)))
    return -(-column_tiles // per_part)


def check_reference(reference: float) -> float:
    """The length, in bits, that inner products are scaled to (0: none), or ValueError."""
    if not 0 <= reference < float("inf"):
        raise ValueError(f"reference: expected a finite number of at least 0, got {reference}")
    return float(reference)


def dot_precision() -> str:
    """The precision of float32 products, from `torch.backends.cuda.matmul.fp32_precision`.

    "none", PyTorch's default: "tf32x3", three products on the tensor cores, as exact as float32's own to a rounding.
    "tf32": one product. "ieee", which `torch.set_float32_matmul_precision("highest")` also sets: the FMA units.
    """
    # Not `allow_tf32`: its getter raises once the newer switches are in use.
    chosen = torch.backends.cuda.matmul.fp32_precision
    return chosen if chosen in ("ieee", "tf32") else "tf32x3"


def feature_precision(features: torch.Tensor) -> str:
    """How products with the features are taken: "half", or as float32 products are (`dot_precision`)."""
    return "half" if features.dtype in (torch.float16, torch.bfloat16) else dot_precision()


def launch_options(device_type: str) -> dict:
    """Options of a launch whose kernel checks values: assertions on the device, but none on integer overflow."""
    return {"debug": True, "sanitize_overflow": False} if device_type == "cuda" else {}


def as_bytes(labels: torch.Tensor) -> torch.Tensor:
    """Bool labels as the bytes they are."""
    return labels.view(torch.uint8) if labels.dtype == torch.bool else labels
