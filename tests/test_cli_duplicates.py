"""`nhl-fast duplicates`: any form of codes in, pairs out, on the screen and as a file."""

import json

import numpy as np
import pytest
from index_model import rows

import nhl_fast as nhl
from nhl_fast.cli.arguments import main

CODES = rows(90, 64, pool=40)
CODES[40:, 0] ^= np.arange(50, dtype=np.uint8)


def said(capsys, *arguments):
    assert main(["duplicates", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["packed", "bool", "uint64", "int8", "hex"])
@pytest.mark.parametrize("length", [None, 20])
def test_pairs(form, length, tmp_path, capsys):
    path = tmp_path / "codes.npy"
    if form == "hex":
        path = tmp_path / "codes.txt"
        path.write_text("".join(row.tobytes().hex() + "\n" for row in CODES))
    else:
        forms = {
            "packed": CODES,
            "bool": np.unpackbits(CODES, axis=1).astype(bool),
            "uint64": CODES.view(">u8")[:, 0],
            "int8": (CODES.astype(np.int16) - 128).astype(np.int8),
        }
        np.save(path, forms[form])
    more = [] if length is None else ["--length", length]
    wanted = list(zip(*(column.tolist() for column in nhl.near_duplicates(CODES, 3, length))))
    assert len(wanted) > 40
    text = said(capsys, path, "--radius", 3, *more)
    assert text.splitlines()[0] == f"{len(wanted)} pairs of 90 codes"
    assert text.splitlines()[1:21] == [f"{i} {j}: {d}" for i, j, d in wanted[:20]]
    assert text.splitlines()[21:] == [f"... {len(wanted) - 20} more: --out FILE.npz has all"]
    shown = json.loads(said(capsys, path, "--radius", 3, "--json", *more))
    assert list(zip(shown["i"], shown["j"], shown["distance"])) == wanted
    shown = json.loads(said(capsys, path, "--radius", 3, "--out", tmp_path / "pairs.npz", "--json", *more))
    assert shown == {"codes": 90, "radius": 3, "pairs": len(wanted), "out": str(tmp_path / "pairs.npz")}
    with np.load(tmp_path / "pairs.npz") as stored:
        assert [stored[name].dtype for name in ("i", "j", "distance")] == [np.int64, np.int64, np.int32]
        assert sorted(zip(*(stored[name].tolist() for name in ("i", "j", "distance")))) == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "pairs.npz"])


def test_no_pairs(tmp_path, capsys):
    np.save(tmp_path / "codes.npy", CODES[:1])
    assert said(capsys, tmp_path / "codes.npy", "--radius", 3) == "0 pairs of 1 codes\n"
    said(capsys, tmp_path / "codes.npy", "--radius", 3, "--out", tmp_path / "pairs.npz")
    with np.load(tmp_path / "pairs.npz") as stored:
        assert stored["distance"].shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npy", "--radius", "3"], "duplicates: codes: no such file: 'none.npy'\n"),
        (["codes.npy", "--radius", "-1"], "--radius: expected an integer of at least 0"),
        (["codes.npy", "--radius", "3", "--length", "65"], "length: expected at most 64"),
        (["codes.npy", "--radius", "3", "--out", "pairs.csv"], "--out: expected a name that ends in .npz"),
        (["same.npz", "--radius", "3", "--out", "same.npz"], "--out: same.npz is the file of the codes"),
        (["codes.npy", "--radius", "3", "--out", "none/pairs.npz"], "no such directory"),
        (["floats.npy", "--radius", "3"], "codes: expected packed uint8 rows"),
        (["words.txt", "--radius", "3"], "codes: expected hex strings"),
        (["binary.txt", "--radius", "3"], "codes: expected hex strings, one a line"),
    ],
)
def test_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("codes.npy", CODES)
    np.save("floats.npy", np.ones((3, 8)))
    np.savez("same.npz", codes=CODES)
    (tmp_path / "words.txt").write_text("zz\nyy\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    before = sorted(tmp_path.iterdir())
    assert main(["duplicates", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nhl-fast duplicates: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
