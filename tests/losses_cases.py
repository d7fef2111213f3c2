"""The losses' cases: one table, read by the tests of the reference, of the C++ step and of the Triton step.

A new loss is a row here, or one for each of its options. With them go the truth, `nhl_fast.losses.naive` in float64,
and the golden arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, split
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import Contrastive, Neighbors, NestedLoss, build, options_of

LENGTHS = (8, 16, 32, 64, 128)


class Case(NamedTuple):
    """A loss and its options.

    Attributes:
        bank: whether it keeps a bank of the training items.
        ids_only: whether its rows have one class each.
    """

    name: str
    options: Mapping = MappingProxyType({})
    bank: bool = False
    ids_only: bool = False

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items()), *["pairs"] * self.pairs])

    @property
    def pairs(self) -> bool:
        """MDSH with its second term."""
        return self.name == "mdsh" and self.bank

    def labels(self, n, classes, multi=False, device="cpu"):
        """What the loss compares with: ids or multi-hot rows, or vectors."""
        if self.name == "neighbors":
            return torch.randn(n, 6, device=device)
        labels = draw_labels(n, classes, multi, device)
        if self.name == "hyp2" and multi and n > 1 and classes > 3:  # rows of several classes that share none
            labels[:2] = False
            labels[0, :2] = labels[1, 2:4] = True
        return labels


def with_bank(name, **options) -> Case:
    return Case(name, options, bank=True)


CASES = [
    Case("csq"),
    Case("csq", {"centers": "nested"}),
    Case("csq", {"quantization": 0.7}),
    Case("dpn"),
    Case("dpn", {"margin": 0.3, "centers": "nested"}),
    Case("dpn", {"ternary": True}),
    Case("dpn", {"ternary": True, "margin": 0.3}),
    with_bank("dsh"),
    with_bank("dsh", alpha=0.0, margin=0.5),
    with_bank("dsh", balance=True),
    with_bank("dhn"),
    with_bank("dhn", alpha=2.0),
    with_bank("dhn", reference_bits=32),
    with_bank("dhn", balance=True),
    with_bank("dhn", balance=True, reference_bits=128),
    with_bank("dbdh"),
    with_bank("dbdh", clamp=False, alpha=1.0),
    with_bank("dbdh", balance=True, clamp=False),
    with_bank("dbdh", balance=True, reference_bits=16),
    Case("dtsh"),
    Case("dtsh", {"clamp": False, "margin": 1.0}),
    Case("dtsh", {"margin": 0.5, "quantization": 0.0}),
    Case("dtsh", {"reference_bits": 24, "clamp": False}),
    Case("lcdsh"),
    Case("lcdsh", {"clamp": False, "eta": 0.5}),
    Case("lcdsh", {"reference_bits": 256}),
    Case("dch"),
    Case("dch", {"max_cosine": None}),
    Case("dch", {"gamma": 3.0, "quantization": 0.0}),
    Case("mdsh"),
    Case("mdsh", {"reference_bits": 16, "quantization": 0.3}),
    with_bank("mdsh"),
    with_bank("mdsh", reference_bits=40),
    with_bank("mdsh", pair_from_epoch=3),
    with_bank("dpsh"),
    with_bank("dpsh", alpha=2.0, reference_bits=16),
    with_bank("dpsh", balance=True),
    Case("hashnet"),
    Case("hashnet", {"beta": 1.7, "reference_bits": 50}),
    Case("orthocos"),
    Case("orthocos", {"margin": 0.7, "scale": 5.0, "centers": "nested"}),
    Case("orthoarc"),
    Case("orthoarc", {"margin": 0.5, "scale": 12.0}),
    Case("idhn"),
    Case("idhn", {"sharpness": 2.0, "gamma": 0.7, "alpha": 0.0}),
    Case("greedyhash"),
    Case("greedyhash", {"alpha": 2.0, "seed": 3}),
    Case("hyp2"),
    Case("hyp2", {"beta": 2.0, "threshold": -0.5, "seed": 3}),
    Case("shcir", ids_only=True),
    Case("shcir", {"reference_bits": 40, "quantization": 0.3}, ids_only=True),
]
# Those that need no classes: their labels are vectors, or ids of what is seen in a row.
UNLABELLED = [
    Case("neighbors", ids_only=True),
    Case("neighbors", {"temperature": 0.3}, ids_only=True),
    Case("contrastive", ids_only=True),
    Case("contrastive", {"temperature": 1.0, "bottleneck": 0.2}, ids_only=True),
    Case("contrastive", {"bottleneck": 0.0}, ids_only=True),
]
ALL = [*CASES, *UNLABELLED]
# Each loss as published.
PLAIN = [case for case in CASES if not case.options and not case.pairs]
BANKS = [case for case in CASES if not case.options and case.bank]
# Each loss alone, with each form of labels that it takes.
FORMS = [(case, multi) for case in ALL for multi in (False, True) if not (multi and case.ids_only)]


def form_id(value) -> str:
    return {False: "ids", True: "multi-hot"}.get(value) if isinstance(value, bool) else str(value)


def named(*names: str, bank: bool | None = None) -> list[Case]:
    """The cases of these losses; `bank`: only those that keep one, or only the others."""
    return [case for case in CASES if case.name in names and bank in (None, case.bank)]


def draw_labels(n, classes, multi=False, device="cpu"):
    """Ids, or multi-hot rows, some of them without a class."""
    if multi:
        return torch.rand(n, classes, device=device) < 1.5 / classes
    return torch.randint(0, classes, (n,), device=device)


def make_loss(case, lengths, *, classes=5, multi=False, num_train=30, unwritten=None, scale=1.0, device="cpu"):
    """The case's loss; of its bank, if it has one, `unwritten` rows (a fifth) stay as they are."""
    if case in UNLABELLED:
        kind = {"neighbors": Neighbors, "contrastive": Contrastive}[case.name]
        return kind(lengths, **case.options).to(device)
    loss = build(
        case.name,
        num_classes=classes,
        code_lengths=lengths,
        num_train=num_train if case.bank else None,
        **case.options,
    ).to(device)
    written = num_train - (num_train // 5 if unwritten is None else unwritten)
    if case.bank and written:
        rows = torch.randperm(num_train, device=device)[:written]
        stored = scale * torch.randn(written, lengths[-1], device=device)
        loss.bank.update(rows, stored, draw_labels(written, classes, multi, device))
    return loss


# -------------------------------------------------------------------------------------------------- what is right


def by_length(values, deltas, lengths) -> dict[str, torch.Tensor]:
    """Values (m,) and deltas (N, sum of the lengths) as what there is to compare, by name."""
    return {"values": values, **{f"gradient at {b} bits": x for b, x in zip(lengths, split(deltas, lengths))}}


def reference(loss, u, labels, dtype=torch.float64):
    """(values, deltas) of the reference; labels as `prepare` gives them."""
    loss = copy.deepcopy(loss).to(dtype)
    values, deltas = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u.to(dtype), loss.code_lengths))
    return values.detach(), deltas


def naive(loss, u, labels):
    """(values, deltas) of the plain formulas in float64."""
    loss = copy.deepcopy(loss).double()
    v = expand(u.double(), loss.code_lengths)
    values, deltas = per_length_gradients(lambda v: NestedLoss.expanded(loss, v, labels), v)
    return values.detach(), deltas


def reference_by_length(loss, u, labels):
    return by_length(*reference(loss, u, labels), loss.code_lengths)


def naive_by_length(loss, u, labels):
    return by_length(*naive(loss, u, labels), loss.code_lengths)


def of_backend(loss, u, labels, backend, index=None):
    """Values and each length's own gradient, by name, from calls that name a backend."""
    x = u.clone().requires_grad_()
    values, lengths = loss(x, labels, index, backend=backend), loss.code_lengths
    gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
    assert not any(gradient[:, b:].any() for gradient, b in zip(gradients, lengths))
    return by_length(values.detach(), torch.cat([g[:, :b] for g, b in zip(gradients, lengths)], dim=1), lengths)


def learned_together(layer, loss, x, labels) -> list[float]:
    """The sum of the losses in 60 steps of a layer and of what its loss learns."""
    objective = NestedObjective(layer, loss)
    optimizer = torch.optim.Adam([*layer.parameters(), *loss.parameters()], lr=0.05)
    found = []
    for _ in range(60):
        optimizer.zero_grad()
        result = objective(x, labels)
        result.total.backward()
        optimizer.step()
        found.append(result.losses.sum().item())
    return found


# ------------------------------------------------------------------------------------------------ the golden arrays


def golden_loss(golden, case, dtype=torch.float32, device="cpu"):
    """The case's loss with the centres and the bank of tests/golden."""
    options = {}
    if "centers" in options_of(case.name):
        options["centers"] = [torch.from_numpy(golden[f"centers_{b}"]) for b in LENGTHS]
    loss = make_loss(
        case._replace(options={**options, **case.options}),
        LENGTHS,
        classes=golden["labels"].shape[1],
        num_train=len(golden["bank_u"]),
        unwritten=len(golden["bank_u"]),
    )
    if options:
        loss.tie_centers = [torch.from_numpy(golden[f"tie_center_{b}"]) for b in LENGTHS]
    if case.bank:
        bank = torch.from_numpy(golden["bank_u"]).to(dtype)
        loss.bank.update(torch.arange(len(bank)), bank, torch.from_numpy(golden["bank_labels"]))
    return loss.to(dtype).to(device)


def golden_gradient(golden, name, b, loss, u):
    """The golden gradient of the length b, but for one pair of DBDH.

    Its theta is 1e-8 and rounds to 0 in float32, where the golden gradient, taken through max(theta, 0) - |theta|,
    has slope 1 in place of sigmoid(0) = 1/2.
    """
    want = torch.from_numpy(golden[f"{name}_grad_{b}"]).to(u, copy=True)
    if (golden["name"], name, b) == ("multi12", "dbdh", 128):
        (row, column), u = (31, 56), u.detach()
        stored = loss.bank.u[column].clamp(-1, 1)
        assert (0.5 * u[row].double().clamp(-1, 1) @ stored.double()).abs() < 1e-7
        want[row] -= 0.5 * 0.5 * (u[row].abs() < 1) * stored / (u.shape[0] * loss.bank.num_train)
    return want
