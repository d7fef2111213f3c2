"""Options beyond the paper: teachers, weightings by a callable, reference lengths, balanced pairs."""

import pytest
import torch
import torch.nn.functional as F

import nhl_fast as nhl
from nhl_fast import losses
from nhl_fast.data import load_dataset
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.trainer import Trainer, train

pytestmark = pytest.mark.numeric

LENGTHS = (4, 8, 16, 20)
N, CLASSES = 9, 3


def outputs(seed=0, dtype=torch.float64):
    return torch.randn(N, LENGTHS[-1], dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 0.6


def defined(u, teacher):
    """The definition, with autograd through the student alone."""
    grams = [F.normalize(u[:, :b] @ u[:, :b].T, dim=1) for b in LENGTHS]
    m, values = len(grams), []
    for k in range(m - 1):
        taught = {"next": [k + 1], "longest": [m - 1], "longer": range(k + 1, m)}[teacher]
        terms = [(grams[k] - grams[j].detach()).square().sum() / len(u) ** 2 for j in taught]
        values.append(sum(terms) / len(terms))
    return torch.stack([*values, u.new_zeros(())])


@pytest.mark.parametrize("teacher", ["next", "longest", "longer"])
@pytest.mark.parametrize("lengths_from", ["all", "two"])
def test_teachers_equal_their_definition(teacher, lengths_from):
    u = outputs().requires_grad_()
    got, want = nhl.distillation_losses(u, LENGTHS, teacher), defined(u, teacher)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad(got @ weights, u)
    (expected,) = torch.autograd.grad(want @ weights, u)
    torch.testing.assert_close(grad, expected, atol=1e-12, rtol=1e-9)
    if lengths_from == "two":  # with one longer length all teachers are the same
        pair = nhl.distillation_losses(u, (8, 20), teacher)
        torch.testing.assert_close(pair, nhl.distillation_losses(u, (8, 20)))


def make(weighting, teacher="next", lam=0.7, loss=None):
    torch.manual_seed(1)
    layer = nhl.NestedHashLayer(6, LENGTHS, dtype=torch.float64)
    return nhl.NestedObjective(layer, loss or losses.CSQ(CLASSES, LENGTHS, "nested"), lam, weighting, teacher=teacher)


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(N, 6, dtype=torch.float64, generator=generator), torch.arange(N) % CLASSES


@pytest.mark.parametrize("teacher", ["longest", "longer"])
def test_the_objective_distils_from_the_teacher(teacher):
    x, y = batch()
    objective = make("uniform", teacher)
    u = objective.layer.project(x)
    result = objective(x, y)
    torch.testing.assert_close(result.distill, nhl.distillation_losses(u, LENGTHS, teacher).detach())
    expected = (objective.loss(u, y) + 0.7 * nhl.distillation_losses(u, LENGTHS, teacher)).sum()
    weight = objective.layer.hash_layer.weight
    (want,) = torch.autograd.grad(expected, weight)
    result.total.backward()
    torch.testing.assert_close(weight.grad, want)


def test_a_callable_weighs_by_products_and_values():
    x, y = batch()
    seen = {}

    def rule(dots, values):
        seen.update(dots=dots, values=values)
        return torch.tensor([0.5, 2.0, 0.0, 1.0])

    ruled, fixed, dominance = make(rule), make([0.5, 2.0, 0.0, 1.0]), make("dominance")
    a, b, c = ruled(x, y), fixed(x, y), dominance(x, y)
    a.total.backward()
    b.total.backward()
    torch.testing.assert_close(a.total, b.total)
    torch.testing.assert_close(ruled.layer.hash_layer.weight.grad, fixed.layer.hash_layer.weight.grad)
    torch.testing.assert_close(seen["dots"], c.dots)
    torch.testing.assert_close(a.dots, c.dots)
    torch.testing.assert_close(seen["values"], a.losses + 0.7 * a.distill)
    assert not seen["dots"].requires_grad
    assert a.weights.tolist() == [0.5, 2.0, 0.0, 1.0]


def test_a_module_that_weighs_is_part_of_the_objective():
    class Learnt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, dots, values):
            return self.scale * torch.ones_like(values)

    objective = make(Learnt())
    assert "rule.scale" in dict(objective.named_parameters())
    result = objective(*batch())
    assert not result.weights.requires_grad


@pytest.mark.parametrize("given", [torch.ones(3), [1.0] * 4, None])
def test_a_callable_that_gives_no_weights(given):
    with pytest.raises(ValueError, match=r"weighting: expected the callable to give \(4,\)"):
        make(lambda dots, values: given)(*batch())


def test_one_length_needs_no_weighting():
    def never(dots, values):
        raise AssertionError

    layer = nhl.NestedHashLayer(6, (8,), dtype=torch.float64)
    objective = nhl.NestedObjective(layer, losses.CSQ(CLASSES, (8,)), weighting=never)
    assert objective(*batch()).weights.tolist() == [1.0]


def scaled_pairs(name, reference):
    """The loss at one length, on outputs scaled to the reference's inner products, without its penalties."""
    options = {"dhn": {"num_train": N, "alpha": 0.0}, "dbdh": {"num_train": N, "alpha": 0.0, "clamp": False}}
    options |= {"lcdsh": {"eta": 0.0, "clamp": False}, "dtsh": {"quantization": 0.0, "clamp": False}}

    def build(lengths, **more):
        return losses.build(name, num_classes=CLASSES, code_lengths=lengths, **options[name], **more)

    return build(LENGTHS, reference_bits=reference), build


@pytest.mark.parametrize("name", ["lcdsh", "dtsh", "dhn", "dbdh"])
@pytest.mark.parametrize("reference", [3.0, 32])
def test_inner_products_of_a_reference_length(name, reference):
    u, y, index = outputs(), torch.arange(N) % CLASSES, torch.arange(N)
    loss, build = scaled_pairs(name, reference)
    got = loss(u, y, index)
    for value, b in zip(got, LENGTHS):
        alone = build((b,))(u[:, :b] * (reference / b) ** 0.5, y, index)
        torch.testing.assert_close(value, alone[0])


def test_lcdsh_scales_the_codes_too():
    u, y = outputs(), torch.arange(N) % CLASSES
    value = losses.LCDSH(CLASSES, LENGTHS, reference_bits=10)(u, y)
    s = 2.0 * (y[:, None] == y) - 1
    for got, b in zip(value, LENGTHS):
        v, code = u[:, :b], torch.where(u[:, :b] > 0, 1.0, -1.0).double()
        theta, coded = 10 / b * (v @ v.T) / 2, 10 / b * (code @ code.T) / 2
        want = F.softplus(-s * theta).mean() + 3 * (theta.sigmoid() - coded.sigmoid()).square().mean()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["mdsh", "shcir"])
@pytest.mark.parametrize("reference", [2.0, 64, 3000])
def test_softmax_as_sharp_at_every_length(name, reference):
    u, y = outputs(), torch.arange(N) % CLASSES
    loss = losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, quantization=0.0, reference_bits=reference)
    hot = F.one_hot(y, CLASSES).double()
    for got, b, centre in zip(loss(u, y), LENGTHS, loss.centers):
        cosine = F.cosine_similarity(u[:, None, :b], centre[None].double(), dim=2)
        log_p = (reference**0.5 * cosine).log_softmax(1)
        rest = torch.stack([torch.cat([log_p[:, :c], log_p[:, c + 1 :]], 1).logsumexp(1) for c in range(CLASSES)], 1)
        want = -(hot * log_p).sum() - ((1 - hot) * rest).sum() / (1 if name == "mdsh" else CLASSES - 1)
        torch.testing.assert_close(got, want / (N * CLASSES if name == "mdsh" else N), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["lcdsh", "dtsh", "dhn", "dbdh", "mdsh", "shcir"])
def test_gradients_with_a_reference_length(name):
    options = {"num_train": N} if name in ("dhn", "dbdh") else {}
    loss = losses.build(name, num_classes=CLASSES, code_lengths=(4, 8), reference_bits=5, **options)
    u, y, index = outputs()[:, :8].requires_grad_(), torch.arange(N) % CLASSES, torch.arange(N)
    loss(u.detach(), y, index)  # the bank holds these outputs from here on
    loss.eval()
    torch.autograd.gradcheck(lambda v: loss(v, y, index), u, atol=1e-6)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "8", True])
def test_bad_reference_bits(value):
    with pytest.raises((ValueError, TypeError), match="reference_bits: expected a"):
        losses.LCDSH(CLASSES, LENGTHS, reference_bits=value)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", queries_per_class=5)


def test_training_with_aligned_centres_and_a_callable(digits, tmp_path):
    config = TrainConfig(epochs=1, centers="aligned", weighting="custom", teacher="longest", hidden=(16,))
    result = train(digits, config, tmp_path / "run", weighting=lambda dots, values: torch.ones_like(values))
    assert result.history[0]["weights"] == [1.0] * 5
    with pytest.raises(ValueError, match="weighting: a run whose weights come from a callable cannot be resumed"):
        train(digits, config, tmp_path / "run", resume=True, weighting=lambda dots, values: torch.ones_like(values))


def test_aligned_centres_follow_the_training_rows(digits):
    config = TrainConfig(centers="aligned", epochs=1)
    centers = Trainer(digits, config).objective.loss.centers
    similarity = nhl.class_similarity(*digits.train.batch(slice(None)), 10)
    want = nhl.make_centers(10, config.code_lengths, "nested", seed=0, similarity=similarity)
    assert all(torch.equal(a, b) for a, b in zip(centers, want))
    with pytest.raises(ValueError, match="centers: 'aligned' needs training rows in memory"):
        config.build_loss(10, 100)


@pytest.mark.parametrize(
    ("weighting", "given"), [("custom", None), ("dominance", lambda dots, values: torch.ones_like(values))]
)
def test_custom_weighting_and_callable_go_together(digits, weighting, given):
    with pytest.raises(ValueError, match="weighting: give a callable together with"):
        Trainer(digits, TrainConfig(weighting=weighting), weighting=given)


@pytest.mark.parametrize(
    ("settings", "message"), [({"teacher": "best"}, "teacher: expected one of"), ({"weighting": "x"}, "weighting: ")]
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh"])
@pytest.mark.parametrize("kinds", ["both", "all similar", "none similar"])
def test_balance_gives_both_kinds_of_pairs_half(name, kinds):
    u, index = outputs(), torch.arange(N)
    y = {"both": torch.arange(N) % CLASSES, "all similar": torch.zeros(N, dtype=torch.long)}.get(kinds)
    y = torch.arange(N) if y is None else y
    classes = N if kinds == "none similar" else CLASSES
    options = {"num_classes": classes, "code_lengths": LENGTHS, "num_train": N + 4}  # four rows are never written
    balanced = losses.build(name, **options, alpha=0.0, balance=True)
    values = balanced(u, y, index)
    similar = y[:, None] == y
    for value, b in zip(values, LENGTHS):
        v = u[:, :b].clamp(-1, 1) if name == "dbdh" else u[:, :b]
        if name == "dsh":
            d = torch.cdist(v, v).square()
            pair = torch.where(similar, d, (2 * b - d).clamp(min=0)) / 2
        else:
            theta = v @ v.T / 2
            pair = F.softplus(theta) - similar * theta
        kinds_mean = [pair[similar].mean(), pair[~similar].mean()]
        want = pair.mean() if similar.all() else sum(kinds_mean) / 2
        torch.testing.assert_close(value, want)


@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh"])
def test_gradients_with_balance(name):
    loss = losses.build(name, num_classes=CLASSES, code_lengths=(4, 8), num_train=N, balance=True)
    u, y, index = outputs()[:, :8].requires_grad_(), torch.arange(N) % CLASSES, torch.arange(N)
    loss(u.detach(), y, index)
    loss.eval()
    torch.autograd.gradcheck(lambda v: loss(v, y, index), u, atol=1e-6)
