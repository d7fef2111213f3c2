"""The C++ training step against the plain formulas in float64, at every instruction level of this machine."""

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL, each_isa  # noqa: F401
from numeric import Expected
from step_cases import check, make, run, small

from nhl_fast.core.prefixes import pad, weighted_sum
from nhl_fast.head.distillation import distillation_losses
from nhl_fast.head.objective import NestedObjective
from nhl_fast.head.weighting import dominance_dots, dominance_weights
from nhl_fast.losses import REGISTRY

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

LENGTHS = (8, 16, 32, 64, 128)


@pytest.mark.numeric
@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("shape", [(64, 96), (37, 70)], ids=str)
@pytest.mark.parametrize("name", list(REGISTRY))
def test_step_equals_the_reference(isa, name, shape, multi):
    if multi and name == "shcir":
        pytest.skip("single-label only")
    check(make(name, *shape, LENGTHS, multi))


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("n", "lengths"),
    [
        *((1, lengths) for lengths in [(1,), (7, 1024)]),
        *((3, lengths) for lengths in [(5, 12, 48, 100), (3, 17), (7, 1024)]),
        *((130, lengths) for lengths in [(1,), (5, 12, 48, 100)]),
        *(pytest.param(1, lengths, marks=pytest.mark.slow) for lengths in [(5, 12, 48, 100), (3, 17)]),
        *(pytest.param(130, lengths, marks=pytest.mark.slow) for lengths in [(3, 17), (7, 1024)]),
        pytest.param(3, (1,), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_odd_lengths_and_batches(isa, n, lengths):
    for name in REGISTRY:
        rows = min(n, 66) if name in ("dtsh", "dsh") else n  # all triplets, and a cube of pairs and bits
        native = check(make(name, rows, 9, lengths))
        assert ("dots" in native) == (len(lengths) > 1)


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["csq", "dhn", "dtsh"])
@pytest.mark.parametrize(
    "options",
    [
        {"distill_weight": 0},
        {"distill_weight": 0.3},
        {"weighting": "uniform"},
        {"weighting": (1.0, 0.0, -2.0), "distill_weight": 0},
    ],
    ids=str,
)
def test_weights_and_distillation(isa, name, options):
    check(make(name, 20, 33, (8, 20, 64), **options), scale=-3.0)


@pytest.mark.numeric
@pytest.mark.parametrize(("n", "d"), [(20, 300), (300, 24), (300, 700)])
def test_dots_and_weights_by_their_definition(isa, n, d):
    """Both ways to the dots (features' Gram matrix, products with the features), several blocks of rows."""
    lengths, conflicts = (5, 8, 40), 0
    for seed in range(4):
        torch.manual_seed(seed)
        u, features, deltas = torch.randn(n, 40), torch.randn(n, d), torch.randn(n, 53)
        values = torch.rand(3)
        gram = features @ features.T
        padded = pad(deltas, lengths).double()

        def by_definition(padded=padded, features=features, values=values):
            dots = dominance_dots(padded, features.double(), lengths)
            weights = dominance_weights(dots)
            total = (weights * values.double()).sum()
            return {"dots": dots, "weights": weights, "du": weighted_sum(padded, weights), "total": total}

        right = Expected(by_definition)
        conflicts += int((right.truth["dots"] < 0).sum())
        for matrix in (gram, torch.empty(0, 0)):
            total, distill, weights, dots, du = torch.ops.nhl_fast.step_combine(
                u, features, matrix, values, deltas, lengths, 0.0, None
            )
            right.check({"dots": dots, "weights": weights, "du": du, "total": total})
            assert not distill.any()
    assert conflicts > 0


@pytest.mark.numeric
def test_long_sums_of_one_sign_stay_accurate(isa):
    """131,072 positive terms: no lane adds up more than some 64 of them before they go into a double.

    64 additions round by 64 u = 4e-6 at the worst and by 5 u = 3e-7 in the mean square, which the other lanes and
    pieces make smaller; thousands of them erred by 3e-6.
    """
    n, bits, lengths = 64, 2048, [8, 2048]
    for seed in range(4):
        torch.manual_seed(seed)
        deltas, gram, u = 0.5 + torch.rand(n, 8 + bits), 1 + torch.rand(n, n), 0.5 + torch.rand(n, bits)
        gram = gram + gram.T
        dots = torch.ops.nhl_fast.step_combine(u, u, gram, torch.rand(2), deltas, lengths, 0.0, None)[3].double()
        short, long = deltas.double().split([8, bits], dim=1)
        for found, (a, b) in (
            (dots[0, 0], (short, short)),
            (dots[0, 1], (short, long[:, :8])),
            (dots[1, 1], (long,) * 2),
        ):
            assert found.item() == pytest.approx((a * (gram.double() @ b)).sum().item(), rel=4e-7)
        centers = torch.randn(1, bits).sign()
        value, _ = torch.ops.nhl_fast.step_center(u, centers, torch.zeros(n, dtype=torch.long), [bits], "csq", [0.0])
        assert value.item() == pytest.approx(F.softplus(-2 * u.double() * centers).mean().item(), rel=4e-7)


@pytest.mark.numeric
def test_golden_distillation(golden, isa):
    u = torch.from_numpy(golden["u"])
    n, width = len(u), sum(LENGTHS)
    values, weights = torch.zeros(5), torch.ones(5)
    total, distill, _, _, du = torch.ops.nhl_fast.step_combine(
        u, u, torch.empty(0, 0), values, torch.zeros(n, width), LENGTHS, 1.0, weights
    )
    expected = torch.from_numpy(golden["distill_loss"]).float()
    torch.testing.assert_close(distill[:4], expected, rtol=1e-4, atol=0)
    assert distill[4] == 0
    torch.testing.assert_close(total, expected.sum(), rtol=1e-4, atol=0)
    want = sum(F.pad(torch.from_numpy(golden[f"distill_grad_{b}"]), (0, 128 - b)) for b in LENGTHS[:4])
    assert (du - want).norm() <= 1e-4 * want.norm()
    torch.testing.assert_close(distillation_losses(u, LENGTHS), distill, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_results_do_not_depend_on_the_number_of_threads(isa, name):
    problem, found = make(name, 150, 600, (8, 20, 64), num_train=3000), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run(problem, "cpp"))
    torch.set_num_threads(before)
    for other in found[1:]:
        for key, value in other.items():
            assert torch.equal(value, found[0][key]), key


@pytest.mark.parametrize("name", list(REGISTRY))
def test_nan_reaches_total_and_gradient_where_it_is_not_checked(isa, name):
    layer, loss, features, labels, index = small(name)
    features[3, 5] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        NestedObjective(layer, loss, backend="cpp")(features, labels, index)
    objective = NestedObjective(layer, loss, backend="cpp", check_finite=False)
    features.requires_grad_()
    result = objective(features, labels, index)
    result.total.backward()
    assert result.total.isnan()
    assert result.weights.isnan().all()
    assert layer.hash_layer.weight.grad.isnan().any()
