"""The two numbers of a computation: the fewest bytes it must move and the operations it must do.

Time over the larger of (bytes over the measured copy rate, operations over the measured matrix rate) is the gap.
Bytes count every input and output once; operations count a multiply-add as two.
"""

from __future__ import annotations

from bench.common import arguments, losses
from bench.common.data import LENGTHS
from bench.common.record import markdown

# What stands between a kernel and its floor, as far as reading it tells; its measured share goes beside it.
GAPS = {
    "projection": "three tf32 products, W cut into parts in every program; small batches: latency",
    "encode": "as projection; the outputs stay in registers",
    "center": "special functions once an element, a dozen operations and a centre from L2 an element and length",
    "pairs with a bank": "inner products again for every length (632 multiply-adds a pair, the floor has 376); "
    "norms by shuffles, or an exponential and a division a pair and length",
    "pairs": "inner products again for every length, exponentials or logarithms a pair and length; small batches "
    "fill few multiprocessors",
    "triplets": "an exponential, a polynomial and a division a triplet; the workspace of slopes is written and read",
    "softmax": "three passes over the classes, with the logits formed again; small batches fill few multiprocessors",
    "classifier": "logits formed three times, where once would do; its own gradient in parts of the rows, which are "
    "added up",
    "proxies": "products again for every length, and for the proxies' own gradient; norms by shuffles",
    "distillation": "each Gram tile three times, and for both of its lengths; small batches fill few multiprocessors",
    "weights": "six bf16 products (bf16 features: three); slices written and read; two or three launches",
    "backward": "six bf16 products; dU and W come from L2 and are cut into parts for every tile",
    "bank_store": "one small launch",
}


def gap_of(terms) -> str:
    """What stands between the kernels of a loss and their floors. `terms`: see common/losses.py."""
    return "; then ".join(GAPS["pairs with a bank" if rows else body] for body, rows in terms)


def _uses_gram(n: int, d: int, lengths) -> bool:
    return n * (d + len(lengths) * lengths[-1]) <= d * sum(lengths)


def _sum(*parts):
    return tuple(map(sum, zip(*parts)))


def projection(n: int, d: int, longest: int, element: int = 4, gram: bool = False):
    """(bytes, operations) of U = F W^T + c, with F F^T if `gram`."""
    moved = n * d * element + longest * d * 4 + n * longest * 4 + (n * n * 4 if gram else 0)
    return moved, 2 * n * d * (longest + (n if gram else 0))


def encode(n: int, d: int, longest: int, element: int = 4):
    """(bytes, operations) of the packed signs of F W^T + c."""
    return n * d * element + longest * d * 4 + n * longest / 8, 2 * n * d * longest


def _center(n: int, lengths, rows: int, classes: int):
    return 0, 20 * n * sum(lengths)  # about, an element and length


def _softmax(n: int, lengths, rows: int, classes: int):
    return 4 * classes * sum(lengths), 4 * n * classes * sum(lengths)


def _classifier(n: int, lengths, rows: int, classes: int):
    """Logits, and gradients of codes and of the classifier, which is read and whose gradient is written."""
    return 8 * classes * sum(lengths), 6 * n * classes * sum(lengths)


def _proxies(n: int, lengths, rows: int, classes: int):
    """Of rows of one class: products, and gradients of codes and of the proxies, which are read and written."""
    return 8 * classes * lengths[-1], 2 * n * classes * (lengths[-1] + 2 * sum(lengths))


def _pairs(n: int, lengths, rows: int, classes: int):
    """With `rows` of a bank, or (0) within the batch. Nesting makes the products cumulative: all lengths together
    cost one product over the longest."""
    return 4 * rows * lengths[-1], 2 * n * (rows or n) * (lengths[-1] + sum(lengths))


def _triplets(n: int, lengths, rows: int, classes: int):
    positives = max(1.0, n / classes)  # of an anchor, with classes of equal size
    return 0, _pairs(n, lengths, 0, classes)[1] + 4 * n * positives * (n - positives) * len(lengths)


# (bytes beside the outputs and their gradients, operations) of a term of a loss.
BODIES = {
    "center": _center, "softmax": _softmax, "classifier": _classifier, "proxies": _proxies, "pairs": _pairs,
    "triplets": _triplets,
}  # fmt: skip


def loss(terms, n: int, lengths, classes: int = 100):
    """(bytes, operations) of a loss and its gradients: u in, deltas out, the bank and the centres once.

    Args:
        terms: (body, rows of the bank) of each term; see `bench.common.losses.terms`.
    """
    found = (BODIES[body](n, lengths, rows, classes) for body, rows in terms)
    return _sum((4 * n * (lengths[-1] + sum(lengths)), 0), *found)


def distillation(n: int, lengths):
    """(bytes, operations) of the self-distillation: u in, deltas out; the Gram matrices of all lengths together."""
    longest, total = lengths[-1], sum(lengths)
    return 4 * n * (longest + total), 2 * n * n * longest + 2 * n * n * (total - longest)


def combine(n: int, lengths):
    """(bytes, operations) of dU = sum a_k pad(delta_k)."""
    return 4 * n * (lengths[-1] + sum(lengths)), 2 * n * sum(lengths)


def transposed_product(n: int, d: int, columns: int, element: int = 4):
    """(bytes, operations) of a^T F."""
    return n * d * element + 4 * n * columns + 4 * columns * d, 2 * n * d * columns


def weights(n: int, d: int, lengths, element: int = 4, gram: bool = False):
    """(bytes, operations) of the dots, the weights and dU; with `gram` from the Gram matrix."""
    total = sum(lengths)
    dots = (4 * n * n, 2 * n * n * total) if gram else transposed_product(n, d, total, element)
    return _sum(dots, combine(n, lengths))


def backward(n: int, d: int, longest: int, element: int = 4):
    """(bytes, operations) of dF = dU W and dW = dU^T F."""
    return 2 * n * d * element + 4 * n * longest + 8 * longest * d, 4 * n * d * longest


def bank_store(n: int, longest: int):
    """(bytes, operations) of writing a batch into the bank."""
    return 8 * n * longest + 25 * n, 0


def step(terms, n: int, d: int, lengths, *, element: int = 4, classes: int = 100, distill=True):
    """(bytes, operations) of a head step: forward, losses, dots, all gradients.

    `terms`: as in `loss`; `element`: bytes of a feature. The features are read once and their gradient is written
    once, W and dW likewise; what passes between the parts of the step is not counted.
    """
    longest, total = lengths[-1], sum(lengths)
    moved = 2 * n * d * element + 2 * longest * d * 4 + sum(rows for _, rows in terms) * longest * 4
    operations = 3 * 2 * n * d * longest  # U, dF, dW
    if _uses_gram(n, d, lengths):
        operations += 2 * n * n * (d + total)
    else:  # dW comes from the lengths' gradients
        operations += 2 * n * d * (total - longest)
    operations += loss(terms, n, lengths, classes)[1]
    if distill:
        operations += distillation(n, lengths)[1]
    return moved, operations


def search(queries: int, n: int, bits: int, k: int):
    """(bytes, 32-bit population counts) of a top-k search: codes in, (distance, id) pairs of 12 bytes out."""
    return -(-bits // 8) * (n + queries) + 12 * queries * k, queries * n * -(-bits // 32)


def evaluation(queries: int, n: int, lengths, label_bytes: int = 8):
    """(bytes, 32-bit population counts) of all lengths' distances in one pass over codes and labels.

    A word is counted once, and once more for every shorter length that ends inside a word.
    """
    longest = lengths[-1]
    counts = -(-longest // 32) + sum(b % 32 != 0 for b in lengths[:-1])
    return (-(-longest // 8) + label_bytes) * (n + queries), queries * n * counts


def _rows(n: int, d: int, lengths, bank: int, classes: int):
    gram = _uses_gram(n, d, lengths)
    yield "projection", projection(n, d, lengths[-1], gram=gram)
    yield "encode", encode(n, d, lengths[-1])
    for name in losses.CASES:
        yield name, loss(losses.terms(losses.make(name, classes, lengths, bank)), n, lengths, classes)
    yield "distillation", distillation(n, lengths)
    yield "weights", weights(n, d, lengths, gram=gram)
    yield "backward", backward(n, d, lengths[-1])
    yield "bank_store", bank_store(n, lengths[-1])


def table() -> str:
    """The two numbers of every kernel as a Markdown table."""
    bank, classes, sizes = 13_000, 100, ((64, 2048), (4096, 768), (32768, 2048))
    tables = [dict(_rows(n, d, LENGTHS, bank, classes)) for n, d in sizes]
    head = ["kernel", *(f"{n} x {d}: MB, GFLOP" for n, d in sizes)]
    rows = [
        [name, *(f"{found[name][0] / 1e6:,.3g}, {found[name][1] / 1e9:,.3g}" for found in tables)]
        for name in tables[0]
    ]
    return markdown(head, rows)


def main() -> None:
    arguments.parser("bench.kernels.floors", __doc__).parse_args()
    print(table())


if __name__ == "__main__":
    main()
