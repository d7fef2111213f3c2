import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nhl_fast.centers.aligned import arrange, class_similarity
from nhl_fast.centers.balanced import balanced_columns
from nhl_fast.centers.make import KINDS, distance_bound, make_centers, min_distances, tie_centers

LENGTHS = (8, 16, 32, 64, 128)


def brute_distances(rows):
    """All pairwise Hamming distances, one pair at a time."""
    rows = [tuple(int(v) for v in r) for r in rows]
    return [sum(a != b for a, b in zip(p, q)) for p, q in itertools.combinations(rows, 2)]


def distinct(rows):
    return len({tuple(r.tolist()) for r in rows})


def occupancy(rows):
    return np.unique(rows.numpy(), axis=0, return_counts=True)[1]


length_sets = st.lists(st.integers(1, 70), min_size=1, max_size=4, unique=True).map(lambda b: tuple(sorted(b)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), length_sets, st.sampled_from(KINDS), st.integers(0, 2**40))
def test_shape_values_and_determinism(num_classes, lengths, kind, seed):
    centers = make_centers(num_classes, lengths, kind, seed=seed)
    again = make_centers(num_classes, lengths, kind, seed=seed)
    assert [tuple(c.shape) for c in centers] == [(num_classes, b) for b in lengths]
    for c, same in zip(centers, again):
        assert c.dtype == torch.float32
        assert c.is_contiguous()
        assert torch.equal(c.abs(), torch.ones_like(c))
        assert torch.equal(c, same)
    for found, b in zip(min_distances(centers, lengths), lengths):
        assert found <= distance_bound(num_classes, b)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), length_sets, st.integers(0, 100))
def test_nested_is_prefix_consistent_and_evenly_filled(num_classes, lengths, seed):
    centers = make_centers(num_classes, lengths, "nested", seed=seed)
    for c, b in zip(centers, lengths):
        assert torch.equal(c, centers[-1][:, :b])
    # Words of the first length are shared by as equal numbers of classes as possible.
    b = lengths[0]
    if 2**b <= num_classes:
        counts = occupancy(centers[0])
        assert len(counts) == 2**b
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nested_ten_classes(seed):
    assert all(d >= t for d, t in zip(nested_minima(10, LENGTHS, seed), (4, 8, 16, 32, 64)))


@pytest.mark.parametrize(
    ("num_classes", "least"),
    [
        (2, LENGTHS),
        (21, (2, 8, 16, 32, 64)),
        (64, (2, 6, 16, 32, 64)),
        (80, (2, 6, 13, 28, 64)),
        (100, (2, 6, 13, 28, 64)),
        (128, (2, 6, 13, 28, 64)),
        (1000, (0, 4, 10, 24, 56)),
    ],
)
def test_nested_guaranteed_minima(num_classes, least):
    assert all(d >= t for d, t in zip(nested_minima(num_classes, LENGTHS, 0), least))


def nested_minima(num_classes, lengths, seed):
    return min_distances(make_centers(num_classes, lengths, "nested", seed=seed), lengths)


def test_nested_reaches_the_bound_where_codes_of_that_size_are_known():
    assert nested_minima(16, (8, 15), 0) == [4, 8]  # extended Hamming, then simplex
    assert nested_minima(32, (16, 31), 0) == [8, 16]  # first-order Reed-Muller, then simplex
    assert nested_minima(8, (7,), 0) == [4]
    assert nested_minima(128, (64,), 0) == [32]


def test_nested_is_near_equidistant_for_ten_classes_from_16_bits_on():
    for c in make_centers(10, LENGTHS, "nested")[1:]:
        d = brute_distances(c)
        assert max(d) - min(d) <= 5


def test_nested_100_classes_are_distinct_at_8_bits():
    centers = make_centers(100, LENGTHS, "nested")
    assert [distinct(c) for c in centers] == [100] * 5
    assert min(brute_distances(centers[0])) == 2


def test_nested_1000_classes_share_256_words_evenly_and_then_part():
    centers = make_centers(1000, (8, 16, 128), "nested")
    counts = occupancy(centers[0])
    assert len(counts) == 256
    assert set(counts.tolist()) <= {3, 4}
    assert distinct(centers[1]) == 1000
    shared = (centers[0] @ centers[0].T == 8).triu(1)
    parted = (16 - centers[1] @ centers[1].T) / 2
    assert int(parted[shared].min()) >= 4


@pytest.mark.parametrize("lengths", [(5, 12, 48, 100), (1, 2, 3), (1024,), (100, 1024)])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 80])
def test_nested_odd_lengths(num_classes, lengths):
    centers = make_centers(num_classes, lengths, "nested")
    minima = min_distances(centers, lengths)
    for c, b, found in zip(centers, lengths, minima):
        bound = distance_bound(num_classes, b)
        assert found <= bound
        assert found >= 0.9 * bound - 2
        if 2**b >= num_classes:
            assert distinct(c) == num_classes


def test_hadamard_rows_then_negatives():
    rows = make_centers(16, (8,), "hadamard")[0]
    products = (rows[:8] @ rows[:8].T).int()
    assert torch.equal(products, 8 * torch.eye(8, dtype=torch.int32))
    assert torch.equal(rows[0], torch.ones(8))
    assert torch.equal(rows[8:], -rows[:8])
    assert torch.equal(make_centers(5, (8,), "hadamard", seed=9)[0], rows[:5])


def test_hadamard_fill_is_distinct_while_balanced_words_last():
    rows = make_centers(100, (8,), "hadamard")[0]
    # 70 balanced words of 8 bits, 14 of them among the 16 Hadamard rows, and two rows that are constant.
    assert distinct(rows) == 72
    assert occupancy(rows).max() == 2
    assert torch.equal(rows[16:].sum(1), torch.zeros(84))
    assert distinct(make_centers(72, (8,), "hadamard")[0]) == 72


def test_hadamard_with_the_usual_fill_collides_more():
    # The usual construction draws the rows beyond 2b with replacement.
    rng = np.random.default_rng(0)
    hadamard = make_centers(16, (8,), "hadamard")[0].numpy()
    counts = []
    for _ in range(50):
        fill = np.stack([rng.permutation([1.0] * 4 + [-1.0] * 4) for _ in range(84)])
        counts.append(distinct(np.concatenate([hadamard, fill])))
    expected = 16 + 56 * (1 - (1 - 1 / 70) ** 84)
    assert abs(np.mean(counts) - expected) < 1.5
    assert max(counts) < 72


def test_hadamard_lengths_contradict_each_other_for_ten_classes():
    eight, sixteen = make_centers(10, (8, 16), "hadamard")
    assert torch.equal(sixteen[8:, :8], -eight[8:])


@pytest.mark.parametrize(("kind", "length"), [("balanced", 8), ("balanced", 12), ("hadamard", 12)])
def test_balanced_rows_even_length(kind, length):
    rows = make_centers(40, (length,), kind)[0]
    assert torch.equal(rows.sum(1), torch.zeros(40))
    assert distinct(rows) == 40


def test_balanced_rows_odd_length():
    rows = make_centers(20, (5,), "balanced")[0]
    assert set(rows.sum(1).tolist()) == {-1.0, 1.0}
    assert distinct(rows) == 20 == 2 * math.comb(5, 2)
    assert sorted(occupancy(make_centers(50, (5,), "balanced")[0])) == [2] * 10 + [3] * 10
    assert make_centers(2, (1,), "balanced")[0].flatten().sort().values.tolist() == [-1, 1]


@pytest.mark.parametrize("kind", ["hadamard", "balanced", "random"])
def test_independent_kinds_do_not_depend_on_the_other_lengths(kind):
    alone = make_centers(30, (16,), kind, seed=3)[0]
    assert torch.equal(make_centers(30, (8, 16, 24), kind, seed=3)[1], alone)


@pytest.mark.parametrize("kind", ["balanced", "random", "nested"])
def test_seeds_differ(kind):
    a, b = (make_centers(20, (32,), kind, seed=s)[0] for s in (0, 1))
    assert not torch.equal(a, b)


def test_random_bits_are_fair():
    rows = make_centers(400, (256,), "random")[0]
    assert abs(float(rows.mean())) < 5 / math.sqrt(400 * 256)


def test_given_lists_and_prefixes():
    longest = make_centers(6, (4, 8), "random")[1]
    prefixes = make_centers(6, (4, 8), longest)
    assert torch.equal(prefixes[0], longest[:, :4])
    assert torch.equal(prefixes[1], longest)
    parts = make_centers(6, (4, 8), [longest[:, 4:].numpy().astype(np.int8), longest.double()])
    assert all(p.dtype == torch.float32 for p in parts)
    assert torch.equal(parts[0], longest[:, 4:])
    parts[1].zero_()
    prefixes[1].zero_()
    assert torch.equal(longest.abs(), torch.ones(6, 8))


ones = torch.ones(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, (8,), "nested"), ValueError, "num_classes: expected an integer of at least 1, got 0"),
        ((3.0, (8,), "nested"), TypeError, "num_classes"),
        ((3, (8, 8), "nested"), ValueError, "code_lengths: expected strictly increasing"),
        ((3, (), "nested"), ValueError, "code_lengths"),
        ((3, 8.0, "nested"), TypeError, "code_lengths"),
        ((3, (8,), "csq"), ValueError, "kind: expected one of 'hadamard', 'balanced', 'random', 'nested'"),
        ((3, (8,), None), TypeError, "kind: expected 'hadamard'"),
        ((3, (8,), [ones, ones]), ValueError, "kind: expected 1 tensors, one a code length, got 2"),
        ((3, (4, 8), [ones, ones]), ValueError, r"kind\[0\]: expected shape \(3, 4\), got .*\(3, 8\)"),
        ((4, (8,), [ones]), ValueError, r"kind\[0\]: expected shape \(4, 8\)"),
        ((3, (8,), [ones[0]]), ValueError, r"kind\[0\]: expected shape \(3, 8\)"),
        ((3, (8,), [0 * ones]), ValueError, r"kind\[0\]: expected only -1 and \+1.*2 \* bits - 1"),
        ((3, (8,), [ones * math.nan]), ValueError, r"kind\[0\]: expected only -1 and \+1"),
        ((3, (8,), [ones.bool()]), TypeError, r"kind\[0\]"),
        ((3, (8,), [ones.bool().numpy()]), TypeError, r"kind\[0\]"),
        ((3, (8,), [[[1] * 8] * 3]), TypeError, r"kind\[0\]: expected a tensor or an array"),
        ((3, (16,), ones), ValueError, r"kind: expected shape \(3, 16\)"),
        ((3, (4,), ones), ValueError, r"kind: expected shape \(3, 4\)"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        make_centers(*arguments)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (True, TypeError)])
def test_bad_seed(seed, error):
    with pytest.raises(error, match="seed"):
        make_centers(3, (8,), "random", seed=seed)
    with pytest.raises(error, match="seed"):
        tie_centers((8,), seed=seed)


@pytest.mark.parametrize("nested", [False, True])
def test_tie_centers(nested):
    ties = tie_centers((5, 12, 64), seed=4, nested=nested)
    assert [tuple(t.shape) for t in ties] == [(5,), (12,), (64,)]
    for t, again in zip(ties, tie_centers((5, 12, 64), seed=4, nested=nested)):
        assert t.dtype == torch.float32
        assert torch.equal(t.abs(), torch.ones_like(t))
        assert torch.equal(t, again)
    prefixes = [torch.equal(t, ties[-1][: len(t)]) for t in ties]
    assert all(prefixes) == nested


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 1000))
def test_min_distances_agree_with_brute_force(num_classes, length, seed):
    lengths = (length, length + 3)
    centers = make_centers(num_classes, lengths, "random", seed=seed)
    assert min_distances(centers, lengths) == [min(brute_distances(c)) for c in centers]
    assert min_distances(centers[1].numpy(), lengths) == [min(brute_distances(centers[1][:, :b])) for b in lengths]


def test_min_distances_of_many_classes_go_block_by_block():
    rows = make_centers(2500, (64,), "random")[0]
    rows[2300] = rows[100]
    rows[2300, :3] *= -1
    assert min_distances([rows], (64,)) == [3]
    assert min_distances([rows[:1]], (64,)) == [64]


def test_min_distances_bad_input():
    with pytest.raises(ValueError, match=r"centers\[1\]: expected shape \(3, 16\)"):
        min_distances([ones, ones], (8, 16))
    with pytest.raises(TypeError, match="centers: expected one"):
        min_distances("nested", (8,))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_distance_bound_holds_for_every_code(length):
    # Exhaustive: the largest code of each minimum distance among all subsets of {0, 1}^length.
    words = range(2**length)
    best = {}
    for subset in range(1, 2 ** len(words)):
        code = [w for w in words if subset >> w & 1]
        d = min((bin(a ^ b).count("1") for a, b in itertools.combinations(code, 2)), default=length)
        best[len(code)] = max(best.get(len(code), 0), d)
    for size, d in best.items():
        assert d <= distance_bound(size, length)
    assert distance_bound(2**length + 1, length) == 0


@pytest.mark.parametrize(
    ("num_classes", "length", "bound"),
    # Optimal codes: repetition, simplex, extended Hamming, first-order Reed-Muller, all words, even words.
    [(2, 9, 9), (8, 7, 4), (16, 8, 4), (32, 16, 8), (256, 8, 1), (128, 8, 2), (1, 5, 5), (2**60, 60, 1)],
)
def test_distance_bound_is_tight_for_optimal_codes(num_classes, length, bound):
    assert distance_bound(num_classes, length) == bound


def test_distance_bound_falls_with_classes_and_rises_with_length():
    for length in (5, 16, 33):
        bounds = [distance_bound(c, length) for c in range(1, 200)]
        assert bounds == sorted(bounds, reverse=True)
    for num_classes in (2, 10, 100, 1000):
        bounds = [distance_bound(num_classes, b) for b in range(1, 140)]
        assert bounds == sorted(bounds)


@pytest.mark.parametrize("num_classes", range(2, 13))
def test_few_classes_have_balanced_and_varied_columns(num_classes):
    longest = make_centers(num_classes, LENGTHS, "nested", seed=1)[-1]
    assert int(longest.sum(0).abs().max()) == num_classes % 2
    # Few splits of the classes (columns, up to their sign) come back while others are left.
    splits = len(balanced_columns(num_classes))
    columns = longest * longest[0]
    used = len(torch.unique(columns[:, :32], dim=1)[0])
    assert used >= 0.75 * min(splits, 32)
    assert len({tuple(c) for c in balanced_columns(num_classes).tolist()}) == splits


def test_ten_classes_reach_the_bound_of_every_length_alone():
    assert nested_minima(10, LENGTHS, 0) == [distance_bound(10, b) for b in LENGTHS]


def alike(num_classes, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num_classes, 3))
    return points @ points.T


@pytest.mark.parametrize("num_classes", [8, 10, 12, 13, 40])
def test_similarity_brings_similar_classes_together(num_classes):
    s = alike(num_classes)
    upper = np.triu_indices(num_classes, 1)

    def agreement(centers):
        return [np.corrcoef((c @ c.T).numpy()[upper], s[upper])[0, 1] for c in centers[:2]]

    plain = make_centers(num_classes, (8, 16, 64), "nested", seed=3)
    aligned = make_centers(num_classes, (8, 16, 64), "nested", seed=3, similarity=s)
    assert all(a > p + 0.1 for a, p in zip(agreement(aligned), agreement(plain)))
    for c, b in zip(aligned, (8, 16, 64)):
        assert torch.equal(c, aligned[-1][:, :b])
    again = make_centers(num_classes, (8, 16, 64), "nested", seed=3, similarity=torch.tensor(s))
    assert torch.equal(again[-1], aligned[-1])
    if num_classes > 12:  # the same rows, given to other classes
        assert min_distances(aligned, (8, 16, 64)) == min_distances(plain, (8, 16, 64))


def test_no_similarity_is_an_equal_similarity():
    plain = make_centers(10, (8, 32), "nested", seed=5)
    flat = make_centers(10, (8, 32), "nested", seed=5, similarity=np.zeros((10, 10)))
    assert torch.equal(plain[-1], flat[-1])


@pytest.mark.parametrize(
    ("kind", "similarity", "message"),
    [
        ("hadamard", np.eye(4), "similarity: serves centres of kind 'nested' only"),
        ("nested", np.eye(3), r"similarity: expected numbers of shape \(4, 4\)"),
        ("nested", np.triu(np.ones((4, 4))), "similarity: expected a symmetric matrix"),
        ("nested", np.full((4, 4), np.nan), "similarity: expected a symmetric matrix"),
    ],
)
def test_bad_similarity(kind, similarity, message):
    with pytest.raises(ValueError, match=message):
        make_centers(4, (8,), kind, similarity=similarity)


def test_swaps_agree_with_recomputed_objective():
    s, rows = alike(20), make_centers(20, (8, 24), "balanced", seed=1)[-1].double().numpy()

    def objective(r):
        return sum((s * (r[:, :b] @ r[:, :b].T / b))[np.triu_indices(20, 1)].sum() for b in (8, 24))

    better = arrange(rows, (8, 24), s)
    assert objective(better) > objective(rows)
    assert sorted(map(tuple, better)) == sorted(map(tuple, rows))
    for i in range(20):  # no swap is left that improves
        for j in range(i):
            order = np.arange(20)
            order[[i, j]] = order[[j, i]]
            assert objective(better[order]) <= objective(better) + 1e-6


@pytest.mark.parametrize("wide", [False, True])
def test_class_similarity_finds_pairs_of_classes(wide):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 400 if wide else 20, generator=generator).repeat_interleave(2, 0)
    labels = torch.arange(6).repeat(40)
    x = means[labels] + 0.7 * torch.randn(240, means.shape[1], generator=generator)
    s = class_similarity(x, labels, 7)
    assert torch.equal(s, s.T)
    assert s.dtype == torch.float64
    assert not s[6].any()
    for c in range(6):
        others = s[c, :6].clone()
        others[c] = -9
        assert others.argmax() == c ^ 1
    multi_hot = torch.nn.functional.one_hot(labels, 7)
    assert torch.allclose(class_similarity(x, multi_hot, 7), s)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, 4), "features: expected shape"),
        (torch.zeros(4), "features: expected shape"),
        (torch.full((4, 2), torch.inf), "features: expected finite numbers"),
    ],
)
def test_class_similarity_bad_input(features, message):
    with pytest.raises(ValueError, match=message):
        class_similarity(features, torch.zeros(len(features), dtype=torch.long), 2)
