"""An index on devices: equal to the one in main memory, to the last id. CPUs go the same ways, with small blocks."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from index_model import no_merging, rows

from nhl_fast import native
from nhl_fast.core import check
from nhl_fast.index import placement as index_placement
from nhl_fast.index.nested_index import NestedIndex
from nhl_fast.index.placed_search import nearest
from nhl_fast.index.placement import Placement, Site

CUDA = pytest.param(
    ["cuda"],
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")],
    id="cuda",
)
CPU = torch.device("cpu")


@pytest.fixture(params=[pytest.param(["cpu"], id="one"), pytest.param(["cpu"] * 3, id="three"), CUDA])
def devices(request, monkeypatch):
    monkeypatch.setattr(index_placement, "_LEAST_ROWS", 8)
    return request.param


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.cpu(), other)


def agree(index, other, seed=0, allow=None):
    """Both give the same at several k, radii and prefixes."""
    queries = rows(4, index.length, seed)
    for length in sorted({max(1, index.length // 3), index.length}):
        for k in {min(1, len(index)), min(7, len(index)), len(index)} - {0}:
            same(other.search(queries, k, length, allow), index.search(queries, k, length, allow))
        for radius in (0, length // 3, length):
            found = other.range_search(queries, radius, length, allow)
            same(found, index.range_search(queries, radius, length, allow))


def filled(length, n=400, seed=0):
    """Runs and scattered ids, removals in both; full of ties."""
    index = NestedIndex(length)
    codes, ids = rows(n, length, seed, pool=n // 4), np.random.default_rng(seed).permutation(3 * n)[:n] + 2 * n
    half = n // 2
    index.add(codes[:half])
    index.add(codes[half:], ids[half:])
    index.remove(np.arange(3, half, 5))
    index.remove(ids[half::9])
    return index


# From all of it streamed to all of it resident; 12 bits, 400 items take about 2,600 bytes.
BUDGETS = [64, 500, 1500, 2600, 10**6, None]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("length", [12, 64, 100])
@pytest.mark.parametrize("segments", ["merged", "apart"])
def test_search_and_radius(length, budget, segments, devices, monkeypatch):
    if segments == "apart":
        no_merging(monkeypatch)
    index = filled(length)
    placed = index.to(devices, device_bytes=budget)
    agree(index, placed)
    assert len(placed._state.segments) == (1 if segments == "merged" else 2)
    assert budget is None or placed.device_nbytes <= budget * len(devices)
    if budget not in BUDGETS[2:4]:  # these depend on the length and the number of devices
        assert (placed._held[1].streamed > 0) == (budget in BUDGETS[:2])


@pytest.mark.parametrize("budget", [64, 1500, None])
def test_filters(budget, devices, monkeypatch):
    no_merging(monkeypatch)
    index = filled(12)
    placed, ids = index.to(devices, device_bytes=budget), index.ids
    mask = torch.rand(len(index), generator=torch.Generator().manual_seed(0)) < 0.6
    none = torch.zeros(len(index), dtype=torch.bool)
    for allow in (ids[:1], ids[::40], ids[::3], ids, [], [10**6, 3, 3], mask, mask.numpy(), none, ~none):
        agree(index, placed, allow=allow)
        agree(index, placed, allow=placed.filter(allow))
        agree(index, placed, allow=index.filter(allow))  # made for main memory, of the same moment
    old = placed.filter(mask)
    placed.remove(ids[:1])
    with pytest.raises(ValueError, match="allow: this filter is of another index"):
        placed.search(rows(1, 12), 1, allow=old)


CHANGES = ["add", "add ids", "remove", "update", "merge", "renumber", "compact", "reset", "copy", "filter"]


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(n, marks=pytest.mark.slow) for n in range(24, 60))])
def test_changes(seed, devices):
    generator = np.random.default_rng(seed)
    length, budget = int(generator.choice([5, 32, 70])), int(generator.choice([40, 300, 2000, 10**6]))
    often = [3, 3, 2, 2, 1, 1, 1, 0.2, 1, 2]
    index, placed = NestedIndex(length), NestedIndex(length, devices, device_bytes=budget)
    for change in generator.choice(CHANGES, 14, p=np.divide(often, sum(often))):
        seed = int(generator.integers(2**20))
        results = [apply(one, change, seed) for one in (index, placed)]
        assert torch.equal(*map(torch.as_tensor, results))
        assert placed.device_nbytes <= budget * len(devices)
        if change == "copy":
            index, placed = index.copy(), placed.copy()
        allow = generator.random(len(index)) < generator.random() if change == "filter" else None
        agree(index, placed, seed, allow)
    assert torch.equal(index.ids, placed.ids)
    assert torch.equal(index.reconstruct(index.ids), placed.reconstruct(index.ids))


def apply(index, change, seed):
    """One change, a function of the seed and what the index holds."""
    generator = np.random.default_rng(seed)
    n, ids = int(generator.integers(0, 60)), index.ids.numpy()
    codes = rows(n, index.length, seed, pool=n // 3 + 1)
    some = generator.permutation(ids)[: min(n, len(ids))]
    if change == "add":
        return index.add(codes)
    if change == "add ids":
        return index.add(codes, index._state.next_id + generator.permutation(3 * n)[:n])
    if change == "remove":
        return index.remove(some)
    if change == "update":
        index.update(some, rows(len(some), index.length, seed))
    if change in ("merge", "renumber"):
        other = NestedIndex(index.length)
        other.add(codes, index._state.next_id + 2 * np.arange(n))
        return index.merge(other, renumber=change == "renumber")
    if change == "compact":
        index.compact()
    if change == "reset":
        index.reset()
    return len(index)


def test_what_a_removal_leaves_is_not_copied_again(devices):
    placed = filled(64).to(devices)
    before = {piece.rows.data_ptr() for pieces in placed._held[1].pieces for piece in pieces}
    placed.remove(placed.ids[:5])
    assert {piece.rows.data_ptr() for pieces in placed._held[1].pieces for piece in pieces} == before


def test_room_that_a_compaction_makes_is_used(devices, monkeypatch):
    no_merging(monkeypatch)
    index = filled(64)
    budget = 2 * 400 * 17 // len(devices)
    placed = index.to(devices, device_bytes=budget)
    for seed in range(3):
        placed.compact()
        index.compact()
        assert placed.device_nbytes <= budget * len(devices)
        agree(index, placed, seed)
        placed.remove(placed.ids[:20])
        index.remove(index.ids[:20])
    assert placed._held[1].streamed < len(placed)


def test_the_shards_are_of_a_size():
    index = NestedIndex(64)
    index.add(rows(100_000, 64))
    index.add(rows(50, 64))
    placed = index.to(["cpu"] * 4)._held[1]
    used = [placed.used(site) for site in placed.placement.sites]
    assert max(used) - min(used) <= 50 * 9
    assert sum(used) == placed.nbytes == 100_050 * 9


def test_shapes_and_outputs(devices):
    index = filled(12)
    placed, queries = index.to(devices), rows(3, 12)
    home = placed.devices[0]
    for one in (queries, queries[0], torch.from_numpy(queries).to(home), np.unpackbits(queries, axis=1)[:, :12] == 1):
        for beyond, k in (("raise", 3), ("cut", 10**4), ("pad", 10**3)):
            found = placed.search_and_reconstruct(one, k, beyond=beyond)
            same(found, index.search_and_reconstruct(torch.as_tensor(one).cpu(), k, beyond=beyond))
            assert all(part.device == home for part in found)
    found, expected = (one.search(queries, 3, output="numpy") for one in (placed, index))
    assert all(isinstance(a, np.ndarray) and (a == b).all() for a, b in zip(found, expected))
    empty = NestedIndex(12).to(devices)
    agree(NestedIndex(12), empty)
    assert empty.search(queries, 2, beyond="pad")[1].tolist() == [[-1, -1]] * 3
    same(placed.search(queries[:0], 3), index.search(queries[:0], 3))
    same(placed.range_search(queries[:0], 3), index.range_search(queries[:0], 3))
    added = placed.add(torch.from_numpy(queries).to(home))
    assert torch.equal(placed.reconstruct(added), torch.from_numpy(queries))


def test_files_copies_and_pickles(devices, tmp_path):
    index = filled(100)
    placed = index.to(devices, device_bytes=2000)
    for name, one in (("plain", index), ("placed", placed)):
        one.save(tmp_path / name)
        one.export(tmp_path / f"{name}.npz")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "placed").read_bytes()
    loaded = NestedIndex.load(tmp_path / "placed", device=devices, device_bytes=2000)
    agree(index, loaded)
    assert loaded.devices == placed.devices
    for made in (copy.copy, copy.deepcopy, NestedIndex.copy):
        other = made(placed)
        assert other.devices == placed.devices
        other.remove(other.ids[:3])
        assert len(other) == len(placed) - 3
        agree(index, placed)
    back = pickle.loads(pickle.dumps(placed))
    assert back.devices == (CPU,)
    agree(back, placed)
    home = placed.to("cpu")
    assert (home.devices, home.device_nbytes, home._held[1]) == ((CPU,), 0, None)
    agree(home, index)
    home.remove(home.ids)
    agree(index, placed)  # neither changes with the other
    assert (
        repr(placed) == f"NestedIndex(length=100, items={len(index)}, device={', '.join(map(str, placed.devices))})"
    )
    assert repr(home) == "NestedIndex(length=100, items=0)"


def test_a_search_sees_its_moment(devices):
    index = filled(64)
    placed = index.to(devices)
    held, queries = placed._held, torch.from_numpy(rows(3, 64))
    placed.reset()
    same(nearest(held[1], held[1].parts, queries, 5, 64, "auto"), index.search(queries, 5))


@pytest.mark.parametrize("budget", [200, None])
def test_searches_beside_a_writer(budget, devices):
    placed, codes = NestedIndex(32, devices, device_bytes=budget), rows(200, 32, 5)
    placed.add(codes[:40])
    wrong, over = [], threading.Event()

    def search():
        while not over.is_set():
            distances, ids = placed.search(codes[:40], 1)
            if distances.any() or not torch.equal(ids.cpu()[:, 0], torch.arange(40)):
                wrong.append(ids)

    searcher = threading.Thread(target=search)
    searcher.start()
    for start in range(40, 200, 8):
        added = placed.add(codes[start : start + 8])
        placed.remove(added[::3])
        placed.compact()
    over.set()
    searcher.join()
    assert not wrong


@pytest.mark.parametrize("segments", ["merged", "apart"])
def test_resident_codes_are_searched_without_a_wait(segments, monkeypatch):
    """On the meta device whatever needs a value raises."""
    if segments == "apart":
        no_merging(monkeypatch)
    monkeypatch.setattr(check, "present", lambda value, name: value)  # public calls refuse such tensors
    index = filled(100)
    sites = tuple(Site(torch.device("meta"), 2**40) for _ in range(2))
    placed = Placement(sites, 2**20).place(index._state)
    assert placed.streamed == 0
    allowed = index.filter(index.ids[::2])
    queries = torch.from_numpy(rows(3, 100)).to("meta")
    for parts in (placed.parts, allowed.parts(placed), index.filter(index.ids[:3]).parts(placed)):
        distances, ids = nearest(placed, parts, queries, 3, 50, "reference")
        assert (distances.shape, ids.shape, distances.device.type) == ((3, 3), (3, 3), "meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(ids[0, 0])


def test_backends_by_name(devices):
    index = filled(100)
    placed, queries = index.to(devices), rows(3, 100)
    same(placed.search(queries, 5, backend="reference"), index.search(queries, 5))
    other = "cuda" if devices[0] == "cpu" else "cpp"
    with pytest.raises(ValueError, match="backend: search runs here on"):
        placed.search(queries, 5, backend=other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda"), ["cuda:0", "cuda:1"]])
def test_no_cuda_device(device, tmp_path):
    index = filled(12)
    index.save(tmp_path / "index")
    for call in (
        lambda: index.to(device),
        lambda: NestedIndex(12, device),
        lambda: NestedIndex.load(tmp_path / "index", device=device),
    ):
        with pytest.raises(RuntimeError, match=r"^device: 'cuda.*' was asked for, but PyTorch sees no CUDA device"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": None}, TypeError, "device: expected a device such as"),
        ({"device": 0.5}, TypeError, "device: expected a device"),
        ({"device": "gpu"}, ValueError, "device: expected a device"),
        ({"device": "meta"}, ValueError, "device: expected the CPU or a CUDA device, got 'meta'"),
        ({"device": []}, ValueError, "device: expected at least one device"),
        ({"device": ["cpu", None]}, TypeError, "device: expected a device such as"),
        ({"device": "cpu", "device_bytes": 7}, ValueError, "device_bytes: expected an integer of at least 8"),
        ({"device": "cpu", "device_bytes": "8"}, TypeError, "device_bytes: expected an integer"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message):
    index = filled(12)
    with pytest.raises(error, match=f"^{message}"):
        index.to(**arguments)
    with pytest.raises(ValueError, match="device_bytes: expected a device beside it"):
        NestedIndex(12, device_bytes=100)


def test_tensors_of_other_devices():
    placed = filled(12).to(["cpu"])
    with pytest.raises(ValueError, match="queries: expected values, got a tensor on the meta device"):
        placed.search(torch.zeros(1, 2, dtype=torch.uint8, device="meta"), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason=f"CUDA library: {native.cuda_status()[1]}")
def test_larger_than_its_memory():
    """Several real blocks, on a card."""
    index = NestedIndex(128)
    index.add(rows(600_000, 128))
    index.add(rows(100_000, 128, 1), 10**6 + 3 * np.arange(100_000))
    for budget in (2 * 2**20, 6 * 2**20, None):
        agree(index, index.to("cuda", device_bytes=budget))


@pytest.mark.parametrize("budget", [64, 1500, None])
@pytest.mark.parametrize("segments", ["merged", "apart"])
def test_stages(segments, budget, devices, monkeypatch):
    if segments == "apart":
        no_merging(monkeypatch)
    index = filled(100)
    placed = index.to(devices, device_bytes=budget)
    generator = torch.Generator().manual_seed(0)
    queries, vectors = torch.from_numpy(rows(4, 100, 5)), torch.randn(len(index), 9, generator=generator)
    outputs, mine = torch.randn(4, 100, generator=generator), torch.randn(4, 9, generator=generator)
    ids = index.ids
    at = placed.devices[0]
    for allow in (None, ids[::3], ids[:7], ids[:0]):
        for funnel in (((16, 40),), ((16, 40), (48, 9))):
            for rescored in (None, outputs, (mine, vectors)):
                options = {"allow": allow, "funnel": funnel}
                expected = index.search(queries, 5, rescore=rescored, **options)
                if isinstance(rescored, torch.Tensor):
                    rescored = rescored.to(at)
                found = placed.search(queries.to(at), 5, rescore=rescored, **options)
                assert found[1].device == at
                same(found, expected)


def test_kept_vectors_rank_what_a_device_found(devices):
    index, generator = NestedIndex(64), torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 9, generator=generator)
    for part in range(0, 300, 100):
        index.add(rows(100, 64, part), np.arange(part, part + 100) * 3, vectors=vectors[part : part + 100])
    index.remove([3, 300])
    queries, mine = rows(4, 64, 1), torch.randn(4, 9, generator=generator)
    options = {"funnel": ((64, 30),), "rescore": (mine, None)}
    same(index.to(devices, device_bytes=1500).search(queries, 5, **options), index.search(queries, 5, **options))
    with pytest.raises(ValueError, match="rescore: expected 4 rows"):
        index.to(devices).search(queries, 5, **{**options, "rescore": (mine[:2], None)})
