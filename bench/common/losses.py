"""The losses as the benchmarks take them: by their names, and as NAME_pairs with a bank that is an option."""

from __future__ import annotations

import inspect

import torch

from nhl_fast import losses

NAMES = tuple(losses.REGISTRY)
WITH_BANK = "_pairs"


def _bank_is_an_option(name: str) -> bool:
    parameter = inspect.signature(losses.REGISTRY[name]).parameters.get("num_train")
    return parameter is not None and parameter.default is None


CASES = (*NAMES, *(name + WITH_BANK for name in NAMES if _bank_is_an_option(name)))


def make(case: str, num_classes: int, code_lengths, num_train: int, device="cpu") -> losses.NestedLoss:
    """The loss of a case (one of CASES) on `device`; its bank, if it has one, is full of random outputs.

    A loss whose bank is an option has one where the case says so alone.
    """
    name = case.removesuffix(WITH_BANK)
    size = None if name == case and _bank_is_an_option(name) else num_train
    loss = losses.build(name, num_classes=num_classes, code_lengths=code_lengths, num_train=size).to(device)
    if (bank := bank_of(loss)) is not None:
        labels = torch.randint(0, num_classes, (num_train,), device=device)
        u = torch.randn(num_train, loss.code_lengths[-1], device=device)
        bank.update(torch.arange(num_train, device=device), u, labels)
    return loss


def bank_of(loss):
    """The loss's bank, or None."""
    return getattr(loss, "bank", None)


def terms(loss) -> list[tuple[str, int]]:
    """(body, rows of the bank) of every term of a loss: what is computed of a batch, whatever function of it.

    Bodies are "center", "softmax", "classifier", "proxies", "triplets", "pairs" (0 rows: of the batch with itself).
    """
    return [(form.body, 0 if form.bank is None else form.bank.num_train) for form in loss.forms()]
