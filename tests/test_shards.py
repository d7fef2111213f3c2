"""A database in shards, on ranks and in files, is searched and measured as a whole one."""

import itertools

import numpy as np
import pytest
import torch
from ranks import in_ranks

import nhl_fast as nhl
from nhl_fast.retrieval.shards import evaluate_shards, search_shards
from nhl_fast.retrieval.ties import RULES

LENGTHS, CUTS = (5, 12, 24), (0, 7, 7, 30, 61)  # unequal shards, one of them empty


def problem(multi_hot=False):
    generator = torch.Generator().manual_seed(5)
    q, db = (torch.randint(0, 256, (n, 3), generator=generator, dtype=torch.uint8) for n in (9, 61))
    db[::3] = db[0]  # many ties
    ids = [torch.randint(0, 4, (n,), generator=generator) for n in (9, 61)]
    if multi_hot:
        ids = [torch.randint(0, 3, (len(t), 4), generator=generator) == 0 for t in ids]
    return q, db, *ids


def cut(rows, share=1, of=1):
    parts = [rows[a:b] for a, b in itertools.pairwise(CUTS)]
    return parts[(share - 1) * len(parts) // of : share * len(parts) // of]


def same(found, expected):
    torch.testing.assert_close(found.average_precision, expected.average_precision, rtol=1e-13, atol=1e-15)
    assert found.num_database == expected.num_database
    for b in LENGTHS:
        for by in ("rank", "radius"):
            for a, c in zip(found.pr_curve(b, by=by), expected.pr_curve(b, by=by)):
                np.testing.assert_allclose(a, c, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("topk", [None, 10])
@pytest.mark.parametrize("ties", list(RULES))
def test_shards_are_measured_as_one(ties, topk, multi_hot):
    q, db, ql, dl = problem(multi_hot)
    shards = list(zip(cut(db), cut(dl)))
    for denominator in ("retrieved", "relevant", "min"):
        options = {"lengths": LENGTHS, "topk": topk, "ties": ties, "denominator": denominator}
        same(evaluate_shards(q, ql, shards, **options), nhl.evaluate_retrieval(q, db, ql, dl, **options))


@pytest.mark.parametrize("k", [1, 8, 61])
@pytest.mark.parametrize("length", [5, None])
def test_shards_are_searched_as_one(k, length, tmp_path):
    q, db, *_ = problem()
    files = []
    for number, part in enumerate(cut(db)):
        np.save(tmp_path / f"{number}.npy", part.numpy())
        files.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r" if len(part) else None))
    for shards in (cut(db), files):
        for a, b in zip(search_shards(q, shards, k, length), nhl.search(q, db, k, length)):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def of_rank(rank, count):
    q, db, ql, dl = problem()
    shards = list(zip(cut(db, rank + 1, count), cut(dl, rank + 1, count)))
    out = [
        evaluate_shards(q, ql, shards, lengths=LENGTHS, topk=20, ties=ties, process_group="auto") for ties in RULES
    ]
    found = search_shards(q, [codes for codes, _ in shards], 20, 12, process_group="auto")
    said = []
    for k in (62, 3 if rank else "all"):
        try:
            search_shards(q, [codes for codes, _ in shards], k, process_group="auto")
        except (ValueError, TypeError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return out, [t.numpy() for t in found], said


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_search_and_measure_as_one(count):
    q, db, ql, dl = problem()
    for rank, (measured, found, said) in enumerate(in_ranks(count, of_rank)):
        for ties, result in zip(RULES, measured):
            same(result, nhl.evaluate_retrieval(q, db, ql, dl, lengths=LENGTHS, topk=20, ties=ties))
        for a, b in zip(found, nhl.search(q, db, 20, 12)):
            assert np.array_equal(a, b.numpy())
        assert said[0] == "ValueError: k: expected at most 61, the items in all shards, got 62"
        assert said[1].startswith("RuntimeError: process_group: rank 0 got" if rank else "TypeError: k: expected")


def test_bad_shards_are_refused():
    q, db, ql, dl = problem()
    with pytest.raises(TypeError, match="shards: expected a list of shards"):
        search_shards(q, db, 3)
    with pytest.raises(TypeError, match="shards: expected pairs of codes and labels"):
        evaluate_shards(q, ql, [db], lengths=LENGTHS)
    with pytest.raises(ValueError, match="db_labels"):
        evaluate_shards(q, ql, [(db, dl[:3])], lengths=LENGTHS)
    with pytest.raises(ValueError, match="at least one item in all shards"):
        evaluate_shards(q, ql, [(db[:0], dl[:0])], lengths=LENGTHS)
