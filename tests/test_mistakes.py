"""Inputs that could be taken for something else, and were: bits for packed rows, probabilities for outputs."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.native import cpu_status

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (60, 32), dtype=np.uint8)
PACKED = np.packbits(BITS, axis=1)


# ---------------------------------------------------------------------------------------------- unpacked rows


def calls(rows):
    labels = torch.arange(len(rows)) % 3
    index = nhl.NestedIndex(8 * np.shape(rows)[1])
    return {
        "queries": lambda: nhl.search(rows, np.zeros((3, np.shape(rows)[1]), np.uint8), 1),
        "database": lambda: nhl.radius_search(np.zeros((3, np.shape(rows)[1]), np.uint8), rows, 1),
        "db_codes": lambda: nhl.evaluate_retrieval(rows[:1], rows, labels[:1], labels, (8,)),
        "packed": lambda: nhl.unpack_codes(rows, 8),
        "codes": lambda: nhl.code_quality(rows, (8,)),
        "codes ": lambda: index.add(rows),
    }


@pytest.mark.parametrize("name", list(calls(BITS)))
@pytest.mark.parametrize("kind", ["array", "tensor", "read-only", "strided"])
def test_bits_one_a_byte_are_refused(name, kind):
    rows = {
        "array": BITS,
        "tensor": torch.from_numpy(BITS),
        "read-only": np.frombuffer(BITS.tobytes(), np.uint8).reshape(BITS.shape),
        "strided": np.repeat(BITS, 2, 1)[:, ::2],
    }[kind]
    wanted = "q_codes|db_codes" if name == "db_codes" else name.strip()
    with pytest.raises(ValueError, match=rf"({wanted}): expected packed rows, .*pack_codes\(({wanted})\)"):
        calls(rows)[name]()


def test_what_may_be_codes_is_not_refused():
    zeros = np.zeros((50, 16), np.uint8)  # a collapsed model
    ones = np.tile(np.uint8([0, 1] * 8), (50, 1))  # likewise: all rows are equal
    few = RNG.integers(0, 2, (5, 8), dtype=np.uint8)
    narrow = RNG.integers(0, 2, (200, 4), dtype=np.uint8)
    one_byte_above = BITS.copy()
    one_byte_above[-1, -1] = 2
    sparse = zeros.copy()
    sparse[3, 5] = 1
    for rows in (zeros, ones, few, narrow, one_byte_above, sparse):
        assert len(nhl.search(rows[:1], rows, 1)[0]) == 1


def test_a_late_row_is_seen():
    rows = np.zeros((200_000, 8), np.uint8)
    rows[1:, ::2] = 1
    with pytest.raises(ValueError, match="bits, one a byte"):
        nhl.search(PACKED[:1], rows, 1, length=8)
    rows[-1, 0] = 3
    nhl.search(PACKED[:1], rows, 1, length=8)


def test_an_index_searches_whatever_it_holds():
    """Rows added one by one may together look like bits; searching them is no mistake."""
    index = nhl.NestedIndex(64)
    for row in BITS[:, :8]:
        index.add(row[None])
    assert index.search(np.full((1, 8), 7, np.uint8), 3)[1].shape == (1, 3)


SIGNS = 2 * BITS.astype(np.int8) - 1


@pytest.mark.parametrize(
    "rows",
    [BITS.astype(bool), SIGNS, SIGNS.astype(np.int64), SIGNS.astype(np.float32), torch.from_numpy(SIGNS).half()],
    ids=lambda rows: str(rows.dtype),
)
def test_bool_and_signs_are_packed_on_the_way_in(rows):
    labels = torch.arange(len(rows)) % 3
    expected = nhl.search(PACKED, PACKED, 5)
    assert all(map(torch.equal, nhl.search(rows, rows, 5), expected))
    assert all(map(torch.equal, nhl.search(rows, PACKED, 5), expected))
    index = nhl.NestedIndex(32)
    index.add(rows)
    assert all(map(torch.equal, index.search(rows, 5), expected))
    result = nhl.evaluate_retrieval(rows, rows, labels, labels, (8, 32))
    other = nhl.evaluate_retrieval(PACKED, PACKED, labels, labels, (8, 32))
    assert torch.equal(result.average_precision, other.average_precision)
    assert torch.equal(nhl.unpack_codes(rows, 32), torch.from_numpy(SIGNS))


@pytest.mark.parametrize("rows", [BITS.astype(np.int64), SIGNS * 2, RNG.normal(size=(9, 8)), SIGNS * 0])
def test_other_numbers_are_refused_with_the_call_that_is_meant(rows):
    with pytest.raises(TypeError, match=r"database: expected packed uint8 rows.*pack_codes\(database\)"):
        nhl.search(PACKED, rows, 1, length=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sigmoid_outputs_are_refused(dtype):
    x = torch.randn(20, 8)
    x = (x + x.sign() / 4).to(dtype)  # far enough from 0 for half precision
    with pytest.raises(ValueError, match=r"x: .*as a sigmoid gives them.*x - 0.5"):
        nhl.pack_codes(x.sigmoid())
    assert torch.equal(nhl.pack_codes(x.sigmoid() - 0.5), nhl.pack_codes(x))
    assert nhl.pack_codes((x > 0).to(dtype)).tolist() == nhl.pack_codes(x).tolist()  # bits as floats
    assert nhl.pack_codes(x[:4].sigmoid()).tolist() == [[255]] * 4  # too few to tell
    with pytest.raises(ValueError, match="NaN"):
        nhl.pack_codes(torch.full((20, 8), torch.nan, dtype=dtype))


def test_a_layer_with_small_positive_outputs_encodes():
    layer = nhl.NestedHashLayer(3, (8,))
    torch.nn.init.constant_(layer.hash_layer.weight, 0.1)
    assert layer.encode(torch.rand(30, 3)).tolist() == [[255]] * 30


# ------------------------------------------------------------------------------------------------------ banks

BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(not cpu_status()[0], reason="no library"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("through", ["loss", "objective"])
@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh", "mdsh"])
def test_a_bank_changes_only_while_gradients_are_recorded(name, through, backend):
    lengths, labels, index = (4, 8), torch.arange(5) % 3, torch.arange(5)
    loss = nhl.losses.build(name, num_classes=3, code_lengths=lengths, num_train=9)
    x = torch.randn(5, 8)
    if through == "loss":

        def call(x, labels, index):
            return loss(x, labels, index, backend=backend).sum()

    else:
        objective = nhl.NestedObjective(nhl.NestedHashLayer(8, lengths), loss, backend=backend)

        def call(x, labels, index):
            return objective(x, labels, index).total

    call(x, labels, index)
    state = {key: value.clone() for key, value in loss.bank.state_dict().items()}
    assert state["written"].tolist() == [True] * 5 + [False] * 4
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.isfinite(call(torch.randn(5, 8), labels, index + 2))
            call(torch.randn(5, 8), labels, None)  # reading needs no index
    assert all(torch.equal(value, state[key]) for key, value in loss.bank.state_dict().items())
    call(torch.randn(5, 8), labels, index + 2)
    assert loss.bank.written.sum() == 7
    loss.eval()
    call(torch.randn(5, 8), labels, None)
    assert loss.bank.written.sum() == 7


def rank(number, ranks, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=number, world_size=ranks)
    said = []
    for name in ("dsh", "csq"):
        loss = nhl.losses.build(name, num_classes=3, code_lengths=(4, 8), num_train=9)
        try:
            loss(torch.randn(5, 8), torch.arange(5) % 3, torch.arange(5))
            said.append("fine")
        except RuntimeError as error:
            said.append(str(error))
    results.put((number, said, int(loss.training)))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_banks_with_several_ranks_are_refused(ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=rank, args=(i, ranks, port, results)) for i in range(ranks)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
    for _, (bank, plain), _ in found:
        assert plain == "fine"
        assert bank == "fine" if ranks == 1 else bank.startswith("bank: a process group of 2 ranks is up")


def test_faiss_leaves_the_radius_out():
    faiss = pytest.importorskip("faiss")
    del faiss
    index = nhl.NestedIndex(32)
    index.add(PACKED)
    lims, _, found = index.to_faiss().range_search(PACKED[:4], 11)
    offsets, _, ids = index.range_search(PACKED[:4], 10)
    assert lims.tolist() == offsets.tolist()
    assert sorted(found.tolist()) == sorted(ids.tolist())
