"""Filters of an index: ids, masks and prepared ones, beside a dict and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_model import Model, filled, no_merging, rows

import nhl_fast as nhl
from nhl_fast.index.segments import without_repeats


@pytest.fixture
def many_segments(monkeypatch):
    no_merging(monkeypatch)


def same_by_any_filter(index, model, allowed, backend="auto"):
    """The same results for ids, a mask, a mask as a tensor, and filters made of them."""
    queries, ids = rows(3, model.length, 7), index.ids.numpy()
    mask = np.isin(ids, allowed)
    forms = [allowed, mask, torch.from_numpy(mask), np.repeat(mask, 2)[::2]]
    for form in [*forms, *map(index.filter, forms)]:
        found = index.search(queries, 7, 24, form, backend=backend), index.range_search(queries, 9, 24, form)
        if form is allowed:
            model.check(index, queries, 24, 7, 9, allowed, backend)
            wanted = found
        for ours, right in zip(found, wanted):
            assert all(map(torch.equal, ours, right))
    assert len(index.filter(allowed)) == mask.sum()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("removed", [0, 9])
def test_forms_of_a_filter(interleaved, removed, many_segments):
    index, model = filled(48)
    if not interleaved:
        index, model = nhl.NestedIndex(48), Model(48)
        for part in np.array_split(rows(150, 48, pool=50), 5):
            model.add(part)
            index.add(part)
    if removed:
        gone = index.ids[::removed]
        index.remove(gone)
        for id_ in gone.tolist():
            del model.rows[id_]
    assert len(index._state.segments) == 5
    ids = index.ids.numpy()
    backwards = ids[::-3].tolist() * 2
    for allowed in (ids, ids[::2], ids[::40], ids[:0], ids[:31], backwards, [*backwards, 2**62]):
        same_by_any_filter(index, model, allowed)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_filters_of_random_indexes(data):
    length = data.draw(st.integers(24, 40))
    index, model = nhl.NestedIndex(length), Model(length)
    pool = rows(9, length)
    for size in data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)):
        codes = pool[data.draw(st.lists(st.integers(0, 8), min_size=size, max_size=size))]
        free = st.sampled_from(sorted(set(range(60)) - set(index.ids.tolist())))
        ids = data.draw(st.none() | st.lists(free, min_size=size, max_size=size, unique=True))
        model.add(codes, ids)
        index.add(codes, ids)
    most = max(0, len(index) - 7)
    gone = data.draw(st.lists(st.sampled_from(index.ids.tolist()), unique=True, max_size=most))
    index.remove(gone)
    for id_ in gone:
        del model.rows[id_]
    if len(index) >= 7:
        same_by_any_filter(index, model, data.draw(st.lists(st.integers(0, 70), max_size=40)))


def test_a_filter_is_of_one_state():
    index, model = filled(48)
    allowed = index.ids[::3].numpy()
    ready, mask = index.filter(allowed), np.ones(len(index), bool)
    held = index.filter(mask)
    mask[:] = False  # a filter has what it was made of
    assert (len(held), repr(ready)) == (len(index), f"Filter({len(allowed)} of {len(index)} items)")
    queries = rows(3, 48, 7)
    assert torch.equal(index.search(queries, 9, allow=held)[1], index.search(queries, 9)[1])
    copied = index.__copy__()
    assert torch.equal(copied.search(queries, 9, allow=ready)[1], index.search(queries, 9, allow=allowed)[1])
    other, _ = filled(48)
    index.remove(allowed[:1])
    for changed in (index, other):
        for call in (lambda i: i.search(queries, 9, allow=ready), lambda i: i.range_search(queries, 9, allow=ready)):
            with pytest.raises(ValueError, match="allow: this filter is of another index, or of this one before"):
                call(changed)
    model.check(copied, queries, 48, 9, 9, allowed)


BAD = {
    "too short": (np.ones(3, bool), ValueError, r"allow: expected a mask of shape \(4,\).*by ascending id"),
    "too many dimensions": (torch.ones(4, 1, dtype=torch.bool), ValueError, "allow: expected a mask of shape"),
    "masked": (np.ma.ones(4, bool), TypeError, "allow: expected a mask that is not masked itself"),
    "meta": (torch.ones(4, dtype=torch.bool, device="meta"), ValueError, "allow: expected a CPU tensor"),
    "list": ([True] * 4, TypeError, "allow: expected a sequence of integers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_filters(name):
    value, error, message = BAD[name]
    index = nhl.NestedIndex(16)
    index.add(rows(4, 16))
    for call in (index.filter, lambda allow: index.search(rows(1, 16), 1, allow=allow)):
        with pytest.raises(error, match=message):
            call(value)
    for none in (None, index.filter([1])):
        with pytest.raises(TypeError, match="allow: expected ids or a bool mask"):
            index.filter(none)


@given(st.lists(st.integers(-5, 5)))
def test_without_repeats(values):
    values = np.array(values, np.int64)
    assert np.array_equal(without_repeats(values), np.unique(values))
