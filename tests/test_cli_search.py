"""`nhl-fast search` in codes of other programs."""

import json

import numpy as np
import pytest
import torch

from nhl_fast.cli.arguments import main
from nhl_fast.retrieval.codes import pack_codes


@pytest.fixture
def files(tmp_path):
    """Packed rows as NumPy packs them: the first of 40 database rows are the queries."""
    bits = np.random.default_rng(0).integers(0, 2, (40, 16), dtype=np.uint8)
    np.save(tmp_path / "d.npy", np.packbits(bits, axis=1))
    np.save(tmp_path / "few.npy", np.packbits(bits[:4], axis=1))
    np.save(tmp_path / "q.npy", pack_codes(torch.from_numpy(bits[:3])).numpy())
    return tmp_path


def search(files, database, *options):
    return main(["search", "--queries", str(files / "q.npy"), "--codes", str(files / database), *options])


def test_codes_of_another_program(files, capsys):
    assert search(files, "d.npy", "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["distances"] == [[0], [0], [0]]


@pytest.mark.parametrize(("database", "found"), [("d.npy", 10), ("few.npy", 4)])
def test_ten_neighbours_or_all_that_there_are(files, database, found, capsys):
    assert search(files, database, "--json") == 0
    ids = json.loads(capsys.readouterr().out)["ids"]
    assert [len(set(row)) for row in ids] == [found] * 3


def test_a_number_that_is_given_is_kept_to(files, capsys):
    assert search(files, "few.npy", "-k", "10") == 1
    said = capsys.readouterr().err
    assert said == "nhl-fast search: -k: expected at most n = 4, the database's items, got 10\n"
