"""`hash_layer` replaced, wrapped or hooked: the step goes through it, or says why it does not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import nhl_fast as nhl
from nhl_fast.native import cpu_status

LENGTHS = (4, 8)


class LowRank(nn.Module):
    """A LoRA wrapper: a frozen layer and a trained product."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def replaced(kind):
    """A layer with its hash_layer changed, and what its outputs then are."""
    layer = nhl.NestedHashLayer(6, LENGTHS)
    nn.init.normal_(layer.hash_layer.weight)
    linear = layer.hash_layer
    match kind:
        case "lora":
            layer.hash_layer = LowRank(linear)
        case "weight_norm":
            parametrizations.weight_norm(linear)
        case "old weight_norm":
            nn.utils.weight_norm(linear)
        case "spectral_norm":
            parametrizations.spectral_norm(linear)
        case "old spectral_norm":
            nn.utils.spectral_norm(linear)
        case "prune":
            prune.random_unstructured(linear, "weight", amount=0.5)
        case "forward hook":
            linear.register_forward_hook(lambda module, args, out: 2 * out)
        case "forward pre-hook":
            linear.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        case "patched forward":
            forward = linear.forward
            linear.forward = lambda x: forward(x).neg()
        case "no bias":
            layer.hash_layer = nn.Linear(6, 8, bias=False)
        case "sequence":
            layer.hash_layer = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 8))
    return layer


KINDS = [
    "lora", "weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "prune", "forward hook",
    "forward pre-hook", "patched forward", "no bias", "sequence",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_goes_through_the_module(kind):
    layer, x, labels = replaced(kind), torch.randn(9, 6), torch.arange(9) % 3
    loss = nhl.losses.CSQ(3, LENGTHS)
    objective = nhl.NestedObjective(layer, loss, weighting="uniform", distill_weight=0)
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    for _ in range(3):  # hooks that compute the weight fail, or go stale, at the second step
        expected = loss(layer.hash_layer(x), labels, backend="reference")
        optimizer.zero_grad()
        result = objective(x, labels)
        # spectral_norm goes on with its power iteration at every call.
        tolerance = {"rtol": 0.1, "atol": 0.1} if "spectral" in kind else {}
        torch.testing.assert_close(result.losses, expected, **tolerance)
        result.total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
        optimizer.step()
    layer.eval()
    outputs = layer.hash_layer(x)
    torch.testing.assert_close(layer(x)[-1], outputs)
    assert torch.equal(nhl.pack_codes(outputs), layer.encode(x))


def test_spectral_norm_does_not_go_stale():
    layer = replaced("old spectral_norm")
    before = layer.hash_layer.weight_u.clone()
    nhl.NestedObjective(layer, nhl.losses.CSQ(3, LENGTHS))(torch.randn(9, 6), torch.arange(9) % 3)
    assert not torch.equal(layer.hash_layer.weight_u, before)


def test_hooks_of_the_layer_itself_run():
    layer, x = nhl.NestedHashLayer(6, LENGTHS), torch.randn(9, 6)
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, out: seen.append("after"))
    nhl.NestedObjective(layer, nhl.losses.CSQ(3, LENGTHS))(x, torch.arange(9) % 3)
    assert seen == ["before", "after"]
    layer.encode(x)
    assert seen == ["before", "after"] * 2


@pytest.mark.skipif(not cpu_status()[0], reason="needs the C++ library")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("lora", "hash_layer is a LowRank, not a plain Linear"),
        ("forward hook", "hash_layer has hooks"),
        ("patched forward", "hash_layer has hooks"),
        ("no bias", "the layer has no bias"),
        ("weight_norm", "not a plain Linear"),
    ],
)
def test_a_named_backend_says_why_not(kind, reason):
    objective = nhl.NestedObjective(replaced(kind), nhl.losses.CSQ(3, LENGTHS), backend="cpp")
    with pytest.raises(RuntimeError, match=reason):
        objective(torch.randn(9, 6), torch.arange(9) % 3)


@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning", "ignore::UserWarning")
def test_quantized():
    if not torch.backends.quantized.supported_engines[1:]:
        pytest.skip("this build of PyTorch quantizes nothing")
    layer, x = replaced("plain"), torch.randn(9, 6)
    quantized = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized.hash_layer, nn.Linear) or type(quantized.hash_layer) is not nn.Linear
    torch.testing.assert_close(quantized(x)[-1], layer(x)[-1], rtol=0.1, atol=0.1)
    assert torch.equal(quantized.encode(x), nhl.pack_codes(quantized.hash_layer(x)))


def test_outputs_of_another_shape_are_refused():
    layer = nhl.NestedHashLayer(6, LENGTHS)
    layer.hash_layer = nn.Sequential(nn.Linear(6, 7))
    with pytest.raises(ValueError, match=r"hash_layer: expected .*\(2, 8\).*\(2, 7\)"):
        layer(torch.randn(2, 6))


def test_dtypes_of_a_replaced_module():
    layer, x = replaced("sequence").half(), torch.randn(3, 6)
    assert layer(x.half())[-1].dtype == torch.float32
    assert layer.double()(x)[-1].dtype == torch.float64
