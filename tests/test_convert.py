"""Codes as others write them, as packed rows."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import nhl_fast as nhl

BITS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70))


def hex_of(bits):
    """A row's bits, four a digit, as imagehash writes them."""
    return "".join(
        f"{int(''.join('01'[int(b)] for b in bits[i : i + 4]).ljust(4, '0'), 2):x}" for i in range(0, len(bits), 4)
    )


@given(BITS)
def test_every_form_gives_the_same_rows(bits):
    packed = np.packbits(bits, axis=1)
    binary = (packed.astype(np.int16) - 128).astype(np.int8)  # sentence-transformers' quantize_embeddings, "binary"
    forms = [bits, torch.from_numpy(bits), [hex_of(row) for row in bits], np.array([hex_of(row) for row in bits])]
    forms += [
        [text.upper() for text in forms[2]],
        bits[:, None, :],
        [types.SimpleNamespace(hash=row) for row in bits],
    ]
    if binary.size < 64 or np.abs(binary.astype(int)).max() > 1:
        forms += [binary, np.asfortranarray(binary), torch.from_numpy(binary)]
    for form in forms:
        rows = nhl.as_codes(form)
        assert rows.dtype == torch.uint8
        assert np.array_equal(rows.numpy(), packed)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_whole_numbers(values):
    wanted = [[int(bit) for bit in f"{value:064b}"] for value in values]
    signed = np.array(values, np.uint64).view(np.int64)
    for form in (values, np.array(values, np.uint64), signed, torch.from_numpy(signed), np.array(values, ">u8")):
        assert np.unpackbits(nhl.as_codes(form).numpy(), axis=1).tolist() == wanted
    two = np.array([values, values[::-1]], np.uint64).T
    assert np.unpackbits(nhl.as_codes(two).numpy(), axis=1).tolist() == [a + b for a, b in zip(wanted, wanted[::-1])]


def test_packed_rows_stay():
    rows = np.random.default_rng(0).integers(0, 256, (9, 5), dtype=np.uint8)
    assert nhl.as_codes(rows).numpy() is not None
    assert np.shares_memory(nhl.as_codes(rows).numpy(), rows)


BAD = {
    "one string": ("ffff", TypeError, "values: expected packed uint8 rows"),
    "no strings": ([], ValueError, "values: expected hex strings of one length"),
    "two lengths": (["ff", "f"], ValueError, "of one length, at least one digit, got 2 and 1 digits"),
    "empty strings": (["", ""], ValueError, "values: expected hex strings of one length"),
    "no hex": (["ff", "0g"], ValueError, "values: expected hex strings, got '0g'"),
    "negative": ([3, -1], ValueError, r"values: expected whole numbers from 0 to 2\*\*64 - 1, got -1"),
    "large": ([2**64], ValueError, "got 18446744073709551616"),
    "floats": (np.ones((3, 8)), TypeError, "values: expected packed uint8 rows"),
    "flags": ([True, False], TypeError, "values: expected packed uint8 rows"),
    "no bits": (np.ones((3, 0), bool), ValueError, "values: expected at least one bit a row"),
    "int8 bits": (np.ones((9, 8), np.int8), TypeError, "values: expected packed rows less 128, .* bits"),
    "unpacked": (
        np.random.default_rng(0).integers(0, 2, (9, 16), np.uint8),
        ValueError,
        "values: .* bits, one a byte",
    ),
    "hashes": ([types.SimpleNamespace(hash=np.ones(n, bool)) for n in (8, 9)], ValueError, "hashes of one shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_code(name):
    value, error, message = BAD[name]
    with pytest.raises(error, match=message):
        nhl.as_codes(value)
