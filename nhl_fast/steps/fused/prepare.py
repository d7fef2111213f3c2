"""Labels as the kernels take them, and the rows of a training step written into a bank."""

from __future__ import annotations

import torch

from nhl_fast.kernels import bank as kernels

from ...core.labels import check_form as label_form
from ...core.labels import to_multi_hot
from ...losses.bank import BankMixin, refuse_ranks
from ...losses.base import NestedLoss
from .operators import direct, operator


@operator("nhl_fast::store_rows", mutates_args=("bank_u", "bank_labels", "written"))
def store_rows(
    bank_u: torch.Tensor,
    bank_labels: torch.Tensor,
    written: torch.Tensor,
    index: torch.Tensor,
    u: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
) -> None:
    """Write u (N, L) and labels into the rows `index` (N,) of a bank; each row is written at most once."""
    with torch.cuda.device_of(u):
        kernels.launch(u.contiguous(), labels, index, bank_u, bank_labels, written, num_classes)
    for tensor in (bank_u, bank_labels, written):
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


@store_rows.register_fake
def _(bank_u, bank_labels, written, index, u, labels, num_classes):
    return None


def checked_by_kernels(loss: NestedLoss, forms) -> bool:
    """Whether the kernels check what the loss's own `prepare` checks (each check in PyTorch costs several launches).

    On a CUDA device what is looked up by id asserts its range; pairs and triplets only compare ids, where one out of
    range is a class of its own (`nhl_fast.kernels.similarity`).
    """
    kind = type(loss)
    if kind.prepare is BankMixin.prepare:
        usual = loss.bank is None or loss.bank.u.dtype == torch.float32
    else:
        usual = kind.prepare is NestedLoss.prepare
    if loss.counts_labels or not usual or kind.check_labels is not NestedLoss.check_labels:
        return False
    return not kind.single_label or any(form.one_hot for form in forms)


def reads_labels_alone(loss: NestedLoss, forms) -> bool:
    """Whether `prepare` looks at no outputs, so that it may come before them."""
    return type(loss).prepare is NestedLoss.prepare and checked_by_kernels(loss, forms)


def store(loss: NestedLoss, u: torch.Tensor, labels, index) -> torch.Tensor:
    """`loss.prepare` where `checked_by_kernels`: checked labels; a bank is written by one launch."""
    labels = check_form(loss, u, labels)
    if not loss.takes_rows():
        return labels
    bank = loss.bank
    refuse_ranks(bank)
    if index is None:
        loss.prepare(u, labels, index)  # raises, and says why
    # No assertion stops the interpreter, the only way to run the kernels on a CPU.
    bank.check_index(index, u.shape[0], values=u.device.type == "cpu")
    if labels.ndim == 2 and bank.labels.ndim == 1:
        bank.labels = to_multi_hot(bank.labels, bank.num_classes, torch.bool)
    direct(store_rows)(bank.u, bank.labels, bank.written, index, u, labels, loss.num_classes)
    return labels


def check_form(loss: NestedLoss, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Labels whose shape, dtype and device are right, as int64 ids or multi-hot rows; values are not looked at."""
    label_form(labels, u.shape[0], loss.num_classes)
    if labels.device != u.device:
        raise ValueError(f"labels: expected them on {u.device} like u, got {labels.device}")
    return labels.long() if labels.ndim == 1 else labels
