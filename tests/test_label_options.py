"""Ignored rows, class weights, soft labels: against the plain formulas of rows that are there twice, or not."""

import copy

import pytest
import torch
from losses_cases import CASES, form_id, make_loss, naive_by_length, of_backend
from native_cases import AVAILABLE
from numeric import Expected

from nhl_fast.losses import REGISTRY

LENGTHS, CLASSES = (4, 9), 4
SERVED = [case for case in CASES if case.name in REGISTRY]
HARD = [(case, multi) for case in SERVED for multi in (False, True) if not (multi and case.ids_only)]
BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(not AVAILABLE, reason="native library"))]
WEIGHTS = (2, 1, 0, 3)  # whole numbers: a row that counts twice is two rows


def problem(case, multi, n=11, dtype=torch.float32):
    loss = make_loss(case, LENGTHS, classes=CLASSES, multi=multi, num_train=17).to(dtype).eval()
    return loss, torch.randn(n, LENGTHS[-1], dtype=dtype), case.labels(n, CLASSES, multi)


def with_ignored(labels):
    """The third and the last row ignored."""
    labels = labels.long()
    labels[[2, -1]] = -1
    return labels


def counted(loss, times):
    """A loss whose bank holds every written row so many times as `times` of its labels says."""
    loss, bank = copy.deepcopy(loss), getattr(loss, "bank", None)
    if bank is None:
        return loss
    rows = torch.repeat_interleave(torch.arange(len(bank.u)), times(bank.labels) * bank.written)
    found = loss.bank
    found.num_train, found.u, found.labels = len(rows), bank.u[rows], bank.labels[rows]
    found.written = torch.ones(len(rows), dtype=torch.bool)
    return loss


def repeated(loss, u, labels, times):
    """The plain formulas' values and gradients where row i is there times(labels)[i] times."""
    rows = torch.repeat_interleave(torch.arange(len(u)), times(labels))
    names = naive_by_length(counted(loss, times), u[rows], labels[rows].clamp(min=0))
    return {
        name: x if name == "values" else torch.zeros(len(u), x.shape[1], dtype=x.dtype).index_add_(0, rows, x)
        for name, x in names.items()
    }


def of_classes(labels):
    """`WEIGHTS` of ids, 0 where ignored."""
    weights = torch.tensor(WEIGHTS)[labels.clamp(min=0)]
    return weights * (labels >= 0)


def not_ignored(labels):
    return ((labels if labels.ndim == 1 else labels.amin(1)) >= 0).long()


def check(case, loss, u, labels, backend, truth):
    """A loss in float32 is the truth but for float32's own errors (see `numeric`)."""

    right = Expected(lambda: in_double(loss, u, labels), truth=lambda: truth)
    return right.check(of_backend(loss, u, labels, backend))


def in_double(loss, u, labels):
    """Values and gradients of the reference in float64."""
    return of_backend(copy.deepcopy(loss).double(), u.double(), labels, "reference")


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "multi"), HARD, ids=form_id)
def test_ignored_rows_are_not_there(case, multi, backend):
    loss, u, labels = problem(case, multi)
    labels = with_ignored(labels)
    truth = repeated(loss, u, labels, not_ignored)
    found = check(case, loss.label_options(ignore_index=-1), u, labels, backend, truth)
    assert not any(found[f"gradient at {b} bits"][[2, -1]].any() for b in LENGTHS)


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_a_class_of_weight_two_is_there_twice(case, backend):
    loss, u, labels = problem(case, False)
    labels[0] = -1
    truth = repeated(loss, u, labels, of_classes)
    check(case, loss.label_options(ignore_index=-1, class_weights=WEIGHTS), u, labels, backend, truth)
