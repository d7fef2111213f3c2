"""Arrays of every kind, memory that runs out, the meta device, copies of an index, export."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import nhl_fast as nhl
from nhl_fast.core import check
from nhl_fast.native import cpu_status

CODES = np.random.default_rng(0).integers(0, 256, (40, 4), dtype=np.uint8)

# ----------------------------------------------------------------------------------------------------- arrays


def test_strides_of_every_kind():
    expected = nhl.search(CODES[:1], CODES, 5)
    one, big = CODES[:1], np.zeros(40, dtype=[("code", np.uint8, 4), ("rest", np.uint16)])
    big["code"] = CODES
    backwards = np.ascontiguousarray(CODES[::-1])[::-1]
    assert backwards.strides[0] < 0
    for queries in (one, one[::-1], np.ascontiguousarray(one[:, ::-1])[:, ::-1], np.asfortranarray(one)):
        for database in (CODES, backwards, np.asfortranarray(CODES), big["code"], np.repeat(CODES, 3, 1)[:, ::3]):
            assert all(map(torch.equal, nhl.search(queries, database, 5), expected))
    x = np.random.default_rng(1).normal(size=(1, 9))
    assert np.array_equal(nhl.pack_codes(x[::-1]), np.packbits(x > 0, axis=1))
    assert np.array_equal(nhl.pack_codes(x[:, ::-1]), np.packbits(x[:, ::-1] > 0, axis=1))
    pairs = np.zeros(3, dtype=[("a", np.float64), ("b", np.int8)])  # strides that are no multiple of the item
    pairs["a"] = [1, -1, 2]
    assert nhl.pack_codes(pairs["a"][:, None]).tolist() == [[128], [0], [128]]


def test_the_other_byte_order():
    x = np.random.default_rng(1).normal(size=(3, 9))
    swapped = x.astype(x.dtype.newbyteorder())
    assert torch.equal(nhl.pack_codes(swapped), nhl.pack_codes(x))


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 8), np.longdouble),
        np.ones((3, 8), object),
        np.full((3, 8), "1"),
        np.full((3, 8), b"1"),
        np.ones((3, 8), "datetime64[s]"),
        np.zeros((3, 8), [("a", np.uint8)]),
        np.ma.array(np.ones((3, 8)), mask=np.eye(3, 8)),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_are_refused_say_why(array):
    labels = torch.zeros(3).long()
    for name, call in {
        "x": lambda: nhl.pack_codes(array),
        "packed": lambda: nhl.unpack_codes(array, 8),
        "queries": lambda: nhl.search(array, CODES, 1),
        "database": lambda: nhl.hamming_distances(CODES, array),
        "q_labels": lambda: nhl.evaluate_retrieval(CODES[:3], CODES[:3], array, labels, (8,)),
        "allow": lambda: nhl.search(CODES[:1], CODES[:3], 1, allow=array),
        "codes": lambda: nhl.NestedIndex(64).add(array),
        "ids": lambda: nhl.NestedIndex(32).add(CODES[:3], array[:, 0]),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name}: expected (?!a torch\.Tensor).*got \w+ of shape"):
            call()


# ----------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(
    not cpu_status()[0], reason="no library"))])  # fmt: skip
def test_out_of_memory_is_a_memory_error(backend):
    rows = torch.zeros(1, 1, dtype=torch.uint8).expand(2**25, 1)  # a view of one byte; the result takes 2**52
    with pytest.raises(MemoryError, match="hamming_distances: not enough memory"):
        nhl.hamming_distances(rows, rows, backend=backend)
    with pytest.raises(MemoryError):
        nhl.search(rows, rows, 2**20, backend=backend)
    with pytest.raises(MemoryError):
        nhl.pack_codes(torch.full((1, 1), -1.0).expand(2**55, 16))


def test_out_of_memory_elsewhere():
    with pytest.raises(MemoryError):
        nhl.NestedHashLayer(2**50)
    with pytest.raises(MemoryError):
        nhl.losses.DSH(3, num_train=2**50)
    rows = torch.zeros(1, 2**10, dtype=torch.uint8).expand(2**45, 2**10)
    with pytest.raises(MemoryError):
        nhl.NestedIndex(2**13).add(rows)


def test_what_the_library_throws_is_a_memory_error():
    """A limit of the system, met inside the C++ library, in a process of its own."""
    script = """
import resource, numpy as np, nhl_fast as nhl
rows = np.random.default_rng(0).integers(0, 256, (1_000_000, 8), dtype=np.uint8)
nhl.search(rows[:2], rows, 2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), used + (300 << 20)))
for call in (lambda: nhl.radius_search(rows[:2000], rows, 64), lambda: nhl.search(rows[:300], rows, 500_000)):
    try:
        call()
    except MemoryError as error:
        print("MemoryError", error)
print(nhl.search(rows[:2], rows, 1)[1].flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MemoryError") == 2
    assert done.stdout.endswith("[0, 1]\n")


def test_other_errors_stay_what_they_are():
    @check.memory
    def fails(error):
        raise error

    for error in (RuntimeError("something else"), OSError(2, "no such file"), ValueError("DefaultCPUAllocator")):
        with pytest.raises(type(error)) as caught:
            fails(error)
        assert caught.value is error
    with pytest.raises(torch.OutOfMemoryError):
        fails(torch.OutOfMemoryError("CUDA out of memory. alloc_cpu"))
    with pytest.raises(MemoryError, match=r"fails: not enough memory: .*Cannot allocate"):
        fails(OSError(12, "Cannot allocate memory"))


# ----------------------------------------------------------------------------------------------- meta device

LENGTHS = (4, 8)


def poisoned(module, device="cpu"):
    """`to_empty`, with memory that holds what it may hold."""
    module.to_empty(device=device)
    return module


@pytest.mark.parametrize("name", sorted(nhl.losses.REGISTRY))
def test_losses_come_back_from_the_meta_device(name, monkeypatch):
    def build():
        return nhl.losses.build(name, num_classes=3, code_lengths=LENGTHS, num_train=9)

    real, (u, labels, index) = build(), (torch.randn(5, 8), torch.arange(5) % 3, torch.arange(5))
    with torch.device("meta"):
        loss = build()
    assert all(buffer.is_meta for buffer in loss.buffers())
    filled = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(filled(*a, **k)))
    loss.to_empty(device="cpu")
    for (key, value), (_, expected) in zip(loss.named_buffers(), real.named_buffers(), strict=True):
        assert torch.equal(value, expected), key
        assert value.dtype == expected.dtype
    assert torch.equal(loss(u, labels, index), real(u, labels, index))
    # The same without the meta device: what no state dict holds comes back, the rest is loaded.
    state = real.state_dict()
    other = build()
    other.to_empty(device="cpu")
    other.load_state_dict(state)
    assert torch.equal(other(u, labels, index), real(u, labels, index))


def poison(tensor):
    if not tensor.is_meta:
        tensor.fill_(True if tensor.dtype == torch.bool else 77)
    return tensor


@pytest.mark.parametrize("weighting", ["uniform", "dominance", [0.5, 2.0]])
def test_objective_comes_back_from_the_meta_device(weighting, monkeypatch):
    def build():
        return nhl.NestedObjective(nhl.NestedHashLayer(6, LENGTHS), nhl.losses.CSQ(3, LENGTHS), weighting=weighting)

    real = build()
    with torch.device("meta"):
        objective = build()
    filled = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(filled(*a, **k)))
    objective.to_empty(device="cpu").load_state_dict(real.state_dict())
    features, labels = torch.randn(5, 6), torch.arange(5) % 3
    assert torch.equal(objective(features, labels).total, real(features, labels).total)
    objective.layer.reset_parameters()
    assert not objective.layer.hash_layer.bias.any()
    assert 0 < objective.layer.hash_layer.weight.abs().max() < 0.1


def test_constants_follow_the_module():
    loss = nhl.losses.CSQ(3, LENGTHS).double()
    assert loss._segments.dtype == torch.float64
    assert loss._bits.dtype == torch.int64
    values = loss(torch.randn(5, 8), torch.arange(5) % 3)
    assert torch.isfinite(values).all()


def test_tensors_without_values_are_refused():
    rows = torch.empty(3, 8, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match=r"queries: .*meta device"):
        nhl.search(rows, rows, 1)


# --------------------------------------------------------------------------------------------- copies of an index


def made(kind, tmp_path):
    index = nhl.NestedIndex(32)
    if kind != "empty":
        index.add(CODES, ids=np.arange(40) * 3)
        index.remove([3, 60])
        index.add(CODES[:2])
    if kind in ("mapped", "read"):
        index.save(tmp_path / "i.nhl")
        index = nhl.NestedIndex.load(tmp_path / "i.nhl", mmap=kind == "mapped")
    return index


def through_joblib(index, tmp_path, **options):
    joblib = pytest.importorskip("joblib")
    joblib.dump(index, tmp_path / "i.joblib")
    return joblib.load(tmp_path / "i.joblib", **options)


COPIES = {
    "pickle": lambda index, _: pickle.loads(pickle.dumps(index)),
    "old pickle": lambda index, _: pickle.loads(pickle.dumps(index, protocol=2)),
    "deepcopy": lambda index, _: copy.deepcopy(index),
    "copy": lambda index, _: copy.copy(index),
    "joblib": through_joblib,
    "mapped joblib": lambda index, path: through_joblib(index, path, mmap_mode="r"),
    "torch.save": lambda index, _: through_torch(index),
}


def through_torch(index):
    file = io.BytesIO()
    torch.save({"index": index}, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)["index"]


@pytest.mark.parametrize("kind", ["empty", "changed", "mapped", "read"])
@pytest.mark.parametrize("way", list(COPIES))
def test_an_index_is_copied(kind, way, tmp_path):
    index = made(kind, tmp_path)
    other = COPIES[way](index, tmp_path)
    if kind == "mapped":
        (tmp_path / "i.nhl").unlink()
    assert (other.length, len(other)) == (index.length, len(index))
    assert torch.equal(other.ids, index.ids)
    assert torch.equal(other.reconstruct(other.ids), index.reconstruct(index.ids))
    if len(index):
        assert all(map(torch.equal, other.search(CODES[:3], 7), index.search(CODES[:3], 7)))
    before, first = len(index), index._state.next_id
    assert other.add(CODES[:1]).tolist() == [first]  # running ids go on
    assert (len(other), len(index)) == (before + 1, before)
    index.add(CODES[:3])
    assert (len(other), len(index)) == (before + 1, before + 3)


def test_a_copy_in_another_process():
    """Spawned workers get the index by pickle."""
    import multiprocessing

    index = made("changed", None)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(index.search, (CODES[:3], 7))
    assert all(map(torch.equal, found, index.search(CODES[:3], 7)))


# ----------------------------------------------------------------------------------------------------- export


class Encoder(nn.Module):
    def __init__(self, lengths):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 16))
        self.layer = nhl.NestedHashLayer(16, lengths)

    def forward(self, images):
        return self.layer.encode(self.backbone(images))


@pytest.mark.parametrize("lengths", [(8, 16), (5, 12)])
def test_torch_export(lengths):
    model, images = Encoder(lengths).eval(), torch.randn(5, 3, 8, 8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    for n in (1, 5, 9):
        images = torch.randn(n, 3, 8, 8)
        assert torch.equal(program.module()(images), model(images))
    file = io.BytesIO()
    torch.export.save(program, file)
    assert torch.equal(torch.export.load(io.BytesIO(file.getvalue())).module()(images), model(images))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lengths", [(8, 16), (5, 12)])
def test_onnx(lengths, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, images = Encoder(lengths).eval(), torch.randn(5, 3, 8, 8)
    torch.onnx.export(
        model, (images,), tmp_path / "model.onnx", dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
    )  # fmt: skip
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 5, 9):
        images = torch.randn(n, 3, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert found.dtype == np.uint8
        assert np.array_equal(found, model(images).numpy())
