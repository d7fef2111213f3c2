"""Every case of the table by the fused kernels, against the plain formulas in float64."""

import pytest
import torch
from losses_cases import (
    CASES,
    FORMS,
    form_id,
    make_loss,
    naive_by_length,
    of_backend,
    reference_by_length,
)
from numeric import Expected
from test_label_options import SOFT, check, not_ignored, problem, repeated, soft_problem, soft_truth, with_ignored


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
    if case.name == "dtsh":
        with pytest.raises(RuntimeError, match="label_options: the kernel of triplets counts every row once"):
            loss(u.to(device), labels.to(device), backend="triton")
        return
    truth = repeated(loss, u, labels, not_ignored)
    check(loss.to(device), u.to(device), labels.to(device), "triton", {k: x.to(device) for k, x in truth.items()})


@pytest.mark.parametrize("case", [case for case in SOFT if case.name != "dtsh"], ids=str)
def test_soft_labels_are_mixtures(case, device):
    loss, u, labels = soft_problem(case)
    truth = {k: x.to(device) for k, x in soft_truth(case, loss, u, labels).items()}
    problem = loss.to(device), u.to(device), labels.to(device)
    if case.name == "orthoarc":
        with pytest.raises(
            RuntimeError, match="label_options: the kernel takes no margin of an angle by soft labels"
        ):
            loss(*problem[1:], backend="triton")
        return
    check(*problem, "triton", truth)
