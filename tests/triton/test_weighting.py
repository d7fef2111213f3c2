"""Dots, closed-form weights, the combined gradient and the backward pass, against the reference in float64."""

import pytest
import torch
from launches import launches
from numeric import Expected

import nhl_fast.steps.fused.weighting as fused
from nhl_fast.core.prefixes import pad, weighted_sum
from nhl_fast.head.weighting import dominance_dots, dominance_weights
from nhl_fast.steps.fused.weighting import Report, dots_kernels

LENGTHS = [(1,), (5, 12), (5, 12, 48, 100), (8, 16, 32, 64, 128), (3, 1024), tuple(range(1, 17))]
SHAPES = [(1, 7), (3, 33), (33, 7), (40, 300), (70, 1000)]


def problem(n, d, lengths, device, dtype=torch.float32, conflict=True):
    """Deltas whose lengths pull against each other, so that the weights are not all 1."""
    torch.manual_seed(n + d)
    base = torch.randn(n, lengths[-1], device=device)
    signs = [1 if k % 2 == 0 or not conflict else -1 for k in range(len(lengths))]
    deltas = [s * base[:, :b] + 0.5 * torch.randn(n, b, device=device) for s, b in zip(signs, lengths)]
    x, w = torch.randn(n, d, device=device).to(dtype), torch.randn(lengths[-1], d, device=device)
    return torch.cat(deltas, 1) / n, x, w, torch.randn(lengths[-1], device=device)


def combined(deltas, x, w, b, lengths, fixed=None, distill=True, nan=False):
    m, n = len(lengths), x.shape[0]
    losses = torch.arange(3.0 * m, device=x.device).view(3, m)
    cascade = torch.ones(2, m, device=x.device) if distill else None
    gram = x.detach().float() @ x.detach().float().T
    if fixed is not None or not dots_kernels.uses_gram(n, x.shape[1], lengths):
        gram = x.new_empty(0, 0, dtype=torch.float32)
    u = torch.zeros(n, lengths[-1], device=x.device)
    return fused.combine(x, w, b, u, deltas, gram, losses, cascade, 0.25, fixed, list(lengths), nan)


def by_definition(padded, features, lengths):
    dots = dominance_dots(padded, features, lengths)
    return {"dots": dots, "weights": dominance_weights(dots)}


def test_fixed_weights_that_are_not_contiguous(device):
    deltas, x, w, b = problem(6, 20, (4, 8, 16), device)
    fixed = torch.tensor([0.5, 9.0, 2.0, 9.0, 1.0, 9.0], device=device)[::2]
    ours, expected = (combined(deltas, x, w, b, (4, 8, 16), f) for f in (fixed, fixed.contiguous()))
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_and_gradients(shape, lengths, device):
    deltas, x, w, b = problem(*shape, lengths, device)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    total, weights, dots, losses, distill, du, *_ = combined(deltas, *inputs, lengths)
    padded = pad(deltas.double(), lengths)
    right = Expected(lambda: by_definition(padded, x.detach().double(), lengths))
    true_weights = right.truth["weights"]
    if len(lengths) > 2 and shape[0] > 3:
        assert (true_weights.max() - true_weights.min()) > 0.05  # the case is not a trivial one
    right.check({"dots": dots, "weights": weights})
    torch.testing.assert_close(losses, torch.arange(3.0 * len(lengths), device=device).view(3, -1).sum(0))
    torch.testing.assert_close(distill, torch.full_like(distill, 2.0))
    torch.testing.assert_close(total, (weights * (losses + 0.25 * distill)).sum())
    if dots_kernels.uses_gram(*shape, lengths):
        assert du.shape[0] == 0  # the backward kernel forms it
    else:
        torch.testing.assert_close(du, weighted_sum(pad(deltas, lengths), weights), rtol=1e-4, atol=1e-6)

    def gradients():
        du = -2 * weighted_sum(padded, weights.double())
        return {"dF": du @ w.detach().double(), "dW": du.T @ x.detach().double(), "dc": du.sum(0)}

    Expected(gradients).check(dict(zip(("dF", "dW", "dc"), torch.autograd.grad(-2 * total, inputs))))


def concluded(gram, deltas, lengths):
    """(total, weights, dots) that the kernel makes of any Gram matrix, where every length's loss is 1."""
    m, device = len(lengths), gram.device
    outputs = tuple(torch.empty(s, device=device) for s in ((), (m,), (m, m), (m,), (m,)))
    dots_kernels.gram_dots(gram, deltas, lengths, Report(torch.ones(1, m, device=device), None, 0.0, outputs))
    return outputs[:3]


@pytest.mark.parametrize("m", [1, 2, 5, 16])
def test_closed_form_on_random_dots(m, device):
    """Deltas and a Gram matrix that make any dots: the weights are those of the reference, the guarantee holds."""
    lengths = list(range(1, m + 1))
    for seed in range(8):
        torch.manual_seed(seed)
        padded = torch.randn(m, 2 * m, m, device=device)
        deltas = torch.cat([padded[k, :, :b] for k, b in enumerate(lengths)], 1)
        padded = pad(deltas, lengths)
        x = torch.randn(2 * m, 40, device=device)
        total, weights, found = concluded(x @ x.T, deltas, lengths)
        dots = dominance_dots(padded.double(), x.double(), tuple(lengths)).float()
        torch.testing.assert_close(found, dots, rtol=1e-4, atol=1e-4 * dots.abs().max().item())
        torch.testing.assert_close(weights, dominance_weights(found), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(total, weights.sum())
        assert ((found * weights).sum(1) > -1e-4 * found.diagonal()).all()


def test_a_norm_that_rounding_took_below_zero_is_zero(device):
    deltas = torch.cat([torch.ones(3, 2), torch.ones(3, 5), -torch.ones(3, 9)], 1).to(device)
    _, weights, dots = concluded(-torch.eye(3, device=device), deltas, [2, 5, 9])
    assert (dots.diagonal() < 0).all()
    assert weights.tolist() == dominance_weights(dots).tolist() == [1.5, 0.0, 1.5]


def test_dots_that_are_not_numbers_end_in_every_weight(device):
    gram = torch.eye(3, device=device)
    gram[1, 2] = torch.nan
    _, weights, dots = concluded(gram, torch.ones(3, 16, device=device), [2, 5, 9])
    assert dominance_weights(dots).isnan().all()
    assert weights.isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_outputs_that_are_not_finite_make_the_gradient_nan(device):
    for n, d, fixed in ((20, 300, None), (20, 7, None), (20, 7, torch.ones(2, device=device))):
        deltas, x, w, b = problem(n, d, (5, 12), device)
        for bad in (False, True):
            u = torch.zeros(n, 12, device=device)
            u[3, 7] = torch.inf if bad else 1e30
            gram = x @ x.T if fixed is None and d == 300 else x.new_empty(0, 0)
            inputs = [t.detach().requires_grad_() for t in (x, w, b)]
            losses = torch.ones(1, 2, device=device)
            total = fused.combine(*inputs, u, deltas, gram, losses, None, 0.0, fixed, [5, 12], True)[0]
            df = torch.autograd.grad(total, inputs[0])[0]
            assert torch.isnan(df[3]).all() == bad
            assert torch.isfinite(df[4]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 7), (40, 300)], ids=str)
def test_half_precision(shape, dtype, device):
    lengths = (5, 12, 48)
    deltas, x, w, b = problem(*shape, lengths, device, dtype)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    total, weights, *_ = combined(deltas, *inputs, lengths)
    df, dw, _ = torch.autograd.grad(total, inputs)
    assert (df.dtype, dw.dtype) == (dtype, torch.float32)

    def gradients():
        du = weighted_sum(pad(deltas.double(), lengths), weights.double())
        return {"dF": du @ w.detach().double(), "dW": du.T @ x.detach().double()}

    Expected(gradients).check({"dF": df, "dW": dw})


def test_weights_in_half_precision_layers(device):
    deltas, x, w, b = problem(20, 40, (5, 12), device, torch.bfloat16)
    inputs = [t.bfloat16().requires_grad_() for t in (x, w, b)]
    grads = torch.autograd.grad(combined(deltas, *inputs, (5, 12))[0], inputs)
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3


@pytest.mark.parametrize("d", [7, 300])
def test_launches(d, device):
    lengths = (5, 12, 48)
    deltas, x, w, b = problem(20, d, lengths, device)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    gram = x.detach() @ x.detach().T if dots_kernels.uses_gram(20, d, lengths) else x.new_empty(0, 0)
    assert bool(gram.numel()) == (d == 300)
    u, losses = torch.zeros(20, 48, device=device), torch.ones(1, 3, device=device)
    kept = []

    def forward():
        kept.append(fused.combine(*inputs, u, deltas, gram, losses, None, 0.0, None, list(lengths), False)[0])

    several = ["transposed_product_kernel", "product_dots_kernel", "combine_kernel"]
    assert launches(forward) == (["gram_dots_kernel"] if d == 300 else several)
    one = torch.ones_like(kept[0])
    found = launches(lambda: kept[0].backward(one))
    # the gradients of the leaves are theirs to keep: AccumulateGrad takes them as they are, or copies
    assert [name for name in found if "kernel" in name] == ["backward_kernel"]
    assert len(found) == 1, found


def test_a_long_batch_is_taken_in_slices(device):
    lengths, n, d = (4, 12), 1500, 9
    deltas, x, w, b = problem(n, d, lengths, device)
    slices, sums = dots_kernels.transposed_product(deltas, x)
    assert slices.shape[0] > 1
    torch.testing.assert_close(slices.sum(0), deltas.T @ x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.sum(0), deltas.sum(0), rtol=1e-4, atol=1e-5)
    for fixed in (None, torch.tensor([0.5, 2.0], device=device)):
        inputs = [t.detach().requires_grad_() for t in (x, w, b)]
        total, weights, *_ = combined(deltas, *inputs, lengths, fixed)
        du = weighted_sum(pad(deltas, lengths), weights)
        df, dw, db = torch.autograd.grad(total, inputs)
        torch.testing.assert_close(df, du @ w, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dw, du.T @ x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(db, du.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 200), (30, 7)], ids=str)
def test_opcheck(shape, device):
    lengths = (5, 12)
    for fixed in (None, torch.tensor([0.5, 2.0], device=device)):
        deltas, x, w, b = problem(*shape, lengths, device)
        gram = x @ x.T if fixed is None and dots_kernels.uses_gram(*shape, lengths) else x.new_empty(0, 0)
        u, losses = torch.zeros(shape[0], 12, device=device), torch.ones(1, 2, device=device)
        arguments = (u, deltas, gram, losses, None, 0.5, fixed, list(lengths), False)
        inputs = [t.requires_grad_() for t in (x, w, b)]
        torch.library.opcheck(fused.combine, (*inputs, *arguments))
    deltas, x, w, b = problem(*shape, lengths, device)
    du, empty = torch.randn(shape[0], 12, device=device), x.new_empty(0)
    scale = torch.tensor(2.0, device=device)
    weights = torch.ones(2, device=device)
    for given, u in ((du, None), (du[:0], du)):
        arguments = (scale, given, deltas, weights, u, x, w, empty, empty, list(lengths), True, True)
        torch.library.opcheck(fused.head_backward, arguments)
    torch.library.opcheck(fused.weigh, (deltas, weights, list(lengths)))
    u = torch.randn(shape[0], 12, device=device, requires_grad=True)
    torch.library.opcheck(fused.with_gradient, (u, torch.ones(3, 2, device=device), deltas, list(lengths)))
