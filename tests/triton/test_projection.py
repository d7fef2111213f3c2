"""The projection's operators: outputs, Gram matrix, packed codes, gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from launches import launches
from nhl_fast.kernels.tiles import feature_precision
from numeric import Expected

import nhl_fast.steps.fused.projection as fused
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.retrieval.codes import pack_codes
from nhl_fast.steps.fused.projection import kernels

SHAPES = [(1, 7, 1), (3, 33, 12), (33, 7, 100), (70, 300, 130), (5, 40, 1024), (64, 1030, 8)]


def tensors(n, d, longest, device, dtype=torch.float32):
    features = torch.randn(n, d, device=device).to(dtype)
    return features, torch.randn(longest, d, device=device), torch.randn(longest, device=device)


def check(u, matrix, x, w, b):
    """Outputs, and the features' Gram matrix where there is one, are float64's but for float32's own errors."""
    assert u.dtype == matrix.dtype == torch.float32
    x, w, b = x.double(), w.double(), b.double()
    if matrix.numel():
        Expected(lambda: {"u": F.linear(x, w, b), "gram": x @ x.T}).check({"u": u, "gram": matrix})
    else:
        Expected(lambda: {"u": F.linear(x, w, b)}).check({"u": u})


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gram(shape, gram, device):
    x, w, b = tensors(*shape, device)
    u, matrix = torch.ops.nhl_fast.project(x, w, b, gram)
    assert matrix.shape == ((shape[0],) * 2 if gram else (0, 0))
    check(u, matrix, x, w, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_half_precision(shape, dtype, device):
    """Accumulated and returned in float32."""
    x, w, b = tensors(*shape, device, dtype)
    check(*torch.ops.nhl_fast.project(x, w, b, True), x, w, b)


def test_split_product_is_taken_and_matches(device):
    x, w, b = tensors(64, 1030, 8, device)
    for d in (1030, 100):
        assert (kernels.plan(64, d, 8, True, feature_precision(x)).splits > 1) == (d == 1030)
        names = launches(lambda: torch.ops.nhl_fast.project(x[:, :d], w[:, :d], b, True))  # noqa: B023
        assert names == ["project_kernel"]


@pytest.mark.parametrize("n", [1, 16, 17, 64, 100, 1024, 1025, 40000])
@pytest.mark.parametrize("d", [1, 7, 128, 129, 2048, 5000])
def test_plan_covers_every_column_once(n, d):
    for gram in (False, True):
        for mode in ("ieee", "tf32", "tf32x3", "half"):
            plan = kernels.plan(n, d, 128, gram, mode)
            assert (plan.splits - 1) * plan.per_split < d <= plan.splits * plan.per_split
            assert plan.splits == 1 or plan.per_split % plan.tiles.depth == 0


@pytest.mark.parametrize("layout", ["transposed", "spread", "expanded"])
def test_layouts(layout, device):
    x, w, b = tensors(20, 40, 12, device)
    if layout == "transposed":
        x, w = torch.empty(40, 20, device=device).T.copy_(x), torch.empty(40, 12, device=device).T.copy_(w)
    elif layout == "spread":
        x = torch.empty(20, 80, device=device)[:, ::2].copy_(x)
    else:
        x = x[:1].expand(20, 40)
    u, gram = torch.ops.nhl_fast.project(x, w, b, True)
    torch.testing.assert_close(u, F.linear(x, w, b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gram, x @ x.T, rtol=1e-4, atol=1e-5)


def test_a_bias_that_is_not_contiguous(device):
    x, w, _ = tensors(20, 40, 12, device)
    wide = torch.randn(24, device=device)
    for bias in (wide[::2], wide[:1].expand(12)):
        torch.testing.assert_close(torch.ops.nhl_fast.project(x, w, bias, False)[0], F.linear(x, w, bias))
        codes = torch.ops.nhl_fast.encode(x, w, bias)
        assert torch.equal(codes, torch.ops.nhl_fast.encode(x, w, bias.contiguous()))


@pytest.mark.parametrize("shape", [*SHAPES, (64, 1030, 13)], ids=str)
def test_codes_are_the_signs_of_the_outputs(shape, device):
    x, w, b = tensors(*shape, device)
    u, _ = torch.ops.nhl_fast.project(x, w, b, False)
    packed = torch.ops.nhl_fast.encode(x, w, b)
    assert torch.equal(packed, pack_codes(u))
    np.testing.assert_array_equal(packed.cpu().numpy(), np.packbits((u > 0).cpu().numpy(), axis=1))


def test_a_zero_output_is_the_bit_0(device):
    x, w, b = (torch.zeros_like(t) for t in tensors(3, 5, 9, device))
    assert torch.equal(torch.ops.nhl_fast.encode(x, w, b), torch.zeros(3, 2, dtype=torch.uint8, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "stride 0", "transposed"])
@pytest.mark.parametrize("shape", [(1, 7, 1), (33, 7, 100), (20, 300, 12), (1100, 9, 5)], ids=str)
def test_gradients(shape, kind, dtype, device):
    x, w, b = tensors(*shape, device, dtype)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    u = torch.ops.nhl_fast.project(*inputs, False)[0]
    grad = torch.randn_like(u)
    if kind == "stride 0":
        grad = grad[:1, :1].expand_as(u)
    elif kind == "transposed":
        grad = grad.T.contiguous().T
    ours = torch.autograd.grad(u, inputs, grad)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = torch.autograd.grad(F.linear(*wide), wide, grad.double())
    for a, t, like in zip(ours, truth, inputs):
        assert a.dtype == like.dtype
        torch.testing.assert_close(a.double(), t, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_only_what_is_needed_is_computed(device):
    x, w, b = tensors(6, 20, 12, device)
    x.requires_grad_()
    (gx,) = torch.autograd.grad(torch.ops.nhl_fast.project(x, w, b, False)[0].sum(), x)
    torch.testing.assert_close(gx, w.sum(0).expand(6, 20), rtol=1e-4, atol=1e-4)
    b.requires_grad_()
    (gb,) = torch.autograd.grad(torch.ops.nhl_fast.project(x.detach(), w, b, False)[0].sum(), b)
    torch.testing.assert_close(gb, torch.full((12,), 6.0, device=device))


def test_opcheck(device):
    for gram, dtype in ((True, torch.float32), (False, torch.float16)):
        x, w, b = tensors(6, 20, 12, device, dtype)
        torch.library.opcheck(fused.project, (x, w, b, gram))
        torch.library.opcheck(fused.encode, (x, w, b))
    inputs = [t.requires_grad_() for t in tensors(6, 20, 12, device)]
    torch.library.opcheck(fused.project, (*inputs, False))
    x, w, _ = tensors(6, 20, 12, device)
    torch.library.opcheck(fused.project_backward, (torch.randn(6, 12, device=device), x, w, True, True))


def test_layer(device):
    layer = NestedHashLayer(20, (5, 12), device=device)
    x = torch.randn(9, 20, device=device)
    torch.testing.assert_close(layer.project(x, "triton"), layer.project(x, "reference"), rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.encode(x, "triton"), pack_codes(layer.project(x, "triton")))
    assert layer.encode(x[:0], "triton").shape == (0, 2)
    assert layer.project(x[:0], "triton").shape == (0, 12)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert layer.project(x, "triton").dtype == torch.float32
    for call in (layer.project, layer.encode):
        with pytest.raises(RuntimeError, match="float64"):
            call(x.double(), "triton")
        with pytest.raises(ValueError, match="backend"):
            call(x, "cpp")
        with pytest.raises(ValueError, match="expected features"):
            call(x[:, :3], "triton")


def test_compiles_in_one_graph(device):
    torch._dynamo.reset()
    layer = NestedHashLayer(20, (5, 12), device=device)
    x = torch.randn(9, 20, device=device, requires_grad=True)
    compiled = torch.compile(lambda x: layer.project(x, "triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer.project(x, "triton"))
    (a,), (b,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, layer.project))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
