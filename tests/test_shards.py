"""A database in shards, on ranks and in files, is searched and measured as a whole one."""

import itertools

import numpy as np
import pytest
import torch
from ranks import in_ranks

import nhl_fast as nhl
from nhl_fast.core import ranks
from nhl_fast.core.arrays import read_ahead
from nhl_fast.retrieval.shards import cut_rows, evaluate_shards, search_shards
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
    ranks.PIECE = 50  # less than the curves hold
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


@pytest.mark.parametrize("ties", [name for name, rule in RULES.items() if not rule.ranked])
def test_what_ranks_exchange_does_not_grow_with_the_database(ties, monkeypatch):
    q, db, ql, dl = problem()
    sizes, gathered = [], ranks.gathered
    monkeypatch.setattr(ranks, "gathered", lambda own, group: sizes[-1].append(own.numel()) or gathered(own, group))
    for times in (1, 5):
        sizes.append([])
        codes, labels = db.repeat(times, 1), dl.repeat(times)
        evaluate_shards(q, ql, [(codes, labels)], lengths=LENGTHS, ties=ties)
        search_shards(q, [codes], 20)
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 3


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


@pytest.mark.parametrize("ties", list(RULES))
def test_a_mapped_file_is_measured_and_searched_in_a_stream(ties, tmp_path):
    q, db, ql, dl = problem()
    np.save(tmp_path / "codes.npy", db.numpy())
    np.save(tmp_path / "labels.npy", dl.to(torch.uint8).numpy())
    codes, labels = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("codes", "labels"))
    shards, said = cut_rows(codes, labels, 17), []
    assert [len(rows) for rows, _ in shards] == [17, 17, 17, 10]
    assert all(np.shares_memory(rows, codes) for rows, _ in shards)
    options = {"lengths": LENGTHS, "topk": 20, "ties": ties}
    found = evaluate_shards(q, ql, shards, progress=lambda *numbers: said.append(numbers), **options)
    same(found, nhl.evaluate_retrieval(q, db, ql, dl, **options))
    assert said == [(17, 61), (34, 61), (51, 61), (61, 61)]
    said.clear()
    found = search_shards(q, cut_rows(codes, rows=17), 30, progress=lambda *numbers: said.append(numbers))
    assert all(map(torch.equal, found, nhl.search(q, db, 30)))
    assert said == [(17, 61), (34, 61), (51, 61), (61, 61)]


def test_reading_ahead_leaves_what_is_read_as_it_is(tmp_path):
    rows = np.arange(70_000, dtype=np.uint8).reshape(-1, 7)
    np.save(tmp_path / "a.npy", rows)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for part in (mapped, mapped[4000:9000], mapped[:0], mapped[:, 3:5], mapped[::-1], mapped[::3, ::2]):
        read_ahead(part)
    for other in (rows, torch.from_numpy(rows), [1], None):
        read_ahead(other)
    assert np.array_equal(mapped, rows)


def test_values_are_checked_shard_by_shard():
    q, db, ql, dl = problem()
    wrong = dl.clone()
    wrong[-1] = -1
    with pytest.raises(ValueError, match="db_labels: expected non-negative class ids"):
        evaluate_shards(q, ql, cut_rows(db, wrong, 20), lengths=LENGTHS)
    with pytest.raises(TypeError, match="db_labels: expected integer class ids"):
        evaluate_shards(q, ql, cut_rows(db, dl.float(), 20), lengths=LENGTHS)
    with pytest.raises(TypeError, match="progress: expected a function"):
        search_shards(q, cut_rows(db), 3, progress=1)
    with pytest.raises(TypeError, match="progress: expected a function"):
        evaluate_shards(q, ql, cut_rows(db, dl), lengths=LENGTHS, progress=True)
    with pytest.raises(ValueError, match="labels: expected 61 rows"):
        cut_rows(db, dl[:5])
    with pytest.raises(ValueError, match="rows: expected an integer of at least 1"):
        cut_rows(db, rows=0)
