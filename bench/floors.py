"""The two numbers of a computation: the fewest bytes it must move and the operations it must do.

Time over the larger of (bytes over the measured copy rate, operations over the measured matrix rate) is the gap.
Bytes count every input and output once; operations count a multiply-add as two.
"""

from __future__ import annotations

PAIRS_WITH_BANK = ("dsh", "dhn", "dbdh")
PAIRS_IN_BATCH = ("lcdsh", "dch")


def step(name: str, n: int, d: int, lengths, *, element: int = 4, bank: int = 0, classes: int = 100, distill=True):
    """(bytes, operations) of a head step: forward, losses, dots, all gradients.

    `element`: bytes of a feature. The features are read once and their gradient is written once; W and dW likewise.
    Nesting makes the pair products cumulative: all lengths together cost one product over the longest.
    """
    longest, total, m = lengths[-1], sum(lengths), len(lengths)
    moved = 2 * n * d * element + 2 * longest * d * 4
    gram = n * (d + m * longest) <= d * total
    operations = 3 * 2 * n * d * longest  # U, dF, dW
    operations += 2 * n * n * (d + total) if gram else 2 * n * d * total - 2 * n * d * longest
    if distill:
        operations += 2 * n * n * longest + 2 * n * n * (total - longest)
    if name in PAIRS_WITH_BANK:
        moved += bank * longest * 4
        operations += 2 * n * bank * (longest + total)
    elif name in PAIRS_IN_BATCH:
        operations += 2 * n * n * (longest + total)
    elif name in ("mdsh", "shcir"):
        operations += 2 * 2 * n * classes * total
    elif name == "dtsh":
        operations += 2 * n * n * (longest + total) + 4 * n**3 * m  # an upper bound: all triplets, a few each
    return moved, operations


def projection(n: int, d: int, longest: int, element: int = 4, gram: bool = False):
    """(bytes, operations) of U = F W^T + c, with F F^T if `gram`."""
    moved = n * d * element + longest * d * 4 + n * longest * 4 + (n * n * 4 if gram else 0)
    return moved, 2 * n * d * (longest + (n if gram else 0))


def pointwise(n: int, lengths):
    """(bytes, operations) of a point-wise loss: u in, deltas out; about 20 operations an element and length."""
    return 4 * n * (lengths[-1] + sum(lengths)), 20 * n * sum(lengths)


def combine(n: int, lengths):
    """(bytes, operations) of dU = sum a_k pad(delta_k)."""
    return 4 * n * (lengths[-1] + sum(lengths)), 2 * n * sum(lengths)


def transposed_product(n: int, d: int, columns: int, element: int = 4):
    """(bytes, operations) of a^T F."""
    return n * d * element + 4 * n * columns + 4 * columns * d, 2 * n * d * columns


def backward(n: int, d: int, longest: int, element: int = 4):
    """(bytes, operations) of dF = dU W and dW = dU^T F."""
    return 2 * n * d * element + 4 * n * longest + 8 * longest * d, 4 * n * d * longest
