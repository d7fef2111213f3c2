"""Fused pairwise losses against the reference: DSH, DHN, DBDH, LCDSH, DCH, and MDSH's pair term."""

import math

import pytest
import torch
from against import check, check_golden, fused
from launches import launches
from losses_cases import reference
from nhl_fast.kernels import pairs as kernels
from nhl_fast.kernels import similarity, tiles

from nhl_fast.core.labels import similarity as reference_similarity
from nhl_fast.losses import build
from nhl_fast.steps.fused import pairs, prepare

BANK = ("dsh", "dhn", "dbdh")
BATCH = ("lcdsh", "dch")
LENGTHS = (8, 16, 32, 64, 128)
GOLDEN = LENGTHS


def draw_labels(n, classes, multi, device):
    return (torch.rand(n, classes, device=device) < 0.3).long() if multi else torch.arange(n, device=device) % classes


def make(name, lengths, device, *, m=20, classes=4, multi=False, unwritten=3, scale=1.0, **options):
    """A loss in evaluation mode, its bank (if it has one) of m rows filled but for `unwritten`."""
    if name in BANK:
        options["num_train"] = m
    loss = build(name, num_classes=classes, code_lengths=lengths, **options).to(device).eval()
    if name in BANK and m > unwritten:
        rows = torch.randperm(m, device=device)[: m - unwritten]
        stored = scale * torch.randn(len(rows), lengths[-1], device=device)
        loss.bank.update(rows, stored, draw_labels(len(rows), classes, multi, device))
    return loss


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (33, 17)], ids=str)
@pytest.mark.parametrize("name", BANK + BATCH)
def test_equals_the_reference(name, shape, multi, device):
    n, m = shape
    classes = 40 if multi else 4
    loss = make(name, (5, 12, 48, 100), device, m=m, classes=classes, multi=multi, unwritten=m // 9)
    check(loss, torch.randn(n, 100, device=device), draw_labels(n, classes, multi, device))


@pytest.mark.parametrize("lengths", [(1,), LENGTHS, (7, 200)], ids=str)
@pytest.mark.parametrize("name", BANK + BATCH)
def test_lengths(name, lengths, device):
    loss = make(name, lengths, device)
    check(loss, torch.randn(6, lengths[-1], device=device), draw_labels(6, 4, False, device))


@pytest.mark.slow
@pytest.mark.parametrize("name", BANK + BATCH)
def test_long_codes(name, device):
    loss = make(name, (64, 1024), device)
    check(loss, torch.randn(5, 1024, device=device), draw_labels(5, 4, False, device))


@pytest.mark.slow
@pytest.mark.parametrize("name", BANK + BATCH)
def test_a_larger_bank(name, device):
    loss = make(name, LENGTHS, device, m=130)
    check(loss, torch.randn(50, 128, device=device), draw_labels(50, 4, False, device))


@pytest.mark.parametrize("name", BANK + BATCH)
@pytest.mark.parametrize("config", [(16, 64, 32, 128, 4), (64, 16, 16, 32, 8)], ids=str)
def test_tiles_give_the_same(name, config, device, monkeypatch):
    loss, u = make(name, (8, 70), device, m=40), torch.randn(40, 70, device=device)
    labels = draw_labels(40, 4, False, device)
    monkeypatch.setattr(kernels, "config", lambda *sizes: tiles.Tiles(*config, stages=1))
    check(loss, u, labels)


@pytest.mark.parametrize("generation", [8, 9, 10])
@pytest.mark.parametrize("precision", tiles.PRECISIONS)
def test_pairs_are_not_pipelined(precision, generation):
    """Triton 3.6 gives wrong gradients where they are."""
    for function in kernels.PAIR_FUNCTIONS.values():
        for columns in (64, 13_000):
            assert kernels.config(function, False, columns, precision, generation).stages == 1


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_split_of_the_columns_does_not_matter(parts, device, monkeypatch):
    loss, u = make("dsh", (8, 40), device, m=75), torch.randn(20, 40, device=device)
    monkeypatch.setattr(tiles, "splits", lambda *sizes: parts)
    check(loss, u, draw_labels(20, 4, False, device))


@pytest.mark.parametrize("name", BANK)
def test_balance_with_one_kind_of_pairs(name, device):
    u, same = torch.randn(5, 12, device=device), torch.zeros(5, dtype=torch.long, device=device)
    for labels in (same, same + 3):  # the bank holds ids 0, then 0 to 2
        classes = 1 if labels is same else 3
        loss = make(name, (4, 12), device, classes=4, unwritten=20, balance=True)
        loss.bank.update(
            torch.arange(15, device=device),
            torch.randn(15, 12, device=device),
            torch.arange(15, device=device) % classes,
        )
        check(loss, u, labels)


@pytest.mark.parametrize("name", BANK + BATCH)
def test_golden(golden, name, device, monkeypatch):
    if device.type == "cpu":  # large tiles are quicker in the interpreter
        large = tiles.Tiles(rows=64, columns=128, bits=64, width=256, warps=4)
        monkeypatch.setattr(kernels, "config", lambda *sizes: large)
    num_classes = golden["labels"].shape[1]
    loss = make(name, GOLDEN, device, m=len(golden["bank_u"]), classes=num_classes, unwritten=len(golden["bank_u"]))
    labels = torch.from_numpy(golden["labels"]).to(device)
    u = torch.from_numpy(golden["u"]).to(device)
    if name in BANK:
        bank = torch.from_numpy(golden["bank_u"]).to(device)
        loss.bank.update(
            torch.arange(len(bank), device=device), bank, torch.from_numpy(golden["bank_labels"]).to(device)
        )
        loss.train()
        labels = prepare.store(loss, u, labels, torch.from_numpy(golden["index"]).to(device))
    check_golden(golden, name, loss, u, labels, GOLDEN)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
@pytest.mark.parametrize("name", BANK + BATCH)
def test_extreme_outputs_stay_finite(name, scale, device):
    loss = make(name, (8, 64), device, m=16, scale=scale)
    u, labels = scale * torch.randn(16, 64, device=device), draw_labels(16, 4, False, device)
    values, deltas = fused(loss, u, labels)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, reference(loss, u, labels, torch.float64)[0].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("name", BANK + BATCH)
def test_no_negative_or_no_positive(name, same, device):
    loss = make(name, (8, 16), device, classes=30, unwritten=0)
    labels = torch.zeros(9, dtype=torch.long, device=device) if same else torch.arange(20, 29, device=device)
    if name in BANK and same:
        loss.bank.labels.zero_()
    check(loss, torch.randn(9, 16, device=device), labels)


@pytest.mark.parametrize("name", BANK + BATCH)
def test_labels_with_no_class(name, device):
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], device=device)
    check(make(name, (8, 16), device, classes=3, multi=True), torch.randn(4, 16, device=device), labels)


@pytest.mark.parametrize("name", BANK)
def test_an_empty_bank_leaves_the_penalty_alone(name, device):
    loss = make(name, (8, 16), device, m=5, unwritten=5)
    check(loss, torch.randn(3, 16, device=device), torch.tensor([0, 1, 2], device=device))


@pytest.mark.parametrize("name", BANK)
def test_rows_never_written_do_not_count(name, device):
    u, labels = torch.randn(4, 16, device=device), torch.tensor([0, 1, 2, 0], device=device)
    found = []
    for m in (50, 4):
        loss = make(name, (8, 16), device, m=m, unwritten=m).train()
        found.append(fused(loss, u, prepare.store(loss, u, labels, torch.arange(4, device=device))))
    torch.testing.assert_close(*found)


class TestStoringRows:
    @pytest.mark.parametrize("bank_multi", [False, True])
    @pytest.mark.parametrize("multi", [False, True])
    def test_as_the_bank_does(self, multi, bank_multi, device):
        index = torch.tensor([5, 0, 18, 7, 3], device=device)
        u, labels = torch.randn(5, 70, device=device), draw_labels(5, 4, multi, device)
        banks = []
        for fast in (False, True):
            torch.manual_seed(1)
            loss = make("dsh", (8, 70), device, multi=bank_multi).train()
            if fast:
                prepare.store(loss, u, labels, index)
            else:
                loss.prepare(u, labels, index)
            banks.append(loss.bank)
        for name in ("u", "labels", "written"):
            assert torch.equal(getattr(banks[0], name), getattr(banks[1], name)), name

    def test_bad_input(self, device):
        loss = make("dsh", (8, 16), device, m=4).train()
        u, labels = torch.randn(4, 16, device=device), torch.tensor([0, 1, 2, 0], device=device)
        for index, message in ((None, "index"), (torch.arange(3), "index"), (torch.arange(4.0), "index")):
            with pytest.raises((ValueError, TypeError), match=message):
                prepare.store(loss, u, labels, None if index is None else index.to(device))
        if device.type == "cpu":
            with pytest.raises(ValueError, match="from 0 to 3"):
                prepare.store(loss, u, labels, torch.arange(4) + 1)

    def test_opcheck(self, device):
        bank = (torch.zeros(6, 8, device=device), torch.zeros(6, dtype=torch.long, device=device))
        written, index = torch.zeros(6, dtype=torch.bool, device=device), torch.tensor([4, 1], device=device)
        torch.library.opcheck(
            prepare.store_rows, (*bank, written, index, torch.randn(2, 8, device=device), index % 3, 3)
        )


@pytest.mark.parametrize("classes", [1, 31, 32, 33, 80])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.int64])
def test_packed_labels_share_bits_where_rows_are_similar(classes, dtype, device):
    left, right = (torch.rand(n, classes, device=device) < 0.1 for n in (40, 35))
    a, b, words = similarity.comparable(left.to(dtype), right.to(dtype))
    assert (a.shape, b.shape, words) == ((40, words), (35, words), -(-classes // 32))
    assert torch.equal((a[:, None] & b[None] != 0).any(2), reference_similarity(left, right))
    ids = torch.arange(35, device=device) % classes
    a, b, _ = similarity.comparable(left.to(dtype), ids)
    assert torch.equal((a[:, None] & b[None] != 0).any(2), reference_similarity(left, ids))


@pytest.mark.parametrize("name", [*BATCH, "dtsh"])
def test_ids_are_only_compared(name, device):
    """One out of range is a class of its own, and no address is made of it."""
    loss, u = make(name, (8, 24), device), torch.randn(9, 24, device=device)
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0], device=device)
    far = torch.tensor([2**62, -1, 7, -(2**63)], device=device)[labels]
    for ours, expected in zip(fused(loss, u, far), fused(loss, u, labels)):
        assert torch.equal(ours, expected)


def test_count_of_similar_pairs(device):
    for labels in (draw_labels(130, 7, False, device), draw_labels(70, 40, True, device)):
        packed, _, words = similarity.comparable(labels, labels)
        expected = reference_similarity(labels, labels)
        counted = similarity.count_pairs(packed, packed, None, words).sum(0).tolist()
        assert counted == [expected.sum().item(), expected.numel()]


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("rows", [1, 67])
def test_count_of_similar_pairs_with_a_bank(rows, multi, device):
    labels, others = draw_labels(rows, 5, multi, device), draw_labels(210, 5, multi, device)
    written = torch.rand(210, device=device) < 0.7
    left, right, words = similarity.comparable(labels, others)
    counted = similarity.count_pairs(left, right, written, words).sum(0).tolist()
    expected = reference_similarity(labels, others) & written
    assert counted == [expected.sum().item(), rows * written.sum().item()]
    assert similarity.count_pairs(left, right, torch.zeros_like(written), words).sum() == 0


OPTIONS = ("absolute", 0.1, "no", "pairs", math.inf)  # penalty, weight, weigh, over, clamp


def arguments(device, add=False):
    u, others = torch.randn(5, 24, device=device), torch.randn(9, 24, device=device)
    labels, other_labels = torch.arange(5, device=device) % 3, torch.arange(9, device=device) % 3
    written = torch.arange(9, device=device) != 4
    given = (u, others, labels, other_labels, written, [8, 24], "contrastive", [2.0], *OPTIONS)
    return (torch.zeros(2, device=device), torch.zeros(5, 32, device=device), *given) if add else given


def test_opcheck(device):
    torch.library.opcheck(pairs.pairs, arguments(device))
    torch.library.opcheck(pairs.add_pairs, arguments(device, add=True))
    given = (*arguments(device)[:6], "likelihood", [], "log_cosh", 0.1, "halves", "pairs", math.inf, 16.0)
    torch.library.opcheck(pairs.pairs, given)


def problem(device, function="likelihood", constants=(), **options):
    """`arguments` with other options: penalty, weight of it, weigh, over, clamp, reference."""
    chosen = {"penalty": "none", "weight": 0.1, "weigh": "no", "over": "pairs", "clamp": math.inf, "reference": 0.0}
    return (*arguments(device)[:6], function, list(constants), *(chosen | options).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": -1.0}, "at least 0"),
        ({"reference": float("nan")}, "at least 0"),
        ({"reference": float("inf")}, "finite"),
        ({"function": "contrastive", "reference": 16.0}, "reference: contrastive takes none"),
        ({"function": "cauchy", "reference": 16.0}, "reference: cauchy takes none"),
        ({"function": "dsh"}, "function: expected one of contrastive, .*, got 'dsh'"),
        ({"penalty": "huber"}, "penalty: expected one of none, absolute, .*, got 'huber'"),
        ({"weigh": "some"}, "weigh: expected one of no, rarity, halves, got 'some'"),
        ({"over": "all"}, "over: expected one of pairs, similar, got 'all'"),
        ({"clamp": -1.0}, "clamp: expected a number above 0, got -1.0"),
        ({"constants": [1.0, 2.0, 3.0]}, "constants: .* at most 2, got 3"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message, device):
    with pytest.raises(ValueError, match=message):
        pairs.pairs(*problem(device, **options))


@pytest.mark.parametrize("weigh", ["no", "rarity", "halves"])
@pytest.mark.parametrize("over", ["pairs", "similar"])
@pytest.mark.parametrize("bank", [True, False], ids=["bank", "batch"])
@pytest.mark.parametrize("function", ["contrastive", "attraction"])
def test_every_option_serves_every_function(function, bank, over, weigh, device):
    """Clamped outputs, weighed pairs, either mean, the bank or the batch: in float64, from the definitions."""
    u, others, labels, other_labels, written = arguments(device)[:5]
    given = (u, others, labels, other_labels, written) if bank else (u, None, labels, None, None)
    found = pairs.pairs(*given, [8, 24], function, [0.7], "square", 0.1, weigh, over, 0.9)
    x = u.double().requires_grad_()
    similar = labels[:, None] == (other_labels if bank else labels)[None]
    inside = (written if bank else torch.ones(5, dtype=torch.bool, device=device))[None].expand_as(similar)
    number, alike = inside.sum().double(), (inside & similar).sum().double()
    share = {"no": 0, "rarity": 1, "halves": 0.5}[weigh] * number
    weights = torch.where(similar, share / alike, share / (number - alike)) if weigh != "no" else 1
    for k, b in enumerate((8, 24)):
        row = x.clamp(-0.9, 0.9)[:, :b]
        column = others.double().clamp(-0.9, 0.9)[:, :b] if bank else row
        if function == "contrastive":
            distance = (row[:, None] - column[None]).square().sum(2)
            loss = torch.where(similar, distance, (0.7 * b - distance).clamp(min=0)) / 2
        else:
            cosine = torch.nn.functional.normalize(row) @ torch.nn.functional.normalize(column).T
            loss = similar * torch.nn.functional.softplus((1 - cosine) / 2)
        value = (weights * loss * inside).sum() / (alike if over == "similar" else number)
        value = value + 0.1 * (row.abs() - 1).square().mean()
        (slope,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(found[0][k].double(), value.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(found[1].split([8, 24], 1)[k].double(), slope[:, :b], rtol=1e-4, atol=1e-7)


def test_adding_equals_computing(device):
    values, deltas, *given = arguments(device, add=True)
    values += 3
    deltas -= 2
    pairs.add_pairs(values, deltas, *given)
    expected = pairs.pairs(*given)
    torch.testing.assert_close(values, expected[0] + 3)
    torch.testing.assert_close(deltas, expected[1] - 2)


def test_runs_are_identical(device):
    given = arguments(device)
    for first, second in zip(pairs.pairs(*given), pairs.pairs(*given)):
        assert torch.equal(first, second)


def test_a_non_contiguous_input(device):
    u, *rest = arguments(device)
    wide = torch.stack([u, u], dim=2)[:, :, 0]
    assert not wide.is_contiguous()
    for first, second in zip(pairs.pairs(wide, *rest), pairs.pairs(u, *rest)):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "balance"), [*((n, False) for n in BANK + BATCH), *((n, True) for n in BANK)])
def test_launches(name, balance, device):
    """The pairs and the sum of their parts; a count of similar pairs to balance; packing of multi-hot labels."""
    for multi in (False, True):
        loss = make(name, (8, 16), device, multi=multi, **({"balance": True} if balance else {}))
        u, labels = torch.randn(5, 16, device=device), draw_labels(5, 4, multi, device)
        fused(loss, u, labels)
        found = launches(lambda: fused(loss, u, labels))  # noqa: B023
        assert found[: 1 if multi else 0] == (["pack_kernel"] if multi else [])
        counted = name == "dch" or balance
        assert found[multi:] == (["count_kernel"] if counted else []) + ["pair_kernel", "finish_kernel"]


def test_more_lengths_than_the_kernels_take_are_refused(device):
    u = torch.randn(2, 1025, device=device)
    labels = torch.zeros(2, dtype=torch.long, device=device)
    with pytest.raises(ValueError, match="1024 bits"):
        pairs.pairs(
            u, None, labels, None, None, [8, 1025], "likelihood", [], "log_cosh", 0.1, "no", "pairs", math.inf
        )


class TestJobs:
    @pytest.mark.parametrize("width", [32, 64, 128])
    @pytest.mark.parametrize("lengths", [(1,), (5, 12, 48, 100), LENGTHS, (8, 1024), (16, 17, 18)], ids=str)
    def test_every_gradient_column_belongs_to_one_job(self, lengths, width):
        owned, starts = [], []
        jobs = tiles.jobs(lengths, width)
        for k, first, padded, offset in jobs:
            assert offset == sum(lengths[:k])
            assert 16 <= padded <= width
            assert padded & (padded - 1) == 0
            starts += [k] if first == 0 else []
            owned += [offset + column for column in range(first, min(first + padded, lengths[k]))]
        assert starts == list(reversed(range(len(lengths))))  # the longest first
        assert sorted(owned) == list(range(sum(lengths)))

    def test_splits_cover_the_columns(self):
        device = torch.device("cpu")
        for row_tiles in (1, 3, 100):
            for columns in (1, 5, 17, 400):
                parts = tiles.splits(row_tiles, columns, device)
                per_part = -(-columns // parts)
                assert 1 <= parts <= columns
                assert (parts - 1) * per_part < columns <= parts * per_part
