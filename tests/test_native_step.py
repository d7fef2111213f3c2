"""The C++ training step against the reference in float64, at every instruction level of this machine."""

import copy

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL, each_isa, levels, one_and_two_threads  # noqa: F401
from numeric import Expected, expected

from nhl_fast.core import backend as backends
from nhl_fast.core.prefixes import pad, weighted_sum
from nhl_fast.head.distillation import distillation_losses
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.head.weighting import dominance_dots, dominance_weights
from nhl_fast.losses import REGISTRY, PerLength, build

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

LENGTHS = (8, 16, 32, 64, 128)
CENTER_LOSSES = ("csq", "dpn", "mdsh", "shcir")
BANK_LOSSES = ("dsh", "dhn", "dbdh", "mdsh")
NAMES = ("total", "losses", "distill", "weights", "dots")
OPTIONS = [
    ("dpn", {"ternary": True}),
    ("dpn", {"margin": 0.3, "centers": "nested"}),
    ("csq", {"quantization": 0.7}),
    ("dsh", {"alpha": 0.0, "margin": 1.5}),
    ("dhn", {"alpha": 2.0}),
    ("dbdh", {"clamp": False}),
    ("dtsh", {"clamp": False, "margin": 1.0}),
    ("lcdsh", {"clamp": False, "eta": 0.5}),
    ("dch", {"max_cosine": None}),
    ("dch", {"gamma": 3.0, "quantization": 0.0}),
    ("mdsh", {"pair_from_epoch": 3}),
    ("mdsh", {"reference_bits": 16}),
    ("shcir", {"reference_bits": 2000}),
    ("lcdsh", {"reference_bits": 256}),
    ("dtsh", {"reference_bits": 24}),
    ("dhn", {"reference_bits": 32}),
    ("dhn", {"balance": True}),
    ("dhn", {"balance": True, "reference_bits": 128}),
    ("dbdh", {"balance": True, "reference_bits": 32}),
    ("dsh", {"balance": True}),
]


def make(name, n, d, lengths, multi=False, classes=5, num_train=None, std=1.0, loss_options=None, **options):
    """(layer, loss, features, labels, index, options of the objective); a fifth of the bank stays unwritten."""
    torch.manual_seed(n + d)
    layer = NestedHashLayer(d, lengths)
    torch.nn.init.normal_(layer.hash_layer.weight, std=std * d**-0.5)
    torch.nn.init.normal_(layer.hash_layer.bias, std=0.1)
    num_train = n + 150 if num_train is None else num_train
    loss = build(name, num_classes=classes, code_lengths=lengths, num_train=num_train, **(loss_options or {}))

    def draw(count):
        return torch.rand(count, classes) < 1.5 / classes if multi else torch.randint(0, classes, (count,))

    if getattr(loss, "bank", None) is not None:
        rows = torch.randperm(num_train)[: num_train - num_train // 5]
        loss.bank.update(rows, torch.randn(len(rows), lengths[-1]), draw(len(rows)))
    return layer, loss, torch.randn(n, d), draw(n), torch.randperm(num_train)[:n], options


def small(name="csq"):
    return make(name, 20, 33, (8, 20, 64))[:5]


def run(problem, backend, dtype=torch.float32, scale=1.0):
    """Everything a step gives, as one dict of tensors."""
    layer, loss, features, labels, index, options = problem
    layer, loss = copy.deepcopy(layer).to(dtype), copy.deepcopy(loss).to(dtype)
    features = features.to(dtype).clone().requires_grad_()
    result = NestedObjective(layer, loss, backend=backend, **options)(features, labels, index)
    (result.total * scale).backward()
    found = {key: value for key, value in zip(NAMES, result) if value is not None}
    found = {**found, "dF": features.grad, "dW": layer.hash_layer.weight.grad, "dc": layer.hash_layer.bias.grad}
    if getattr(loss, "bank", None) is not None:
        found["bank"] = loss.bank.u
    return {key: value.detach().clone() for key, value in found.items()}


def error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-6)).item()


def check(problem, scale=1.0):
    """The step in float32 is the truth but for float32's own errors (see `numeric`)."""
    native = run(problem, "cpp", scale=scale)
    assert all(value.dtype == torch.float32 for value in native.values())
    return expected(run, problem, "reference", torch.float64, scale).check(native)


@pytest.mark.numeric
@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("shape", [(64, 96), (37, 70)], ids=str)
@pytest.mark.parametrize("name", list(REGISTRY))
def test_step_equals_the_reference(isa, name, shape, multi):
    if multi and name == "shcir":
        pytest.skip("single-label only")
    check(make(name, *shape, LENGTHS, multi))


@pytest.mark.numeric
@pytest.mark.parametrize("lengths", [(1,), (5, 12, 48, 100), (3, 17), (7, 1024)], ids=str)
@pytest.mark.parametrize("n", [1, 3, 130])
def test_odd_lengths_and_batches(isa, lengths, n):
    for name in REGISTRY:
        rows = min(n, 66) if name == "dtsh" else n  # its reference holds all triplets
        native = check(make(name, rows, 9, lengths))
        assert ("dots" in native) == (len(lengths) > 1)


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options(isa, name, options):
    for multi in (False,) if name == "shcir" else (False, True):
        check(make(name, 40, 33, (8, 20, 64), multi, loss_options=options))


@pytest.mark.numeric
@pytest.mark.parametrize("classes", [1, 400], ids=["all similar", "none similar"])
@pytest.mark.parametrize("name", ["dsh", "dhn", "dbdh"])
def test_balance_with_one_kind_of_pairs(isa, name, classes):
    layer, loss, features, labels, index, _ = make(
        name, 9, 12, (4, 8), classes=classes, loss_options={"balance": True}
    )
    loss.bank.written.zero_(), loss.bank.u.zero_()
    labels = torch.zeros_like(labels) if classes == 1 else torch.arange(9) * 40
    loss.bank.update(
        torch.arange(20, 40), torch.randn(20, 8), torch.full((20,), classes // 2 + 1 if classes > 1 else 0)
    )
    native = check((layer, loss.eval(), features, labels, index, {}))
    assert torch.isfinite(native["total"])


@pytest.mark.numeric
def test_balance_counts_label_sets_of_many_classes(isa):
    check(make("dhn", 12, 9, (4, 8), multi=True, classes=70, loss_options={"balance": True}))


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
        value, _ = torch.ops.nhl_fast.step_csq(u, centers, torch.zeros(n, dtype=torch.long), [bits], 0.0)
        assert value.item() == pytest.approx(F.softplus(-2 * u.double() * centers).mean().item(), rel=4e-7)


def golden_loss(golden, name):
    options = {}
    if name in CENTER_LOSSES:
        options["centers"] = [torch.from_numpy(golden[f"centers_{b}"]) for b in LENGTHS]
    train = len(golden["bank_u"]) if name in BANK_LOSSES and name != "mdsh" else None
    loss = build(name, num_classes=golden["labels"].shape[1], code_lengths=LENGTHS, num_train=train, **options)
    if name in CENTER_LOSSES:
        loss.tie_centers = [torch.from_numpy(golden[f"tie_center_{b}"]) for b in LENGTHS]
    if train:
        bank = torch.from_numpy(golden["bank_u"])
        loss.bank.update(torch.arange(len(bank)), bank, torch.from_numpy(golden["bank_labels"]))
    return loss


@pytest.mark.numeric
@pytest.mark.parametrize("name", list(REGISTRY))
def test_golden_values_and_gradients(golden, isa, name):
    if f"{name}_loss" not in golden:
        pytest.skip("the loss is single-label, these labels are not")
    loss, labels = golden_loss(golden, name), torch.from_numpy(golden["labels"])
    u = torch.from_numpy(golden["u"]).requires_grad_()
    index = torch.from_numpy(golden["index"])
    values = loss(u, labels, index, backend="cpp")
    torch.testing.assert_close(values.detach(), torch.from_numpy(golden[f"{name}_loss"]).float(), rtol=1e-4, atol=0)
    for k, b in enumerate(LENGTHS):
        (grad,) = torch.autograd.grad(values[k], u, retain_graph=True)
        want = torch.from_numpy(golden[f"{name}_grad_{b}"]).clone()
        if (golden["name"], name, b) == ("multi12", "dbdh", 128):  # see test_losses.py: a theta that rounds to 0
            row, column = 31, 56
            passes = (u[row].detach().abs() < 1) * loss.bank.u[column].clamp(-1, 1)
            want[row] -= 0.5 * 0.5 * passes / (u.shape[0] * loss.bank.num_train)
        assert (grad[:, :b] - want).norm() <= 1e-4 * want.norm(), b
        assert not grad[:, b:].any()


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


@pytest.mark.numeric
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e2, 1e4])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_extreme_outputs_stay_finite(isa, name, scale):
    loss = build(name, num_classes=5, code_lengths=(8, 64), num_train=16)
    u = (scale * torch.randn(16, 64)).requires_grad_()
    values = loss(u, torch.arange(16) % 5, torch.arange(16), backend="cpp")
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(u.grad).all()
    if scale != 1e-8:  # squares of 1e-8 have few digits in float32: the reference may differ from itself
        double = copy.deepcopy(loss).double()
        expected = double(u.detach().double(), torch.arange(16) % 5, torch.arange(16))
        torch.testing.assert_close(values.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)], ids=["all same", "all apart"])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_batches_without_negatives_or_positives(isa, name, labels):
    layer, loss, features, _, index, options = make(name, 6, 9, (8, 16), classes=6, num_train=6)
    check((layer, loss, features, labels, index, options))


@pytest.mark.numeric
@pytest.mark.parametrize("name", [n for n in REGISTRY if n != "shcir"])
def test_labels_with_no_class(isa, name):
    layer, loss, features, labels, index, options = make(name, 12, 9, (8, 16), multi=True)
    labels[:4] = False
    check((layer, loss, features, labels, index, options))


@pytest.mark.numeric
@pytest.mark.parametrize("name", BANK_LOSSES)
@pytest.mark.parametrize("state", ["empty", "ids, then sets", "sets, then ids"])
def test_banks(isa, name, state):
    """Nothing written before the batch; label forms that meet; evaluation reads the bank and leaves it as it is."""
    layer, _, features, ids, index, options = make(name, 20, 9, (8, 16), num_train=200)
    loss = build(name, num_classes=5, code_lengths=(8, 16), num_train=200)
    sets, rows = F.one_hot(ids, 5), torch.arange(100, 150)
    if state == "ids, then sets":
        loss.bank.update(rows, torch.randn(50, 16), rows % 5)
    elif state == "sets, then ids":
        loss.bank.update(rows, torch.randn(50, 16), F.one_hot(rows % 5, 5))
    labels = ids if state == "sets, then ids" else sets
    check((layer, loss, features, labels, index, options))
    check((layer, loss.eval(), features, labels, None, options))
    check((layer, loss.eval(), features, ids, None, options))


@pytest.mark.numeric
@pytest.mark.parametrize("labels", ["ids", "multi-hot"])
def test_many_classes(isa, labels):
    for name in REGISTRY:
        if name == "shcir" and labels == "multi-hot":
            continue
        check(make(name, 40, 20, (8, 32), labels == "multi-hot", classes=101))


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["mdsh", "shcir"])
def test_certain_probabilities(isa, name):
    """p rounds to 1, and logits lie too far apart for the other classes' p to be normal numbers."""
    for bits in (1024, 3000):
        loss = build(name, num_classes=4, code_lengths=(bits,))
        center, labels = loss.centers[0], torch.tensor([2, 1, 0])
        u = torch.stack([center[1], center[1], -center[0]]).requires_grad_()
        value = loss(u, labels, backend="cpp")
        value.sum().backward()
        x = u.detach().double().requires_grad_()
        expected = copy.deepcopy(loss).double()(x, labels)
        expected.sum().backward()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        assert error(u.grad, x.grad) < 1e-4


# ----------------------------------------------------------------------------------------- as part of the package


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["csq", "dsh"])
def test_half_precision_features_and_weights(name):
    layer, loss, features, labels, index = small(name)
    for dtype, weights in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        ours = copy.deepcopy(layer).to(weights), copy.deepcopy(loss)
        theirs = copy.deepcopy(ours)
        found = []
        for (head, pair), backend in ((ours, "cpp"), (theirs, "reference")):
            x = features.to(dtype).requires_grad_()
            result = NestedObjective(head, pair, backend=backend)(x, labels, index)
            result.total.backward()
            found.append((result.total, x.grad, head.hash_layer.weight.grad, head.hash_layer.bias.grad))
        assert found[0][1].dtype == dtype
        assert found[0][2].dtype == weights
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=2e-2 if a.dtype == torch.bfloat16 else 2e-3, atol=1e-4)


def test_strided_features_and_outputs():
    layer, loss, features, labels, _ = small()
    objective = NestedObjective(layer, loss, backend="cpp")
    expected = objective(features, labels)
    for strided in (features.T.contiguous().T, features.repeat_interleave(2, 1)[:, ::2]):
        assert torch.equal(objective(strided, labels).total, expected.total)
    u = torch.randn(20, 64)
    expected = loss(u, labels, backend="cpp")
    assert torch.equal(loss(u.T.contiguous().T, labels, backend="cpp"), expected)
    assert torch.equal(loss(u.repeat(1, 2)[:, 64:], labels, backend="cpp"), expected)


@pytest.mark.numeric
@pytest.mark.parametrize("frozen", ["features", "layer", "both", "weight"])
def test_frozen_parts(frozen):
    layer, loss, features, labels, _ = small()
    parameters = {"features": features, "weight": layer.hash_layer.weight, "bias": layer.hash_layer.bias}
    still = {"both": parameters, "layer": ("weight", "bias")}.get(frozen, (frozen,))
    for key, tensor in parameters.items():
        tensor.requires_grad_(key not in still)
    totals = [NestedObjective(layer, loss, backend=b)(features, labels).total for b in ("cpp", "reference")]
    assert totals[0].requires_grad == (frozen != "both")
    moving = [tensor for key, tensor in parameters.items() if key not in still]
    if moving:
        for a, b in zip(*(torch.autograd.grad(total, moving) for total in totals)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_a_graph(mode):
    for name in ("csq", "dhn"):
        layer, loss, features, labels, index = small(name)
        objective = NestedObjective(layer, loss, backend="cpp")
        expected = objective(features, labels, index)
        with mode():
            result = objective(features, labels, index)
        assert not result.total.requires_grad
        for a, b in zip(result, expected):
            assert torch.equal(a, b.detach())


def test_gradient_of_changed_weights_is_refused():
    layer, loss, features, labels, _ = small()
    result = NestedObjective(layer, loss, backend="cpp")(features.requires_grad_(), labels)
    with torch.no_grad():
        layer.hash_layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.total.backward()


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


def test_bad_input_is_refused_as_by_the_reference():
    layer, loss, features, labels, index = small("dhn")
    for change in (
        lambda f, y, i: (f[:0], y[:0], i[:0]),
        lambda f, y, i: (f[:, :4], y, i),
        lambda f, y, i: (f * float("inf"), y, i),
        lambda f, y, i: (f, y[:4], i),
        lambda f, y, i: (f, y + 5, i),
        lambda f, y, i: (f, y.float(), i),
        lambda f, y, i: (f, y, i + 500),
        lambda f, y, i: (f, y, None),
    ):
        errors = []
        for backend in ("cpp", "reference"):
            with pytest.raises((TypeError, ValueError)) as caught:
                NestedObjective(layer, copy.deepcopy(loss), backend=backend)(*change(features, labels, index))
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


def used(monkeypatch):
    """Names of the step's operators that are called."""
    calls, combine = [], torch.ops.nhl_fast.step_combine

    def spy(*arguments):
        calls.append(arguments)
        return combine(*arguments)

    from nhl_fast.steps import native as step

    class Spy:
        def __getattr__(self, name):
            return spy if name == "step_combine" else getattr(torch.ops.nhl_fast, name)

    monkeypatch.setattr(step, "ops", Spy())
    return calls


def test_auto_takes_it_for_float32_on_the_cpu(monkeypatch):
    calls = used(monkeypatch)
    layer, loss, features, labels, _ = small()
    NestedObjective(layer, loss)(features, labels)
    NestedObjective(layer, loss)(features.half(), labels)
    assert len(calls) == 2
    NestedObjective(layer, loss, backend="reference")(features, labels)
    NestedObjective(copy.deepcopy(layer).double(), copy.deepcopy(loss).double())(features.double(), labels)
    NestedObjective(layer, loss, weighting=lambda dots, values: torch.ones(3))(features, labels)
    NestedObjective(layer, loss, teacher="longest")(features, labels)
    assert len(calls) == 2


@pytest.mark.numeric
def test_auto_takes_it_for_other_losses_too(monkeypatch):
    class Classify(torch.nn.Module):
        def __init__(self, bits):
            super().__init__()
            self.head = torch.nn.Linear(bits, 5)

        def forward(self, u, y):
            return F.cross_entropy(self.head(u), y)

    layer, _, features, labels, _ = small()
    loss = PerLength([Classify(b) for b in (8, 20, 64)], (8, 20, 64), num_classes=5)
    parameters, calls = [layer.hash_layer.weight, *loss.parameters()], used(monkeypatch)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            ours = NestedObjective(layer, loss)(features, labels)
            theirs = NestedObjective(layer, loss, backend="reference")(features, labels)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        if mode is torch.enable_grad:
            for a, b in zip(*(torch.autograd.grad(r.total, parameters) for r in (ours, theirs))):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(calls) == 3


def test_named_and_not_able_raises():
    layer, loss, features, labels, _ = small()

    class Own(NestedHashLayer):
        def project(self, x, backend="auto"):
            return super().project(x, backend).tanh()

    user = PerLength([lambda u, y: u.square().mean()] * 3, (8, 20, 64))
    double = copy.deepcopy(layer).double(), copy.deepcopy(loss).double()
    for objective, x, message in (
        (NestedObjective(layer, user, backend="cpp"), features, "PerLength has no C"),
        (NestedObjective(Own(33, (8, 20, 64)), loss, backend="cpp"), features, "Own has its own projection"),
        (NestedObjective(*double, backend="cpp"), features.double(), "float64"),
        (NestedObjective(layer, loss, backend="cpp", teacher="longest"), features, "teacher"),
        (NestedObjective(layer, loss, backend="cpp", weighting=lambda d, v: v), features, "callable"),
    ):
        with pytest.raises(RuntimeError, match=message):
            objective(x, labels)
    with pytest.raises(RuntimeError, match="float64"):
        loss(torch.randn(20, 64).double(), labels, backend="cpp")
    # "auto" serves them all the same.
    NestedObjective(Own(33, (8, 20, 64)), loss)(features, labels).total.backward()


def test_without_the_library(monkeypatch):
    missing = backends.Backend("cpp", False, "it has not been built")
    monkeypatch.setattr(
        backends, "probe", lambda name: missing if name == "cpp" else backends.Backend(name, True, "")
    )
    layer, loss, features, labels, _ = small()
    expected = NestedObjective(layer, loss, backend="reference")(features, labels)
    assert torch.equal(NestedObjective(layer, loss)(features, labels).total, expected.total)
    with pytest.raises(RuntimeError, match="'cpp' is not available for NestedObjective: it has not been built"):
        NestedObjective(layer, loss, backend="cpp")(features, labels)
    with pytest.raises(RuntimeError, match="'cpp' is not available for CSQ"):
        loss(torch.randn(20, 64), labels, backend="cpp")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    layer, loss, features, labels, index = small(name)
    objective, plain = NestedObjective(layer, loss, backend="cpp"), copy.deepcopy(loss)
    features.requires_grad_()
    expected = NestedObjective(layer, plain, backend="cpp")(features, labels, index)
    (grad,) = torch.autograd.grad(expected.total, features)
    result = torch.compile(objective, fullgraph=True, backend="aot_eager")(features, labels, index)
    for a, b in zip(result, expected):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(result.total, features)[0], grad, rtol=1e-6, atol=1e-7)


def test_auto_compiles_the_reference():
    torch._dynamo.reset()
    layer, loss, features, labels, _ = small()
    graphs = []

    def look(graph, inputs):
        graphs.append(graph.code)
        return graph

    result = torch.compile(NestedObjective(layer, loss), fullgraph=True, backend=look)(features, labels)
    assert not any("step_combine" in code for code in graphs)
    torch.testing.assert_close(result.total, NestedObjective(layer, loss)(features, labels).total)


# ---------------------------------------------------------------------------------------------------- operators


def sample_arguments():
    u, labels, lengths = torch.randn(6, 12), torch.arange(6) % 3, [5, 12]
    sets, centers = F.one_hot(labels, 3).bool(), torch.randn(3, 17).sign()
    bank = torch.randn(20, 12), torch.arange(20) % 3, torch.rand(20) < 0.8
    bank_sets = bank[0], F.one_hot(bank[1], 3).bool(), bank[2]
    features, weight, bias = torch.randn(6, 7), torch.randn(12, 7), torch.randn(12)
    deltas, values = torch.randn(6, 17), torch.rand(2)
    return {
        "project": (features, weight, bias, True),
        "project_back": (torch.tensor(2.0), u, features, weight, True, True),
        "combine": (u, features, features @ features.T, values, deltas, lengths, 0.5, None),
        "csq": (u, centers, labels, lengths, 1e-4),
        "dpn": (u, centers[labels], None, lengths, 1.0, True),
        "dsh": (u, labels, *bank, lengths, 0.1, 2.0, True),
        "dhn": (u, sets, *bank_sets, lengths, 0.1, 16.0, True),
        "dbdh": (u, labels, *bank, lengths, 0.1, 1.0, 0.0, False),
        "lcdsh": (u, sets, lengths, 3.0, 50.0, 0.0),
        "dch": (u, labels, lengths, 20.0, 0.1, 0.99),
        "dtsh": (u, labels, lengths, 5.0, 1.0, -100.0, 50.0, 32.0),
        "center_softmax": (u, labels, centers, lengths, 0.1, 1.0, 1e-4, 16.0, *bank),
    }


@pytest.mark.parametrize("name", list(sample_arguments()))
def test_opcheck(name):
    operator = getattr(torch.ops.nhl_fast, f"step_{name}").default
    torch.library.opcheck(operator, sample_arguments()[name], test_utils=["test_schema", "test_faketensor"])


def test_operators_refuse_what_they_cannot_read():
    good, ops = sample_arguments(), torch.ops.nhl_fast
    u, sets = good["csq"][0], good["lcdsh"][1]

    def replaced(name, place, value):
        arguments = list(good[name])
        arguments[place] = value
        return lambda: getattr(ops, f"step_{name}")(*arguments)

    for call in (
        replaced("project", 1, torch.randn(12, 8)),
        replaced("project", 2, torch.randn(11)),
        replaced("project", 0, torch.randn(6, 7).double()),
        replaced("project_back", 1, u[:5]),
        replaced("combine", 4, torch.randn(6, 16)),
        replaced("combine", 2, torch.randn(5, 5)),
        replaced("combine", 3, torch.rand(3)),
        replaced("combine", 5, [12, 12]),
        replaced("combine", 7, torch.ones(3)),
        replaced("csq", 0, u.T.contiguous().T),
        replaced("csq", 0, u[:0]),
        replaced("csq", 1, torch.randn(3, 16)),
        replaced("csq", 2, torch.full((6,), 3)),
        replaced("csq", 2, torch.arange(6, dtype=torch.int32) % 3),
        replaced("csq", 3, []),
        replaced("dpn", 1, torch.randn(5, 17)),
        replaced("dhn", 1, torch.arange(6) % 3),
        replaced("dhn", 1, sets[:, :2].contiguous()),
        replaced("dhn", 2, torch.randn(20, 11)),
        replaced("dhn", 4, torch.ones(19, dtype=torch.bool)),
        replaced("lcdsh", 1, sets.long()),
        replaced("lcdsh", 5, -1.0),
        replaced("lcdsh", 5, float("nan")),
        replaced("dhn", 7, float("inf")),
        replaced("dch", 1, torch.arange(5)),
        replaced("center_softmax", 2, torch.randn(1, 17)),
        replaced("center_softmax", 1, sets[:, :2].contiguous()),
    ):
        with pytest.raises(RuntimeError):
            call()
