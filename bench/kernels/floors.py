"""The two numbers of a computation: the fewest bytes it must move and the operations it must do.

Time over the larger of (bytes over the measured copy rate, operations over the measured matrix rate) is the gap.
Bytes count every input and output once; operations count a multiply-add as two.
"""

from __future__ import annotations

WITH_BANK = ("dsh", "dhn", "dbdh", "mdsh_pairs")
IN_BATCH = ("lcdsh", "dch")
AT_CENTERS = ("mdsh", "shcir", "mdsh_pairs")

# What stands between a kernel and its floor, as far as reading it tells; its measured share goes beside it.
GAPS = {
    "projection": "three tf32 products, W cut into parts in every program; small batches: latency",
    "encode": "as projection; the outputs stay in registers",
    "csq": "special functions once an element, a dozen operations a length; taken by the programs that come last",
    "dpn": "reads one centre an element and length from L2",
    "dsh": "inner products again for every length (632 multiply-adds a pair, the floor has 376); norms by shuffles",
    "dhn": "inner products again for every length; an exponential and a division a pair and length",
    "dbdh": "as dhn, and the clamps",
    "dtsh": "an exponential, a polynomial and a division a triplet; the workspace of slopes is written and read",
    "lcdsh": "as dhn, with a second product, of the signs; small batches fill few multiprocessors",
    "dch": "as dhn, with two logarithms and norms; small batches fill few multiprocessors",
    "mdsh": "three passes over the classes, with the logits formed again; small batches fill few multiprocessors",
    "shcir": "as mdsh",
    "mdsh_pairs": "mdsh, then the pairs with the bank: inner products again for every length, norms by shuffles",
    "distillation": "each Gram tile three times, and for both of its lengths; small batches fill few multiprocessors",
    "weights": "six bf16 products (bf16 features: three); slices written and read; two or three launches",
    "backward": "six bf16 products; dU and W come from L2 and are cut into parts for every tile",
    "bank_store": "one small launch",
}


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


def loss(name: str, n: int, lengths, bank: int = 0, classes: int = 100):
    """(bytes, operations) of a loss and its gradients: u in, deltas out, the bank once.

    Nesting makes the pair products cumulative: all lengths together cost one product over the longest.
    """
    longest, total = lengths[-1], sum(lengths)
    moved, operations = 4 * n * (longest + total), 0
    if name in WITH_BANK:
        moved += bank * longest * 4
        operations += 2 * n * bank * (longest + total)
    if name in IN_BATCH:
        operations += 2 * n * n * (longest + total)
    if name in AT_CENTERS:
        moved += 4 * classes * total
        operations += 4 * n * classes * total
    if name == "dtsh":
        positives = max(1.0, n / classes)  # of an anchor, with classes of equal size
        operations += 2 * n * n * (longest + total) + 4 * n * positives * (n - positives) * len(lengths)
    if name in ("csq", "dpn"):
        operations += 20 * n * total  # about, an element and length
    return moved, operations


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


def step(name: str, n: int, d: int, lengths, *, element: int = 4, bank: int = 0, classes: int = 100, distill=True):
    """(bytes, operations) of a head step: forward, losses, dots, all gradients.

    `element`: bytes of a feature. The features are read once and their gradient is written once, W and dW likewise;
    what passes between the parts of the step is not counted.
    """
    longest, total = lengths[-1], sum(lengths)
    moved = 2 * n * d * element + 2 * longest * d * 4 + (bank * longest * 4 if name in WITH_BANK else 0)
    operations = 3 * 2 * n * d * longest  # U, dF, dW
    if _uses_gram(n, d, lengths):
        operations += 2 * n * n * (d + total)
    else:  # dW comes from the lengths' gradients
        operations += 2 * n * d * (total - longest)
    operations += loss(name, n, lengths, bank, classes)[1]
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
    for name in GAPS:
        if name in ("csq", "dpn", "dtsh", *IN_BATCH, *WITH_BANK, *AT_CENTERS):
            yield name, loss(name, n, lengths, bank, classes)
    yield "distillation", distillation(n, lengths)
    yield "weights", weights(n, d, lengths, gram=gram)
    yield "backward", backward(n, d, lengths[-1])
    yield "bank_store", bank_store(n, lengths[-1])


def main() -> None:
    """Print the two numbers of every kernel as a Markdown table."""
    lengths, bank, classes = (8, 16, 32, 64, 128), 13_000, 100
    sizes = ((64, 2048), (4096, 768), (32768, 2048))
    tables = [dict(_rows(n, d, lengths, bank, classes)) for n, d in sizes]
    print("| kernel | " + " | ".join(f"{n} x {d}: MB, GFLOP" for n, d in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name in tables[0]:
        cells = (f"{table[name][0] / 1e6:,.3g}, {table[name][1] / 1e9:,.3g}" for table in tables)
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
