import errno
import os
import resource
import struct
import zlib

import fuzz_index
import numpy as np
import pytest
import torch

from nhl_fast.index.nested_index import IndexFileError, NestedIndex


def rows(n, length, seed=0):
    return np.packbits(np.random.default_rng(seed).integers(0, 2, (n, length), dtype=np.uint8), axis=1)


def make(length=100, n=37, given=True):
    index = NestedIndex(length)
    index.add(rows(n, length), np.random.default_rng(1).permutation(1000)[:n] if given else None)
    return index


def equal(a, b):
    """The two indexes hold the same and go on alike."""
    assert (a.length, len(a)) == (b.length, len(b))
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.reconstruct(a.ids), b.reconstruct(b.ids))
    queries = rows(3, a.length, 9)
    if len(a):
        for one, other in zip(a.search(queries, len(a)), b.search(queries, len(b))):
            assert torch.equal(one, other)
    extra = rows(1, a.length, 5)
    assert torch.equal(a.add(extra), b.add(extra))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("length", "n"), [(5, 0), (5, 1), (12, 300), (48, 64), (100, 37), (128, 1000), (1024, 9)])
def test_what_was_saved_comes_back(tmp_path, length, n, given, mmap, verify):
    index = make(length, n, given)
    index.save(tmp_path / "a.index")
    equal(NestedIndex.load(tmp_path / "a.index", mmap=mmap, verify=verify), index)


def test_saving_sorts_and_drops_what_was_removed(tmp_path, monkeypatch):
    from nhl_fast.index import segments as index_segments

    # Small blocks, and no merging: many segments whose ids interleave.
    monkeypatch.setattr(index_segments, "_BLOCK_BYTES", 16 * 7)
    monkeypatch.setattr(index_segments, "_MERGE_BYTES", 0)
    monkeypatch.setattr(index_segments, "_MERGE_PART", 10**9)
    index, codes = NestedIndex(128), rows(500, 128)
    ids = np.random.default_rng(0).permutation(700)[:500]
    for start in range(0, 500, 50):
        index.add(codes[start : start + 50], ids[start : start + 50])
    assert len(index._state.segments) == 10
    index.remove(ids[::7])
    index.update(ids[1::7], codes[2::7][: len(ids[1::7])])
    index.save(tmp_path / "a.index")
    loaded = NestedIndex.load(tmp_path / "a.index")
    assert len(loaded._state.segments) == 1
    equal(loaded, index)


def test_removed_running_ids_stay_used(tmp_path):
    index = make(given=False)
    index.remove([35, 36])
    index.save(tmp_path / "a.index")
    loaded = NestedIndex.load(tmp_path / "a.index")
    assert loaded.add(rows(1, 100)).tolist() == [37]


@pytest.mark.parametrize("given", [True, False])
def test_layout(tmp_path, given):
    """The bytes of a small file, written out here."""
    index = NestedIndex(12)
    index.add(np.array([[0xAB, 0xC0], [0x01, 0x20]], np.uint8), [9, 4] if given else [7, 8])
    index.save(tmp_path / "a.index")
    ids = struct.pack("<qq", 4, 9) if given else b""
    codes = bytes([0x01, 0x20, 0xAB, 0xC0] if given else [0xAB, 0xC0, 0x01, 0x20])
    start = 192 if given else 128
    fields = [128 if given else 0, len(ids), start, 4, start + 4]
    header = b"\x89NHLI\r\n\x1a" + struct.pack("<II", 1, 128)
    header += struct.pack("<QQQQQ", int(given), 12, 2, 0 if given else 7, 10 if given else 9)
    header += struct.pack("<QQQQQ", *fields) + struct.pack("<II", zlib.crc32(ids), zlib.crc32(codes)) + bytes(20)
    header += struct.pack("<I", zlib.crc32(header))
    assert (tmp_path / "a.index").read_bytes() == (header + ids).ljust(start, b"\0") + codes


def test_codes_are_aligned(tmp_path):
    for n in range(1, 20):
        make(n=n).save(tmp_path / "a.index")
        assert fuzz_index.get((tmp_path / "a.index").read_bytes(), "codes_offset") % 64 == 0


def edited(field, value):
    def change(data):
        fuzz_index.put(data, field, value)
        fuzz_index.sign(data)

    return change


def flip(place):
    def change(data):
        data[place] ^= 4

    return change


def ids_edit(*values):
    def change(data):
        data[128 : 128 + 8 * len(values)] = struct.pack(f"<{len(values)}q", *values)
        fuzz_index.sign_sections(data)

    return change


def bits_beyond(data):
    data[-1] |= 1
    fuzz_index.sign_sections(data)


WRONG = {
    "empty": (lambda data: data.clear(), "not an index file"),
    "foreign": (lambda data: data.__setitem__(slice(0, 4), b"\x93NUM"), "not an index file"),
    "text mode": (lambda data: data.__setitem__(slice(5, 7), b"\n"), "not an index file"),
    "first bytes only": (lambda data: data.__delitem__(slice(5, None)), "truncated: 5 bytes"),
    "half a header": (lambda data: data.__delitem__(slice(100, None)), "truncated: 100 bytes"),
    "truncated": (lambda data: data.__delitem__(slice(-1, None)), "truncated: .* the header says"),
    "longer": (lambda data: data.append(0), "longer than it should be"),
    "newer": (edited("version", 3), "file format 3; this release of nhl_fast reads 1 and 2"),
    "no vectors": (edited("version", 2), "version in the header is 2"),
    "header bit": (flip(33), "checksum of the header"),
    "ids bit": (flip(130), "checksum of the ids|not strictly ascending|not ascending"),
    "codes bit": (flip(-3), "checksum of the codes"),
    "padding bit": (flip(128 + 8 * 37 + 1), "padding"),
    "unknown flag": (edited("flags", 3), "flags in the header is 3"),
    "no length": (edited("length", 0), "length|codes_bytes"),
    "huge count": (edited("count", 2**63), "ids_bytes in the header"),
    "offset out of range": (edited("codes_offset", 2**62), "codes_offset in the header"),
    "overlap": (edited("codes_offset", 128), "codes_offset in the header"),
    "reserved": (edited("vectors_offset", 1), "vectors_offset in the header"),
    "another checksum": (edited("vectors_crc", 1), "vectors_crc in the header"),
    "next id": (edited("next_id", 3), "ids"),
    "ids twice": (ids_edit(5, 5), "not strictly ascending"),
    "ids unsorted": (ids_edit(5, 4), "not strictly ascending"),
    "negative id": (ids_edit(-1), "not ascending"),
    "bits beyond the length": (bits_beyond, "bits set beyond its 100 bits"),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(tmp_path, name, mmap):
    path = tmp_path / "a.index"
    make().save(path)
    data = bytearray(path.read_bytes())
    change, message = WRONG[name]
    change(data)
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match=message) as caught:
        NestedIndex.load(path, mmap=mmap)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        NestedIndex.load(tmp_path / "none")
    with pytest.raises(ValueError, match="regular file"):
        NestedIndex.load(tmp_path)
    with pytest.raises(TypeError, match="path"):
        NestedIndex.load(3)
    with pytest.raises(FileNotFoundError):
        make().save(tmp_path / "none" / "a.index")


def test_unverified_loading_reads_next_to_nothing(tmp_path):
    """A sparse file of 64 GiB, which would not fit the memory nor be read in time."""
    path = tmp_path / "a.index"
    NestedIndex(128).save(path)
    header = bytearray(path.read_bytes())
    count = 2**32
    for field, value in {"count": count, "next_id": count, "codes_bytes": 16 * count}.items():
        fuzz_index.put(header, field, value)
    fuzz_index.put(header, "file_bytes", 128 + 16 * count)
    fuzz_index.sign(header)
    path.write_bytes(header)
    try:
        os.truncate(path, 128 + 16 * count)
    except OSError:
        pytest.skip("the file system holds no file of 64 GiB")
    index = NestedIndex.load(path, verify=False)
    assert len(index) == count
    assert index.reconstruct([0, 2**31, count - 1]).tolist() == [[0] * 16] * 3
    assert index.nbytes == 16 * count
    # A filter with few ids gathers their rows, so this search reads three of them.
    query = np.full((1, 16), 255, np.uint8)
    assert index.search(query, 2, length=5, allow=[count - 1, 7, 2**31])[1].tolist() == [[7, 2**31]]


def test_damage_unseen_without_verification(tmp_path):
    path = tmp_path / "a.index"
    make().save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(data)
    assert len(NestedIndex.load(path, verify=False)) == 37
    ids_edit(5, 900, 4)(data)
    path.write_bytes(data)
    index = NestedIndex.load(path, verify=False)
    assert index.search(rows(1, 100), 37)[1].shape == (1, 37)


def test_saving_unordered_ids_ends_in_an_error(tmp_path, monkeypatch):
    from nhl_fast.index import segments as index_segments

    monkeypatch.setattr(index_segments, "_BLOCK_BYTES", 13)
    path = tmp_path / "a.index"
    make().save(path)
    data = bytearray(path.read_bytes())
    data[136 : 136 + 8] = struct.pack("<q", 2**62)
    path.write_bytes(data)
    index = NestedIndex.load(path, verify=False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="verify=False"):
        index.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("given", [True, False])
def test_a_mapped_index_changes_in_memory_and_saves_over_its_file(tmp_path, given):
    path = tmp_path / "a.index"
    index = make(given=given)
    index.save(path)
    mapped = NestedIndex.load(path)
    old = path.read_bytes()
    for one in (index, mapped):
        one.add(rows(50, 100, 3), range(2000, 2050))
        one.remove(one.ids[:5])
        one.update(one.ids[7:9], rows(2, 100, 4))
    assert path.read_bytes() == old
    mapped.save(path)
    assert path.read_bytes() != old
    # The mapping of the replaced file stays readable.
    equal(mapped, index)
    equal(NestedIndex.load(path), NestedIndex.load(path, mmap=False))
    assert os.listdir(tmp_path) == ["a.index"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.index"
    make().save(path)
    old = path.read_bytes()
    big = make(1024, 1000, given=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="nothing was changed") as caught:
            big.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.index"]
    assert len(NestedIndex.load(path)) == 37


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_files(tmp_path, seed):
    outcomes = fuzz_index.run(250, seed, tmp_path)
    assert outcomes.total() == 250
    assert {outcome for _, outcome in outcomes} == {"loaded", "refused"}
