"""Every case of the table by the fused kernels, against the plain formulas in float64."""

import pytest
import torch
from losses_cases import (
    CASES,
    FORMS,
    Case,
    form_id,
    make_loss,
    naive_by_length,
    named,
    of_backend,
    reference_by_length,
)
from numeric import Expected
from test_label_options import (
    SOFT,
    WEIGHTS,
    check,
    not_ignored,
    of_classes,
    problem,
    repeated,
    soft_problem,
    soft_truth,
    with_ignored,
)

from nhl_fast.losses import build


@pytest.mark.parametrize(("case", "multi"), FORMS, ids=form_id)
def test_losses_equal_their_formulas(case, multi, device):
    if multi and case.options.get("max_cosine", 0) is None:
        pytest.skip("a row without a class is unlike itself, and without the cap its distance of 0 is all rounding")
    loss = make_loss(case, (4, 30), classes=4, multi=multi, num_train=20, unwritten=3, device=device).eval()
    scale = 1 if case.name == "csq" else 3  # its formula loses digits where tanh u is nearly 1
    u = scale * torch.randn(12, 30, device=device)
    problem = loss, u, case.labels(12, 4, multi, device)
    right = Expected(lambda: reference_by_length(*problem), truth=lambda: naive_by_length(*problem))
    right.check(of_backend(*problem, "triton"))


@pytest.mark.parametrize(
    ("case", "multi"), [(case, multi) for case, multi in FORMS if case in CASES and not case.options], ids=form_id
)
def test_ignored_rows_are_not_there(case, multi, device):
    loss, u, labels = problem(case, multi)
    labels = with_ignored(labels)
    loss.label_options(ignore_index=-1)
    truth = repeated(loss, u, labels, not_ignored)
    check(loss.to(device), u.to(device), labels.to(device), "triton", {k: x.to(device) for k, x in truth.items()})


@pytest.mark.parametrize("case", named("dtsh", "csq", "mdsh", bank=False), ids=str)
def test_a_class_of_weight_two_is_there_twice(case, device):
    loss, u, labels = problem(case, False)
    labels[0] = -1
    truth = repeated(loss, u, labels, of_classes)
    loss.label_options(ignore_index=-1, class_weights=WEIGHTS)
    check(loss.to(device), u.to(device), labels.to(device), "triton", {k: x.to(device) for k, x in truth.items()})


@pytest.mark.parametrize("margin", [2.0, 7.5])
def test_a_wide_angle_by_soft_labels(margin, device):
    loss, u, labels = soft_problem(Case("orthoarc", {"margin": margin}))
    truth = {k: x.to(device) for k, x in soft_truth(Case("orthoarc"), loss, u, labels).items()}
    check(loss.to(device), u.to(device), labels.to(device), "triton", truth)


@pytest.mark.parametrize("name", ["dtsh", "orthoarc", "dhn"])
def test_where_no_row_counts_there_is_no_loss(name, device):
    loss = build(name, num_classes=4, code_lengths=(4, 9), num_train=5).label_options(ignore_index=-1, soft=True)
    u = torch.randn(3, 9, device=device, requires_grad=True)
    values = loss.to(device)(u, torch.full((3,), -1, device=device), torch.arange(3), backend="triton")
    values.sum().backward()
    assert not values.any()
    assert not u.grad.any()


@pytest.mark.parametrize("case", SOFT, ids=str)
def test_soft_labels_are_mixtures(case, device):
    loss, u, labels = soft_problem(case)
    truth = {k: x.to(device) for k, x in soft_truth(case, loss, u, labels).items()}
    problem = loss.to(device), u.to(device), labels.to(device)
    check(*problem, "triton", truth)
