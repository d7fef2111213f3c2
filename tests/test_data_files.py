import errno
import os
import resource
import stat

import numpy as np
import pytest
import torch

from nhl_fast.core import files
from nhl_fast.core.files import as_path, atomic_write, existing_file, read_json, write_json


def only(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_atomic_write_replaces_in_one_step(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
        assert os.path.dirname(handle.name) == str(tmp_path)
    assert path.read_bytes() == b"new"
    assert only(tmp_path) == ["a.bin"]


def test_atomic_write_text_is_utf8(tmp_path):
    with atomic_write(tmp_path / "a.txt", "w") as handle:
        handle.write("é\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()


def test_atomic_write_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    with atomic_write(tmp_path / "a.safetensors") as handle:
        save_file({"x": torch.arange(3)}, handle.name)
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]
    assert only(tmp_path) == ["a.safetensors"]


def raise_after_writing(handle, error):
    handle.write(b"half")
    raise error


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), FileNotFoundError(2, "x", "other")])
def test_atomic_write_keeps_the_old_file_on_an_exception(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as handle:
        raise_after_writing(handle, error)
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


def test_atomic_write_beyond_the_size_limit(tmp_path):
    # A file size limit makes write() fail as a full disk does.
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught, atomic_write(path) as handle:
            handle.write(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert "nothing was changed" in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_atomic_write_full_disk_at_the_end(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match="nothing was changed") as caught, atomic_write(path) as handle:
        handle.write(b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


def test_atomic_write_follows_links_and_keeps_permissions(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    with atomic_write(tmp_path / "link") as handle:
        handle.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_atomic_write_new_file_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as handle:
            handle.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("path", "mode", "error", "match"),
    [
        ("", "wb", ValueError, "path: .*empty"),
        (3, "wb", TypeError, "path: .*int 3"),
        (b"x", "wb", TypeError, "path: "),
        (".", "wb", ValueError, "path: .*regular file"),
        ("/dev/null", "wb", ValueError, "path: .*/dev/null"),
        ("missing/a", "wb", FileNotFoundError, "no such directory.*missing"),
        ("a", "r", ValueError, "mode: .*'r'"),
    ],
)
def test_atomic_write_refuses(tmp_path, monkeypatch, path, mode, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match), atomic_write(path, mode):
        pytest.fail("the block must not start")
    assert only(tmp_path) == []


def test_json_round_trip(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": np.float32(0.5), "b": torch.arange(2), "c": [np.int64(3)], "d": tmp_path, "é": None})
    assert read_json(path) == {"a": 0.5, "b": [0, 1], "c": [3], "d": str(tmp_path), "é": None}
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), ([float("inf")], ValueError), ({1, 2}, TypeError)]
)
def test_write_json_refuses_and_leaves_the_old_file(tmp_path, value, error):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(error, match=r"a\.json: not written"):
        write_json(path, value)
    assert read_json(path) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_read_json_says_where_it_is_broken(tmp_path, content, match):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_existing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"features: no such file.*nothing"):
        existing_file(tmp_path / "nothing", "features")
    with pytest.raises(ValueError, match=r"features: .*regular file"):
        existing_file(tmp_path, "features")
    assert as_path("a/b").name == "b"
