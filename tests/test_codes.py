import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nhl_fast.retrieval import codes
from nhl_fast.retrieval.codes import check_packed, mask_tail, pack_codes, unpack_codes

LENGTHS = (*range(1, 17), 48, 100, 128, 1024)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_pack_equals_numpy(length, dtype):
    x = torch.randn(7, length).to(dtype)
    x[::3, ::2] = 0.0
    x[1::3, ::2] = -0.0
    packed = pack_codes(x)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(x.double().numpy() > 0, axis=1))


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 40), st.randoms(use_true_random=False))
def test_pack_integers_and_bools(rows, length, random):
    bits = np.array([[random.random() < 0.5 for _ in range(length)] for _ in range(rows)], dtype=bool)
    bits = bits.reshape(rows, length)
    expected = np.packbits(bits, axis=1)
    as_signs = bits.astype(np.int64) * 2 - 1
    for x in (bits, bits.astype(np.uint8), bits.astype(np.int32), as_signs, as_signs.astype(np.int8)):
        assert np.array_equal(pack_codes(x).numpy(), expected)
        assert np.array_equal(pack_codes(torch.from_numpy(x)).numpy(), expected)


def test_zero_infinity_and_the_smallest_numbers():
    x = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, 5e-324, -5e-324, 1.0, -1.0]], dtype=torch.float64)
    assert pack_codes(x).tolist() == [[0b00101010]]


def test_pack_reads_any_strides():
    x = torch.randn(12, 50)
    for view in (x.T, x[::2, ::3], x.flip(0), x[:1].expand(4, -1)):
        assert torch.equal(pack_codes(view), pack_codes(view.contiguous()))
    array = x.numpy()
    assert np.array_equal(pack_codes(array[::-1, ::-2]).numpy(), np.packbits(array[::-1, ::-2] > 0, axis=1))


def test_pack_builds_no_graph_and_leaves_its_input():
    x = torch.randn(3, 9, requires_grad=True)
    before = x.detach().clone()
    assert not pack_codes(x).requires_grad
    assert torch.equal(x.detach(), before)


def test_pack_empty():
    assert pack_codes(torch.empty(0, 12)).shape == (0, 2)
    assert unpack_codes(torch.empty(0, 2, dtype=torch.uint8), 12).shape == (0, 12)


def test_packs_under_compile_with_a_full_graph():
    compiled = torch.compile(pack_codes, fullgraph=True, backend="eager")
    x = torch.randn(5, 12)
    assert torch.equal(compiled(x), pack_codes(x))


@pytest.mark.parametrize("length", LENGTHS)
def test_unpack_is_the_inverse(length):
    x = torch.randn(5, length)
    packed = pack_codes(x)
    values = unpack_codes(packed, length)
    assert values.dtype == torch.int8
    assert torch.equal(values, torch.where(x > 0, 1, -1).to(torch.int8))
    assert torch.equal(pack_codes(values), packed)
    assert torch.equal(unpack_codes(packed.numpy(), length), values)


@pytest.mark.parametrize("length", [1, 5, 8, 12, 16])
def test_prefixes_ignore_what_follows(length):
    packed = torch.randint(0, 256, (6, 2), dtype=torch.uint8)
    before = packed.clone()
    values = unpack_codes(packed, 16)[:, :length]
    assert torch.equal(unpack_codes(packed, length), values)
    assert torch.equal(mask_tail(packed, length), pack_codes(values))
    assert torch.equal(packed, before)


def test_read_only_arrays_are_taken_without_a_warning(recwarn):
    array = np.arange(6, dtype=np.uint8).reshape(3, 2)
    array.flags.writeable = False
    assert torch.equal(check_packed(array), torch.arange(6, dtype=torch.uint8).view(3, 2))
    assert not recwarn.list


def test_arrays_share_their_memory():
    array = np.zeros((2, 2), dtype=np.uint8)
    tensor = check_packed(array)
    array[1, 1] = 7
    assert tensor[1, 1] == 7


BAD_PACK = [
    ([[1.0]], TypeError, "x: expected a torch.Tensor"),
    (np.array([["a"]]), TypeError, "x: expected a tensor or an array of numbers"),
    (np.ones((1, 2), dtype=np.longdouble), TypeError, "x: expected a tensor or an array of numbers"),
    (torch.randn(3), ValueError, "x: expected 2 dimensions"),
    (torch.randn(2, 3, 4), ValueError, "x: expected 2 dimensions"),
    (torch.empty(2, 0), ValueError, "x: expected at least one bit"),
    (torch.tensor([[1.0, torch.nan]]), ValueError, "x: .*NaN"),
    (torch.tensor([[1.0, torch.nan]], dtype=torch.bfloat16), ValueError, "x: .*NaN"),
    (torch.tensor([[0, 2]]), ValueError, "x: expected integers in"),
    (torch.tensor([[-2, 1]]), ValueError, "x: expected integers in"),
    (torch.tensor([[200]], dtype=torch.uint8), ValueError, "x: expected integers in"),
    (torch.ones(1, 2, dtype=torch.complex64), TypeError, "x: .*complex64"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_PACK)
def test_pack_rejects(x, error, message):
    with pytest.raises(error, match=message):
        pack_codes(x)


ROWS = torch.zeros(2, 3, dtype=torch.uint8)
BAD_UNPACK = [
    (ROWS.int(), 8, TypeError, "packed: expected packed uint8"),
    ([[1]], 8, TypeError, "packed: expected a torch.Tensor"),
    (ROWS[0], 8, ValueError, "packed: expected packed rows"),
    (ROWS[:, :0], 8, ValueError, "packed: expected packed rows"),
    (ROWS, 0, ValueError, "length: .*at least 1"),
    (ROWS, 25, ValueError, "length: expected at most 24"),
    (ROWS, 8.0, TypeError, "length: expected an integer"),
    (ROWS, True, TypeError, "length: expected an integer"),
]


@pytest.mark.parametrize(("packed", "length", "error", "message"), BAD_UNPACK)
def test_unpack_rejects(packed, length, error, message):
    with pytest.raises(error, match=message):
        unpack_codes(packed, length)


class OnDevice(torch.Tensor):
    """A tensor that passes for one of a CUDA device."""

    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl


def test_a_database_on_a_device_that_is_refused_is_refused_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    bits = torch.arange(4096 * 16, dtype=torch.uint8).view(4096, 16).bitwise_and(1)
    bits[0, 0] = 1
    rows = bits.as_subclass(OnDevice)
    for _ in range(2):
        with pytest.raises(ValueError, match="database: expected packed rows"):
            codes.check_packed(rows, "database")


def test_a_database_on_a_device_is_looked_at_once_until_it_changes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    looks = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: looks.append(len(self)) or self)

    def rows_of():
        return torch.arange(4100 * 16).view(4100, 16).to(torch.uint8).as_subclass(OnDevice)

    for rows in (rows_of(), torch.inference_mode()(rows_of)()):
        looks.clear()
        for _ in range(3):
            codes.check_packed(rows, "database")
        assert looks == [4096]
    rows = rows_of()
    codes.check_packed(rows, "database")
    looks.clear()
    rows[0] = 1
    codes.check_packed(rows, "database")
    assert looks == [4096]
