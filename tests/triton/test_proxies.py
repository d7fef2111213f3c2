"""The fused proxies (HyP2) against the reference: codes' gradients, and the proxies' own."""

import copy

import pytest
import torch
from against import check, compiles_in_one_graph, fused, gradients_are_taken_once, learns_from_values_alone
from launches import launches
from losses_cases import reference
from numeric import Expected, expected
from step_cases import by_formulas, make, run
from test_forms import Named
from test_losses_proxies import LENGTHS, of_proxies, problem

from nhl_fast.core.prefixes import segment_matrix
from nhl_fast.losses import HyP2
from nhl_fast.losses.form import Form
from nhl_fast.steps.fused.bodies import values_and_deltas
from nhl_fast.steps.fused.pairs import pairs


def given(device, multi, **options):
    loss, u, labels = problem(multi, **options)
    return loss.to(device), u.to(device), labels.to(device)


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize(("n", "classes"), [(3, 5), (33, 40)])
def test_equals_the_reference(n, classes, multi, device):
    loss, u, labels = given(device, multi, n=n, classes=classes, beta=2.0)
    check(loss, u, labels)
    double = copy.deepcopy(loss).double(), u.double(), labels
    right = Expected(lambda: of_proxies(*double, "reference"), truth=lambda: of_proxies(*double, None, plainly=True))
    right.check(of_proxies(loss, u, labels, "triton"))


@pytest.mark.parametrize("lengths", [(1,), (8, 16, 32, 64, 128), (7, 200)], ids=str)
def test_lengths(lengths, device):
    loss = HyP2(5, lengths, beta=2.0, threshold=-0.3).to(device)
    labels = torch.rand(6, 5, device=device) < 0.4
    # At 1 bit the cosine is +-1, and its gradient cancels to 0.
    check(loss, torch.randn(6, lengths[-1], device=device), labels)


@pytest.mark.parametrize("soft", [False, True])
def test_labels_that_count_by_weights(soft, device):
    """Of the proxies' gradients; of values and codes' gradients `test_losses.py`."""
    loss, u, labels = given(device, True)
    loss.label_options(ignore_index=-1, class_weights=[1.0, 2.0, 0.5, 1.0, 3.0], soft=soft)
    labels = labels * torch.rand(labels.shape, device=device) if soft else labels.long()
    labels[4] = -1
    right = Expected(lambda: of_proxies(copy.deepcopy(loss).double(), u.double(), labels, "reference"))
    right.check(of_proxies(loss, u, labels, "triton"))


@pytest.mark.parametrize("weighting", ["dominance", "uniform"])
@pytest.mark.parametrize("size", [(9, 5, (1, 7)), (40, 33, (8, 20, 64))], ids=str)
def test_a_whole_step_with_the_proxies_that_it_learns(size, weighting, device):
    """Values, weights, gradients of layer, features and proxies: the formulas', in float32."""
    layer, loss, features, labels, index, options = make(
        "hyp2", *size, multi=True, weighting=weighting, distill_weight=0.3
    )
    moved = layer.to(device), loss.to(device), features.to(device), labels.to(device), index.to(device), options
    truth = expected(run, moved, "reference", torch.float64, 1.0, truth=by_formulas)
    assert "dproxies" in truth.check(run(moved, "triton"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    loss, u, labels = given(device, True)
    found = {}
    for x in (u.to(dtype), u.to(dtype).float()):
        x = x.requires_grad_()
        values = loss(x, labels, backend="triton")
        found[x.dtype] = (values, *torch.autograd.grad(values.sum(), [loss.proxies, x]))
    for half, full in zip(found[dtype][:2], found[torch.float32][:2]):
        assert torch.equal(half, full)
    assert torch.equal(found[dtype][2], found[torch.float32][2].to(dtype))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_outputs_stay_finite(scale, device):
    loss, u, labels = given(device, True)
    values, deltas = fused(loss, scale * u, labels)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, reference(loss, scale * u, labels)[0].float(), rtol=1e-5, atol=1e-6)


def test_proxies_learn_from_the_values_alone(device):
    loss, u, labels = given(device, True)
    learns_from_values_alone(loss, u, labels)


def test_gradients_are_taken_once(device):
    loss, u, labels = given(device, True)
    gradients_are_taken_once(loss, loss.proxies, u, labels)


def test_opcheck_and_launches(device):
    """A pass over rows and proxies; one over the rows, where they may have several classes; one for the proxies."""
    u, others = torch.randn(9, 20, device=device), torch.randn(5, 20, device=device)
    ids = torch.zeros(9, dtype=torch.long, device=device)
    weights = [torch.rand(9, 5, device=device), *(torch.ones(n, device=device) for n in (9, 5, 2))]
    torch.library.opcheck(
        pairs, (u, others, ids, ids[:5], None, [3, 20], "margin", [0.1, 0.2], "none", 0.0, "no", "pairs", torch.inf,
                0.0, weights),
    )  # fmt: skip
    one = ["count_kernel", "pair_kernel", "finish_kernel"]
    for multi, learns, passes in ((False, False, one), (False, True, 2 * one), (True, False, ["pack_kernel", *one])):
        loss, u, labels = given(device, multi)
        loss.requires_grad_(learns)
        found = launches(lambda loss=loss, u=u, y=labels: values_and_deltas(loss.forms(), u, y, list(LENGTHS)))
        assert [name for name in found if "kernel" in name] == passes + multi * one[1:]
        assert not any(name in found for name in ("aten::item", "aten::_local_scalar_dense"))


def test_compiles_in_one_graph(device):
    loss, u, labels = given(device, True)
    compiles_in_one_graph(loss, u, labels)


def test_functions_and_constants_that_do_not_fit(device):
    table, segments = torch.zeros(4, LENGTHS[-1]), segment_matrix(LENGTHS)
    u, labels = torch.randn(3, LENGTHS[-1], device=device), torch.zeros(3, dtype=torch.long, device=device)

    def call(function, constants):
        form = Form("proxies", function, constants, proxies=table.to(device), segments=segments.to(device))
        loss = Named(form).to(device)
        loss.code_lengths = LENGTHS
        return values_and_deltas(loss.forms(), u, labels, list(LENGTHS))

    with pytest.raises(ValueError, match=r"function: expected one of .*margin.*, got 'hinge'"):
        call("hinge", (0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="constants: margin takes one for every length, got 2"):
        call("margin", (0.1, 0.2))
