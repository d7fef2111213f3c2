import numpy as np
import pytest
import torch

from nhl_fast.head.layer import NestedHashLayer

pytestmark = pytest.mark.numeric


def test_outputs_are_prefix_views_of_one_tensor():
    layer = NestedHashLayer(7, (5, 12, 48))
    outputs = layer(torch.randn(3, 7))
    assert [tuple(o.shape) for o in outputs] == [(3, 5), (3, 12), (3, 48)]
    assert len({o.data_ptr() for o in outputs}) == 1
    assert torch.equal(outputs[2][:, :5], outputs[0])


def test_initialization():
    layer = NestedHashLayer(512)
    assert layer.code_lengths == (8, 16, 32, 64, 128)
    assert layer.hash_layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not layer.hash_layer.bias.any()


def test_loads_weights_of_the_authors_layer():
    state = {"hash_layer.weight": torch.randn(128, 2048), "hash_layer.bias": torch.randn(128)}
    layer = NestedHashLayer(2048)
    layer.load_state_dict(state)
    x = torch.randn(2, 2048)
    torch.testing.assert_close(layer(x)[-1], x @ state["hash_layer.weight"].T + state["hash_layer.bias"])


def test_encode_packs_like_numpy():
    layer = NestedHashLayer(9, (5, 12, 21))
    x = torch.randn(6, 9)
    expected = np.packbits(layer.project(x).detach().numpy() > 0, axis=1)
    assert np.array_equal(layer.encode(x).numpy(), expected)
    assert layer.encode(x[:0]).shape == (0, 3)
    rows = x.numpy().astype(np.float64)
    rows.flags.writeable = False
    for array in (x.numpy(), rows, x.numpy()[::-1][::-1]):
        assert np.array_equal(layer.encode(array).numpy(), expected)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got Tensor"):
        layer.encode(np.zeros((2, x.shape[1]), np.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_accumulated_in_float32(dtype):
    layer = NestedHashLayer(4096)
    x = torch.randn(4, 4096).to(dtype)
    assert layer.project(x).dtype == torch.float32
    torch.testing.assert_close(layer.project(x), layer.project(x.float()), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer.project(x), layer.project(x.float()), rtol=0, atol=0)
    assert layer.to(dtype).project(x).dtype == torch.float32


def test_double_precision_is_kept():
    assert NestedHashLayer(4, (2,)).double().project(torch.randn(2, 4).double()).dtype == torch.float64


def test_non_contiguous_features():
    layer = NestedHashLayer(7, (5, 12))
    x = torch.randn(7, 6).T
    torch.testing.assert_close(layer.project(x), layer.project(x.contiguous()))


def test_compiles_in_one_graph():
    layer = NestedHashLayer(7, (5, 12))
    x = torch.randn(3, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("length", [64, np.int64(64), (64,), [64]])
def test_an_integer_is_one_length(length):
    layer = NestedHashLayer(128, length)
    assert layer.code_lengths == (64,)
    assert type(layer.code_lengths[0]) is int
    (u,) = layer(torch.randn(3, 128))
    assert u.shape == (3, 64)


@pytest.mark.parametrize("length", [True, 64.0, "64", torch.tensor(64)])
def test_what_is_no_length(length):
    with pytest.raises(TypeError, match="code_lengths: expected a sequence of integers"):
        NestedHashLayer(128, length)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NestedHashLayer(0), "in_features"),
        (lambda: NestedHashLayer(2.5), "in_features"),
        (lambda: NestedHashLayer(8, (16, 16)), "increasing"),
        (lambda: NestedHashLayer(8, "8,16"), "code_lengths"),
        (lambda: NestedHashLayer(8, 16.0), "code_lengths"),
        (lambda: NestedHashLayer(8)(torch.randn(2, 9)), r"x: expected features of shape \(N, 8\)"),
        (lambda: NestedHashLayer(8)(torch.randn(9)), "x: expected"),
        (lambda: NestedHashLayer(8)(torch.ones(2, 8, dtype=torch.long)), "floating"),
        (lambda: NestedHashLayer(8)(np.ones((2, 8))), r"torch\.Tensor"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
