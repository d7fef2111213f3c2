"""The C++ bodies with every option of a form, beside the same written plainly in float64."""

import itertools
import math
import resource

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL, each_isa  # noqa: F401

from nhl_fast.losses.form import MEANS, PENALTIES, WEIGHINGS

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

LENGTHS, CLASSES = [5, 16, 40], 4
CONSTANTS = {
    "contrastive": [1.5],
    "likelihood": [],
    "locality": [3.0, 4.0],
    "cauchy": [6.0, 0.9],
    "attraction": [],
    "graded": [3.0, 0.4],
    "margin": [0.3, -0.2, 0.1],
}
GEOMETRY = dict.fromkeys(CONSTANTS, "product") | {
    "contrastive": "distance",
    "cauchy": "cosine",
    "attraction": "cosine",
    "margin": "cosine",
}


def pair_losses(function, u, v, similar, constants, reference):
    """(N, M) losses of the pairs of u (N, b) and v (M, b)."""
    b = u.shape[1]
    if function == "contrastive":
        half = (u[:, None] - v).square().sum(2) / 2
        return torch.where(similar, half, F.relu(constants[0] * b / 2 - half))
    if function in ("likelihood", "locality", "graded"):
        share = (reference / b if reference else 1) / 2
        theta = share * u @ v.T
        if function == "likelihood":
            return F.softplus(theta) - similar * theta
        if function == "graded":  # of pairs that are similar or not
            x = constants[0] * 2 * theta / b
            return F.softplus(x) - similar * x
        eta, bound = constants
        theta = theta.clamp(-bound, bound)
        coded = share * torch.where(u > 0, 1.0, -1.0).double() @ torch.where(v > 0, 1.0, -1.0).double().T
        return F.softplus(theta) - similar * theta + eta * (theta.sigmoid() - coded.sigmoid()).square()
    cosine = F.normalize(u, dim=1) @ F.normalize(v, dim=1).T
    if function == "attraction":
        return similar * F.softplus((1 - cosine) / 2)
    if function == "margin":
        return torch.where(similar, 1 - cosine, F.relu(cosine - constants[LENGTHS.index(b)]))
    gamma, cap = constants
    d = (b / 2 * (1 - cosine.clamp(max=cap))).clamp(min=1e-6)
    return similar * (d / gamma).log() + torch.log1p(gamma / d)


def penalty_of(kind, u, constants):
    """Its mean over the rows of u (N, b)."""
    if kind == "balance":
        return u.mean(1).square().mean()
    if kind == "cauchy":
        gamma, cap = constants
        cosine = F.normalize(u, dim=1).abs().sum(1) / u.shape[1] ** 0.5
        d = (u.shape[1] / 2 * (1 - cosine.clamp(max=cap))).clamp(min=1e-6)
        return torch.log1p(d / gamma).mean()
    gap = u.abs() - 1
    signs = torch.where(u > 0, 1.0, -1.0)
    return {
        "absolute": lambda: gap.abs().mean(),
        "log_cosh": lambda: gap.cosh().log().mean(),
        "square": lambda: gap.square().mean(),
        "sign": lambda: (u - signs).square().mean(),
        "none": lambda: 0 * u.sum(),
    }[kind]()


def weights_of(weigh, similar, counted):
    """(N, M) of the pairs; what does not count weighs nothing."""
    counted = counted.expand_as(similar)
    total, near = counted.sum().double(), (similar & counted).sum().double()
    one = counted.double()
    if weigh == "no" or near in (0, total):
        return one
    return one * torch.where(similar, total / near, total / (total - near)) / (2 if weigh == "halves" else 1)


def mean_over_pairs(u, similar, written, others, function, constants, weigh, over, clamp, reference):
    """The pairs' part of one length's value; others (M, b), or None for the batch itself."""
    u = u.clamp(-clamp, clamp)
    v = u if others is None else others.clamp(-clamp, clamp)
    weights = weights_of(weigh, similar, written)
    losses = weights * pair_losses(function, u, v, similar, constants, reference)
    if over == "pairs":
        return losses.sum() / (weights != 0).sum()
    return (similar * losses).sum() / (similar & (weights != 0)).sum().clamp(min=1)


def same(found, truth, u):
    """Values and deltas of an operator beside the values (m,) as a function of u (N, L) in float64."""
    values, deltas = found
    torch.testing.assert_close(values.double(), truth.detach(), rtol=3e-6, atol=3e-6)
    for k, (b, mine) in enumerate(zip(LENGTHS, deltas.split(LENGTHS, dim=1))):
        (wanted,) = torch.autograd.grad(truth[k], u, retain_graph=True)
        assert not wanted[:, b:].any()
        error = (mine.double() - wanted[:, :b]).norm() / wanted.norm().clamp(min=1e-9)
        assert error < 3e-6, (b, error)


def draw(multi, rows, generator):
    ids = torch.randint(0, CLASSES, (rows,), generator=generator)
    if not multi:
        return ids
    return F.one_hot(ids, CLASSES).bool() | (torch.rand(rows, CLASSES, generator=generator) < 0.2)


def similarity(a, b):
    return a[:, None] == b if a.ndim == 1 else (a.double() @ b.double().T) > 0


OPTIONS = list(itertools.product(WEIGHINGS, MEANS, (False, True), (math.inf, 0.8)))


@pytest.mark.numeric
@pytest.mark.parametrize(("weigh", "over", "bank", "clamp"), OPTIONS, ids=str)
@pytest.mark.parametrize("function", list(CONSTANTS))
def test_pairs(isa, function, weigh, over, bank, clamp):
    constants, generator = CONSTANTS[function], torch.Generator().manual_seed(len(function))
    kinds = [kind for kind in (*PENALTIES["pairs"], "square", "sign", "none") if kind != "cauchy"]
    for case, multi in enumerate((False, True)):
        number = OPTIONS.index((weigh, over, bank, clamp)) + case
        penalty = "cauchy" if function == "cauchy" and number % 2 else kinds[number % len(kinds)]
        reference = 24.0 if GEOMETRY[function] == "product" and number % 3 == 0 else 0.0
        u = torch.randn(70, LENGTHS[-1], generator=generator)
        labels = draw(multi, 70, generator)
        others, other_labels = torch.randn(150, LENGTHS[-1], generator=generator), draw(multi, 150, generator)
        written = torch.rand(150, generator=generator) < 0.7
        given = (others, other_labels, written if case else None) if bank else (None, None, None)
        found = torch.ops.nhl_fast.step_pairs(
            u, labels, *given, LENGTHS, function, constants, penalty, 0.3, weigh, over, clamp, reference
        )
        x = u.double().requires_grad_()
        counted = written if bank and case else torch.ones(150 if bank else 70, dtype=torch.bool)
        similar = similarity(labels, other_labels if bank else labels)
        truth = [
            mean_over_pairs(
                x[:, :b], similar, counted, others[:, :b].double() if bank else None, function, constants, weigh,
                over, clamp, reference,
            ) + 0.3 * penalty_of(penalty, x[:, :b].clamp(-clamp, clamp), constants)
            for b in LENGTHS
        ]  # fmt: skip
        same(found, torch.stack(truth), x)


@pytest.mark.parametrize("function", list(CONSTANTS))
@pytest.mark.parametrize("one", ["similar", "dissimilar"])
def test_one_kind_of_pair(function, one):
    """Where a kind is missing, every pair weighs 1; without a similar pair their mean is 0."""
    u = torch.randn(6, LENGTHS[-1], generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(6, dtype=torch.int64)
    bank = u.flip(0).contiguous(), labels if one == "similar" else labels + 1, None

    def run(weigh, over):
        return torch.ops.nhl_fast.step_pairs(
            u, labels, *bank, LENGTHS, function, CONSTANTS[function], "none", 0.0, weigh, over, math.inf, 0.0
        )

    plain = run("no", "pairs")
    for weigh in WEIGHINGS:
        assert all(torch.equal(a, b) for a, b in zip(run(weigh, "pairs"), plain))
    for found, expected in zip(run("no", "similar"), plain):
        assert torch.equal(found, expected if one == "similar" else torch.zeros_like(expected))


@pytest.mark.parametrize("penalty", ["none", "absolute", "log_cosh", "balance", "square", "sign"])
def test_penalties_of_the_other_bodies(penalty):
    generator = torch.Generator().manual_seed(1)
    u, labels = torch.randn(30, LENGTHS[-1], generator=generator), draw(False, 30, generator)
    centers = (torch.rand(CLASSES, sum(LENGTHS), generator=generator) < 0.5).float() * 2 - 1
    x = u.double().requires_grad_()
    added = torch.stack([0.7 * penalty_of(penalty, x[:, :b], ()) for b in LENGTHS])

    def triplets(*penalty):
        return torch.ops.nhl_fast.step_triplets(
            u, labels, LENGTHS, "logistic", [5.0, -100.0, 50.0], *penalty, 0.0
        )  # fmt: skip

    def softmax(*penalty):
        return torch.ops.nhl_fast.step_softmax(
            u, labels, centers, LENGTHS, "likelihood", [0.5, 1.0], *penalty, 0.0
        )  # fmt: skip

    for body in (triplets, softmax):
        values, deltas = (a.double() - b for a, b in zip(body(penalty, 0.7), body("none", 0.0)))
        torch.testing.assert_close(values, added.detach(), rtol=1e-5, atol=1e-5)
        for k, (b, mine) in enumerate(zip(LENGTHS, deltas.split(LENGTHS, dim=1))):
            (wanted,) = torch.autograd.grad(added[k], x, retain_graph=True)
            torch.testing.assert_close(mine, wanted[:, :b], rtol=1e-4, atol=1e-6)


def arguments(operator):
    """Right ones, by name."""
    generator = torch.Generator().manual_seed(2)
    u, labels = torch.randn(6, LENGTHS[-1], generator=generator), torch.arange(6) % CLASSES
    centers = torch.ones(CLASSES, sum(LENGTHS))
    penalty = {"penalty": "none", "penalty_weight": 0.0}
    return {
        "center": {"u": u, "centers": centers, "ids": labels, "lengths": LENGTHS, "function": "csq",
            "constants": [1.0]},
        "pairs": {"u": u, "labels": labels, "bank_u": None, "bank_labels": None, "written": None, "lengths": LENGTHS,
            "function": "cauchy", "constants": [1.0, 0.9], **penalty, "weigh": "no", "over": "pairs",
            "clamp": math.inf, "reference_bits": 0.0},
        "triplets": {"u": u, "labels": labels, "lengths": LENGTHS, "function": "logistic",
            "constants": [5.0, -100.0, 50.0], **penalty, "reference_bits": 0.0},
        "softmax": {"u": u, "labels": labels, "centers": centers, "lengths": LENGTHS, "function": "likelihood",
            "constants": [1.0, 1.0], **penalty, "reference_bits": 0.0},
    }[operator]  # fmt: skip


WRONG = [
    ("center", {"function": "csqq"}, "function: expected one of csq, dpn, dpn_ternary, got csqq"),
    ("center", {"constants": []}, "constants: csq takes 1, got 0"),
    ("center", {"ids": torch.full((6,), CLASSES)}, "ids: expected rows of centers"),
    (
        "pairs",
        {"function": ""},
        "function: expected one of contrastive, likelihood, locality, cauchy, attraction, graded, margin, got $",
    ),
    ("pairs", {"constants": [1.0]}, "constants: cauchy takes 2, got 1"),
    ("pairs", {"penalty": "Balance"}, "penalty: expected one of absolute, .*, balance, cauchy, none, got Balance"),
    ("pairs", {"weigh": "all"}, "weigh: expected one of no, rarity, halves, got all"),
    ("pairs", {"over": "all"}, "over: expected one of pairs, similar, got all"),
    ("pairs", {"clamp": 0.0}, "clamp: expected a number above 0"),
    ("pairs", {"clamp": math.nan}, "clamp: expected a number above 0"),
    ("pairs", {"reference_bits": 32.0}, "reference_bits: taken by functions of the inner product, cauchy is none"),
    (
        "pairs",
        {"function": "attraction", "constants": [], "penalty": "cauchy"},
        "penalty: cauchy takes the constants",
    ),
    ("pairs", {"bank_u": torch.ones(3, LENGTHS[-1])}, "bank: expected its outputs and labels"),
    ("pairs", {"written": torch.ones(3, dtype=torch.bool)}, "bank: expected its outputs and labels"),
    ("triplets", {"function": "hinge"}, "function: expected one of logistic, got hinge"),
    ("triplets", {"penalty": "cauchy"}, "penalty: cauchy takes the constants of the pair function"),
    ("softmax", {"function": "logistic"}, "function: expected one of likelihood, cosine, angle, got logistic"),
    ("softmax", {"constants": [1.0] * 3}, "constants: likelihood takes 2, got 3"),
]


@pytest.mark.parametrize(("operator", "change", "message"), WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_wrong_options(operator, change, message):
    right = arguments(operator)
    call = getattr(torch.ops.nhl_fast, f"step_{operator}")
    assert call(**right)[1].shape == (6, sum(LENGTHS))
    with pytest.raises(RuntimeError, match=message):
        call(**{**right, **change})


def test_names_of_bodies():
    assert torch.ops.nhl_fast.step_functions("pairs") == ", ".join(CONSTANTS)
    with pytest.raises(
        RuntimeError, match="body: expected center, pairs, triplets, softmax, listwise or classifier, got line"
    ):
        torch.ops.nhl_fast.step_functions("line")


def test_names_do_not_stay_in_memory():
    """A text that were kept would take some 48 bytes: four names in 20 000 calls, 4 MB."""
    right = arguments("pairs") | {"u": torch.ones(1, 8), "labels": torch.zeros(1, dtype=torch.int64), "lengths": [8]}
    call = torch.ops.nhl_fast.step_pairs

    def grown(calls):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(calls):
            call(**right)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    grown(3000)
    assert grown(20_000) < 2000
