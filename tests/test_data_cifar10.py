import os
import pickle
import struct

import numpy as np
import pytest
import torch

from nhl_fast.data import cifar10, load_dataset
from nhl_fast.data.unpickle import Refused, _Unpickler, load_batch

RECORDS = 60  # of each fake file; 360 in all, 36 a class
BINARY = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
PYTHON = [name.removesuffix(".bin") for name in BINARY]


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6 * RECORDS, 3072), dtype=np.uint8)
    labels = np.concatenate([rng.permutation(np.arange(RECORDS) % 10) for _ in range(6)]).astype(np.uint8)
    return pictures, labels


def text(value: bytes) -> bytes:
    """A byte string as Python 2's cPickle writes it in protocol 2."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def array_bytes(pictures, dtype=b"u1", tail=b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00", fortran=b"\x89") -> bytes:
    shape = number(pictures.shape[0]) + number(pictures.shape[1]) + b"\x86"
    content = pictures.tobytes("F" if fortran == b"\x88" else "C")
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07"
        + b"(K\x01" + shape + b"cnumpy\ndtype\nq\x08" + text(dtype) + b"K\x00K\x01\x87Rq\x09"
        + b"(K\x03U\x01|" + tail + b"tb" + fortran + text(content) + b"tb"
    )  # fmt: skip


def official(pictures, labels, array=None) -> bytes:
    """A batch file as the release has it: a Python 2 pickle of protocol 2."""
    names = b"".join(text(b"name_s_%06d.png" % i) for i in range(len(labels)))
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5")
        + text(b"labels") + b"q\x03]q\x04(" + b"".join(number(int(v)) for v in labels) + b"e"
        + text(b"data") + (array_bytes(pictures) if array is None else array)
        + text(b"filenames") + b"]r\x0a\x00\x00\x00(" + names + b"eu."
    )  # fmt: skip


def write_binary(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([records[1][:, None], records[0]], 1)
    for i, name in enumerate(BINARY):
        (folder / name).write_bytes(rows[i * RECORDS : (i + 1) * RECORDS].tobytes())


def write_python(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(PYTHON):
        part = slice(i * RECORDS, (i + 1) * RECORDS)
        (folder / name).write_bytes(official(records[0][part], records[1][part]))


LAYOUTS = [
    (write_binary, "."),
    (write_binary, "cifar-10-batches-bin"),
    (write_python, "."),
    (write_python, "cifar-10-batches-py"),
]


@pytest.mark.parametrize(("write", "folder"), LAYOUTS)
def test_both_layouts_give_the_same_rows(tmp_path, records, write, folder):
    write(tmp_path / folder, records)
    data = load_dataset("cifar10", root=tmp_path, protocol="full")
    pictures = torch.from_numpy(records[0]).view(-1, 3, 32, 32)
    assert [len(s) for s in (data.train, data.validation, data.query, data.database)] == [270, 30, 60, 300]
    assert torch.equal(data.database.inputs, pictures[:300])
    assert torch.equal(data.query.inputs, pictures[300:])
    assert data.query.labels.tolist() == records[1][300:].tolist()
    assert np.array_equal(data.query.raw(3), records[0][303].reshape(3, 32, 32).transpose(1, 2, 0))
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    expected = (pictures[[301, 359]].numpy() / 255.0 - mean) / std
    inputs, labels = data.query.batch([1, 59])
    assert inputs.dtype == torch.float32
    assert np.abs(inputs.numpy() - expected).max() < 1e-5
    assert labels.tolist() == records[1][[301, 359]].tolist()
    assert data.class_names[3] == "cat"


@pytest.mark.parametrize(("protocol", "database"), [("paper", 360 - 30 - 100), ("keep-train", 330)])
def test_pooled_protocols(tmp_path, records, protocol, database):
    write_binary(tmp_path, records)
    sizes = {"queries_per_class": 3, "train_per_class": 10}
    data = load_dataset("cifar10", root=tmp_path, protocol=protocol, seed=2, **sizes)
    assert len(data.database) == database
    assert data.query.labels.bincount().tolist() == [3] * 10
    assert data.train.labels.bincount().tolist() == [9] * 10
    assert data.validation.labels.bincount().tolist() == [1] * 10
    assert data.train_in_database == (protocol == "keep-train")
    assert data.protocol == protocol
    # Queries come from all six files, not only from the test file.
    assert data.query.indices.min() < 300


def test_default_numbers_need_the_whole_data_set(tmp_path, records):
    write_binary(tmp_path, records)
    with pytest.raises(ValueError, match=r"queries_per_class=100 and train_per_class=500: .*600.* has 36"):
        load_dataset("cifar10", root=tmp_path)


def test_image_size(tmp_path, records):
    write_binary(tmp_path, records)
    data = load_dataset("cifar10", root=tmp_path, protocol="full", image_size=48)
    assert data.input_shape == (3, 48, 48)
    assert data.query.batch([0, 1])[0].shape == (2, 3, 48, 48)
    assert data.query.batch([])[0].shape == (0, 3, 48, 48)
    assert data.query[0][0].shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"protocol": "test"}, ValueError, "protocol: .*'keep-train'"),
        ({"protocol": "full", "train_per_class": 5}, ValueError, "train_per_class: .*'full'"),
        ({"protocol": "full", "queries_per_class": 5}, ValueError, "queries_per_class: .*'full'"),
        ({"queries_per_class": 0}, ValueError, "queries_per_class: "),
        ({"train_per_class": "5"}, TypeError, "train_per_class: "),
        ({"image_size": 0}, ValueError, "image_size: "),
        ({"root": 5}, TypeError, "root: "),
        ({"root": "nowhere"}, FileNotFoundError, "root: .*data_batch_1.bin.*nowhere"),
    ],
)
def test_options_refused(tmp_path, records, options, error, match):
    write_binary(tmp_path, records)
    with pytest.raises(error, match=match):
        load_dataset("cifar10", **{"root": tmp_path, **options})


def test_a_missing_file_is_named(tmp_path, records):
    write_binary(tmp_path, records)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"not complete.*data_batch_4\.bin"):
        load_dataset("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda b: b[:-1], r"data_batch_3\.bin: expected 184,380 bytes, got 184,379"),
        (lambda b: b + b"\0", r"got 184,381: cut short, or not of CIFAR-10"),
        (lambda b: b"", r"got 0"),
        (lambda b: b[:3073] + b"\x0a" + b[3074:], r"data_batch_3\.bin: record 1 has label 10, expected 0 to 9"),
    ],
)
def test_damaged_binary_files(tmp_path, records, change, match):
    write_binary(tmp_path, records)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=match):
        load_dataset("cifar10", root=tmp_path, protocol="full")


P = np.zeros((RECORDS, 3072), np.uint8)
L = np.arange(RECORDS) % 10


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (official(P, L)[:-2000], "bytes, got"),
        (official(P, L)[:-20], "refused, .*damaged"),
        (official(P, L)[:-1], "refused, .*damaged"),
        (b"", "got 0: cut short"),
        (bytes(RECORDS * 3100), "refused, .*damaged or no pickle"),
        (b"PK\x03\x04" + bytes(RECORDS * 3100), "refused, .*PERSID|refused, .*damaged|refused, .*opcode"),
        (official(P, L[:-1]), "labels: expected 60, got 59"),
        (official(P, [*L[:-1], 10]), "record 59 has label 10"),
        (official(P, [*L[:-1], 300]), "labels: expected a list of integers from 0 to 9"),
        (official(P.reshape(-1, 1024)[:180], L), r"data: expected uint8 \(60, 3072\), got .*\(180, 1024\)"),
        (official(P, L, text(P.tobytes())), "data: expected uint8"),
        (official(P, L).replace(b"labels", b"labelz"), "labels: expected a list"),
        (official(P, L, array_bytes(P, dtype=b"f8")), "refused, .*expected uint8"),
        (official(P, L, array_bytes(P, dtype=b"O8")), "refused, .*expected uint8"),
        (official(P, L, array_bytes(P, tail=b"K\x01NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")), "plain bytes"),
        (b"\x80\x02]" + text(P.tobytes()) + b"a.", "holds a list, expected a dictionary"),
    ],
)
def test_damaged_python_files(tmp_path, records, content, match):
    write_python(tmp_path, records)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset("cifar10", root=tmp_path, protocol="full")
    assert str(tmp_path / "data_batch_3") in str(caught.value)


def test_official_pickle_equals_the_plain_unpickler(records):
    content = official(records[0][:5], records[1][:5])
    ours, theirs = load_batch(content), pickle.loads(content, encoding="bytes")
    assert list(ours) == list(theirs) == [b"batch_label", b"labels", b"data", b"filenames"]
    for key, value in theirs.items():
        assert np.array_equal(ours[key], value)
    column_major = official(records[0][:5], records[1][:5], array_bytes(records[0][:5], fortran=b"\x88"))
    assert np.array_equal(load_batch(column_major)[b"data"], records[0][:5])


class Canary:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def memo_bomb(opcode, argument):
    return b"\x80\x02}" + opcode + argument + b"."


CANARY = "canary"
MALICIOUS = {
    **{f"os.mkdir, protocol {p}": pickle.dumps(Canary(os.mkdir, CANARY), p) for p in range(6)},
    "os.system": pickle.dumps(Canary(os.system, f"mkdir {CANARY}"), 2),
    "eval": pickle.dumps(Canary(eval, f"__import__('os').mkdir('{CANARY}')"), 2),
    "python 2 eval": b"\x80\x02c__builtin__\neval\nU\x1e__import__('os').mkdir('canary')\x85R.",
    "exec, text protocol": b"cbuiltins\nexec\n(S\"import os; os.mkdir('canary')\"\ntR.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nU\x05mkdir\x86R\x8c\x06canary\x85R.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.",
    "dotted GLOBAL": b"\x80\x04cnumpy\nndarray.__class__\n.",
    "INST": b"(S'canary'\nios\nmkdir\n.",
    "OBJ": b"\x80\x02(cos\nmkdir\n\x8c\x06canaryo.",
    "NEWOBJ": b"\x80\x02cos\nmkdir\n\x8c\x06canary\x85\x81.",
    "NEWOBJ of an allowed name": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pcanary\n.",
    "BINPERSID": b"\x80\x02U\x06canaryQ.",
    "runpy": b"\x80\x02crunpy\nrun_path\nU\x06canary\x85R.",
    "numpy.load": b"\x80\x02cnumpy\nload\nU\x06canary\x85R.",
    "numpy.fromfile": b"\x80\x02cnumpy\nfromfile\nU\x06canary\x85R.",
    "state of a function": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x08__code__K\x01s\x86b.",
    "state of a class": b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",
    "calls an inert object": b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
    "reconstructs no array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
    "object array": b"\x80\x02" + array_bytes(P[:2], dtype=b"O") + b".",
    "array longer than its bytes": b"\x80\x02" + array_bytes(P[:2]).replace(number(3072), b"M\xff\xff") + b".",
    "array dumped by NumPy": pickle.dumps({b"data": np.zeros(3, object)}, 2),
    "huge string": memo_bomb(b"T", b"\xff\xff\xff\x7f"),
    "negative string": memo_bomb(b"T", b"\xff\xff\xff\xff"),
    "huge bytes": memo_bomb(b"\x8e", b"\xff\xff\xff\xff\xff\xff\xff\x00"),
    "huge bytearray": memo_bomb(b"\x96", b"\xff\xff\xff\xff\xff\xff\xff\x00"),
    "huge frame": memo_bomb(b"\x95", b"\xff\xff\xff\xff\xff\xff\xff\x00"),
    "huge memo slot": memo_bomb(b"r", b"\xff\xff\xff\x7f"),
    "unset memo slot": b"\x80\x02h\x07.",
    "huge text integer": b"I" + b"9" * 100_000 + b"\n.",
    "deep nesting": b"\x80\x02}K\x01" + b"\x85" * 1_000_000 + b"K\x01s.",
    "empty stack": b"\x80\x02u.",
    "list in place of a dictionary": b"\x80\x02](K\x00K\x01u.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "protocol 9": b"\x80\x09}.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickles_are_refused_and_run_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused):
        load_batch(MALICIOUS[name])
    assert not os.path.exists(CANARY)


def test_the_canary_would_sing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(MALICIOUS["os.mkdir, protocol 2"])
    assert os.path.exists(CANARY)


@pytest.mark.parametrize("name", [name for name in MALICIOUS if not name.startswith(("huge", "deep", "unset"))])
def test_the_unpickler_refuses_without_the_scan_too(tmp_path, monkeypatch, name):
    # Two walls: here the second stands alone.
    import io

    monkeypatch.chdir(tmp_path)
    try:
        result = _Unpickler(io.BytesIO(MALICIOUS[name]), encoding="bytes").load()
    except Exception as error:
        result = error
    assert not os.path.exists(CANARY)
    assert not callable(result)


def test_a_malicious_file_in_the_data_set(tmp_path, records, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_python(tmp_path, records)
    padding = text(bytes(RECORDS * 3072)) + b"0"
    (tmp_path / "test_batch").write_bytes(b"\x80\x02" + padding + MALICIOUS["os.mkdir, protocol 2"][2:])
    with pytest.raises(ValueError, match=r"test_batch: refused, not an official CIFAR-10 file: it holds the opcode"):
        load_dataset("cifar10", root=tmp_path)
    assert not os.path.exists(CANARY)
