import os
import sys
import tempfile
import threading
import weakref
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from index_model import Model, no_merging, rows

from nhl_fast.index import segments as index_segments
from nhl_fast.index.nested_index import NestedIndex


@pytest.fixture
def many_segments(monkeypatch):
    no_merging(monkeypatch)


class Changes(RuleBasedStateMachine):
    """Random changes, saves and searches against the model."""

    @initialize(
        length=st.sampled_from([5, 12, 48]), small=st.sampled_from([0, 4, 4096]), ratio=st.sampled_from([0, 2])
    )
    def start(self, length, small, ratio):
        self.old = index_segments._SMALL_ROWS, index_segments._RATIO, index_segments._BLOCK_BYTES
        index_segments._SMALL_ROWS, index_segments._RATIO, index_segments._BLOCK_BYTES = small, ratio, 8
        self.index, self.model = NestedIndex(length), Model(length)
        self.folder, self.moments = tempfile.TemporaryDirectory(), []

    def teardown(self):
        if hasattr(self, "old"):
            index_segments._SMALL_ROWS, index_segments._RATIO, index_segments._BLOCK_BYTES = self.old
            self.folder.cleanup()

    @rule()
    def remember(self):
        self.moments.append((self.index._state, dict(self.model.rows)))

    @invariant()
    def searches_under_way_see_no_change(self):
        for state, wanted in getattr(self, "moments", ()):
            found = {}
            for ids, codes in index_segments.ordered_blocks(state.segments):
                found.update(zip(ids.tolist(), codes))
            assert list(found) == sorted(wanted)
            assert all(np.array_equal(found[i], wanted[i]) for i in wanted)

    def some_ids(self, data):
        return data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), unique=True))

    @rule(n=st.integers(0, 9), seed=st.integers(0, 99))
    def add_running(self, n, seed):
        codes = rows(n, self.index.length, seed, pool=3)
        assert self.index.add(codes).tolist() == self.model.add(codes)

    @rule(data=st.data(), seed=st.integers(0, 99))
    def add_given(self, data, seed):
        free = st.integers(0, 60).filter(lambda i: i not in self.model.rows)
        ids = data.draw(st.lists(free, unique=True, max_size=9))
        codes = rows(len(ids), self.index.length, seed, pool=3)
        assert self.index.add(codes, ids).tolist() == self.model.add(codes, ids)

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def add_taken(self, data):
        taken = data.draw(st.sampled_from(sorted(self.model.rows)))
        with pytest.raises(ValueError, match=f"the index holds {taken}"):
            self.index.add(rows(2, self.index.length), [taken, 10**6])

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def remove(self, data):
        ids = self.some_ids(data)
        self.index.remove(ids)
        for id_ in ids:
            del self.model.rows[id_]

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def change_unknown(self, data):
        ids = [*self.some_ids(data), 10**6]
        with pytest.raises(KeyError, match="1000000"):
            self.index.remove(ids)
        with pytest.raises(KeyError, match="1000000"):
            self.index.update(ids, rows(len(ids), self.index.length))

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def update(self, data, seed):
        ids = self.some_ids(data)
        codes = rows(len(ids), self.index.length, seed, pool=3)
        self.index.update(ids, codes)
        self.model.rows.update(zip(ids, codes))

    @rule(mmap=st.booleans())
    def save_and_load(self, mmap):
        path = Path(self.folder.name) / "index"
        self.index.save(path)
        self.index = NestedIndex.load(path, mmap=mmap)

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def find(self, data, seed):
        length = data.draw(st.integers(1, self.index.length))
        k = data.draw(st.integers(1, len(self.model.rows)))
        allow = data.draw(st.none() | st.lists(st.integers(0, 60), max_size=20))
        queries = rows(2, self.index.length, seed, pool=2)
        self.model.check(self.index, queries, length, k, data.draw(st.integers(0, length)), allow)

    @invariant()
    def agree(self):
        if not hasattr(self, "index"):
            return
        ids = sorted(self.model.rows)
        assert len(self.index) == len(ids)
        assert self.index.ids.tolist() == ids
        assert [i for i in range(-1, 62) if i in self.index] == [i for i in ids if i < 62]
        wanted = np.array([self.model.rows[i] for i in reversed(ids)], np.uint8).tolist()
        assert self.index.reconstruct(ids[::-1]).tolist() == wanted


Changes.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
test_changes = Changes.TestCase


# ---------------------------------------------------------------------------------------------------- what it costs


def test_memory_of_ids_and_masks():
    index, n = NestedIndex(128), 10_000
    for part in np.array_split(rows(n, 128), 7):
        index.add(part)
    assert index.nbytes == 16 * n
    assert index.bytes_per_item == 16
    index.remove(range(0, n, 10))
    assert index.nbytes == 17 * n
    index.remove([i for i in range(n) if i % 10 and i % 3])
    assert index.bytes_per_item == 24
    given = NestedIndex(128)
    given.add(rows(n, 128), np.random.default_rng(0).permutation(n) + 5)
    assert given.bytes_per_item == 16
    given = NestedIndex(128)
    given.add(rows(n, 128), np.random.default_rng(0).permutation(n) * 2)
    assert given.bytes_per_item == 24


@pytest.mark.parametrize("order", ["running", "descending"])
def test_small_adds_copy_little(monkeypatch, order):
    """One at a time: few segments, and every row is copied a few times in all."""
    copied = 0

    def counted(segments, real=index_segments.merge):
        nonlocal copied
        copied += sum(segment.count for segment in segments)
        return real(segments)

    monkeypatch.setattr(index_segments, "merge", counted)
    monkeypatch.setattr(index_segments, "_SMALL_ROWS", 16)
    index, n = NestedIndex(8), 3000
    for i in range(n):
        index.add(np.array([[i % 256]], np.uint8), None if order == "running" else [n - i])
        assert len(index._state.segments) <= 6
    # Merging by a ratio of 8: at most 9 copies a level, log_8(3000) levels, and 16 for the small ones.
    assert copied <= (9 * np.log(n) / np.log(8) + 16) * n


def test_blocks_take_little_memory_beyond_the_codes(monkeypatch):
    """In small what holds for 100 million codes: the merges' working memory is bounded, the ids take none."""
    monkeypatch.setattr(index_segments, "_MERGE_BYTES", 2**16)
    monkeypatch.setattr(index_segments, "_BLOCK_BYTES", 2**12)
    block, blocks = rows(4096, 128), 128
    codes_bytes = block.nbytes * blocks
    held = peak = 0

    def freed(size):
        nonlocal held
        held -= size

    def counted(shape, dtype):
        nonlocal held, peak
        array = np.empty(shape, dtype)
        weakref.finalize(array, freed, array.nbytes)
        held += array.nbytes
        peak = max(peak, held)
        return array

    monkeypatch.setattr(index_segments, "empty", counted)
    index = NestedIndex(128)
    for _ in range(blocks):
        index.add(block)
    assert index.nbytes == held == codes_bytes
    assert peak <= 1.1 * codes_bytes
    assert len(index._state.segments) <= 40


def test_large_segments_leave_the_memory_when_freed():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    block, index = rows(2**16, 128), NestedIndex(128)
    index.add(block)
    start = resident()
    for _ in range(40):
        index.add(block)
    # Merges have made and freed several times the codes by now.
    assert resident() - start <= 1.5 * 40 * block.nbytes
    del index
    assert resident() - start <= 0.5 * 40 * block.nbytes


# --------------------------------------------------------------------------------------------------------- threads


def test_searches_see_whole_writes(many_segments):
    """One writer, several readers: what each search returns is the index at one moment.

    Block j holds 20 ids, all with one code, in one of two versions: 2j or 2j + 1 leading ones. Blocks come in
    order and go in order, so those present at one moment are neighbours, each whole and in one version.
    """
    size, blocks, length = 20, 30, 64
    bits = np.tri(length + 1, length, -1, dtype=np.uint8)
    codes = np.repeat(np.packbits(bits, axis=1)[:, None], size, axis=1)
    query = np.zeros((1, length // 8), np.uint8)
    index, failures, done, searches = NestedIndex(length), [], threading.Event(), 0

    def consistent(distances, ids):
        found = sorted(zip(ids.tolist(), distances.tolist()))
        assert len(found) % size == 0
        numbers = []
        for start in range(0, len(found), size):
            part = found[start : start + size]
            number = part[0][0] // size
            assert [i for i, _ in part] == list(range(number * size, (number + 1) * size))
            assert {d for _, d in part} in ({2 * number}, {2 * number + 1})
            numbers.append(number)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        order = list(zip(distances.tolist(), ids.tolist()))
        assert order == sorted(order)

    def read():
        nonlocal searches
        try:
            while not done.is_set():
                _, distances, ids = index.range_search(query, length)
                consistent(distances, ids)
                try:
                    index.search(query, size, 32)
                except ValueError as error:
                    assert "items in the index" in str(error)  # noqa: PT017
                searches += 1
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    readers = [threading.Thread(target=read) for _ in range(3)]
    try:
        for reader in readers:
            reader.start()
        for _ in range(10):
            for j in range(blocks):
                ids = range(j * size, (j + 1) * size)
                index.add(codes[2 * j], ids)
                for i in (j, j // 2, j // 3):
                    index.update(range(i * size, (i + 1) * size), codes[2 * i + (i + j) % 2])
            for j in range(blocks):
                index.remove(range(j * size, (j + 1) * size))
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]
    assert searches > 10
    assert len(index) == 0


@pytest.mark.parametrize("given", [False, True])
def test_a_moment_never_changes(given):
    """What a search works on stays as it is, whatever is written meanwhile."""
    index, codes = NestedIndex(16), rows(60, 16)
    index.add(codes, np.arange(60) * 3 if given else None)
    ids = index.ids.tolist()
    index.remove(ids[:2])
    segments = index._state.segments
    before = [(ids.tolist(), codes.tolist()) for ids, codes in index_segments.ordered_blocks(segments)]
    index.remove(ids[4:8])
    index.update(ids[8:10], codes[:2])
    index.add(codes[:9], [1000 + i for i in range(9)])
    index.remove(ids[10:])
    assert [(ids.tolist(), codes.tolist()) for ids, codes in index_segments.ordered_blocks(segments)] == before
    assert len(index) == 2 + 2 + 9


def test_writers_wait_for_each_other():
    index, failures = NestedIndex(32), []
    # Running ids start beyond the ones that the writers give.
    index.add(rows(1, 32), [10**8])

    def write(number):
        try:
            for i in range(40):
                given = index.add(rows(5, 32, number))
                index.add(rows(2, 32, number), [10**6 * number + i, 10**5 * number + i])
                index.remove(given[:2])
                index.update(given[2:], rows(3, 32, i))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(1, 4)]
    try:
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert len(index) == 1 + 3 * 40 * 5
    assert len(set(index.ids.tolist())) == len(index)
