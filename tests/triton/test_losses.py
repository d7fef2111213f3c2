"""Every case of the table by the fused kernels, against the plain formulas in float64."""

import pytest
import torch
from losses_cases import FORMS, form_id, make_loss, naive_by_length, of_backend, reference_by_length
from numeric import Expected


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
