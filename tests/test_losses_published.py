"""Losses against their papers' formulas, written anew in float64 and in plain loops; and their gradients."""

import math

import pytest
import torch
from losses_cases import draw_labels, learned_together, make_loss, named

from nhl_fast import NestedHashLayer
from nhl_fast.losses import HashNet, build, naive

LENGTHS = (3, 8)
NEW = named("dpsh", "hashnet", "orthocos", "orthoarc", "idhn", "greedyhash", "hyp2")
SMOOTH = [case for case in NEW if case.name != "greedyhash"]  # its signs' gradient is not that of its value


def shares(a: set, b: set) -> bool:
    return bool(a & b)


def classes_of(labels) -> list[set]:
    if labels.ndim == 1:
        return [{int(i)} for i in labels]
    return [{c for c, hot in enumerate(row) if hot} for row in labels.tolist()]


def inner(a, b) -> float:
    return sum(x * y for x, y in zip(a, b))


def likelihood(theta: float, similar: bool) -> float:
    """-log of sigma(theta), or of 1 - sigma(theta)."""
    p = 1 / (1 + math.exp(-theta))
    return -math.log(p if similar else 1 - p)


def dpsh(loss, u, labels, k):
    bank, b = loss.bank, len(u[0])
    stored = [(row[:b], own) for row, own, ok in zip(bank.u.tolist(), classes_of(bank.labels), bank.written) if ok]
    scale = 1 if loss.reference_bits is None else loss.reference_bits / b
    kinds = {True: [], False: []}
    for row, own in zip(u, classes_of(labels)):
        for other, theirs in stored:
            similar = shares(own, theirs)
            kinds[similar].append(likelihood(scale * inner(row, other) / 2, similar))
    if loss.balance:
        pairs = sum(sum(kind) / len(kind) for kind in kinds.values()) / 2
    else:
        pairs = sum(map(sum, kinds.values())) / (len(u) * len(stored))
    quantization = sum((x - (1 if x > 0 else -1)) ** 2 for row in u for x in row) / (len(u) * b)
    return pairs + loss.alpha * quantization


def hashnet(loss, u, labels, k):
    alpha, total, own = loss.reference_bits / 2 / len(u[0]), 0.0, classes_of(labels)
    h = [[math.tanh(loss.beta * x) for x in row] for row in u]
    similar = [[shares(a, b) for b in own] for a in own]
    positives = sum(map(sum, similar))
    for i, row in enumerate(h):
        for j, other in enumerate(h):
            weight = len(u) ** 2 / (positives if similar[i][j] else len(u) ** 2 - positives)
            total += weight * likelihood(alpha * inner(row, other), similar[i][j])
    return total / len(u) ** 2


def cosines(loss, u, k):
    centers = loss.centers[k].tolist()
    return [[inner(row, c) / math.sqrt(inner(row, row) * inner(c, c)) for c in centers] for row in u]


def cross_entropy(loss, logits, labels):
    total = 0.0
    for row, own in zip(logits, classes_of(labels)):
        everything = sum(math.exp(loss.scale * x) for x in row)
        total -= sum(math.log(math.exp(loss.scale * row[c]) / everything) for c in own) / max(len(own), 1)
    return total / len(logits)


def orthocos(loss, u, labels, k):
    logits = [
        [x - loss.margin * (c in own) for c, x in enumerate(row)]
        for row, own in zip(cosines(loss, u, k), classes_of(labels))
    ]
    return cross_entropy(loss, logits, labels)


def orthoarc(loss, u, labels, k):
    logits = [
        [math.cos(math.acos(x) + loss.margin * (c in own)) for c, x in enumerate(row)]
        for row, own in zip(cosines(loss, u, k), classes_of(labels))
    ]
    return cross_entropy(loss, logits, labels)


def idhn(loss, u, labels, k):
    """By the released code's steps, pair by pair."""
    b, own, pairs = len(u[0]), classes_of(labels), 0.0
    h = [[x / (1 + abs(x)) for x in row] for row in u]
    for row, mine in zip(h, own):
        for other, theirs in zip(h, own):
            s = len(mine & theirs) / math.sqrt(len(mine) * len(theirs)) if mine and theirs else 0.0
            if s < 0.01 or s > 0.99:
                theta = loss.sharpness * inner(row, other) / b
                pairs += math.log(1 + math.exp(theta)) - s * theta
            else:
                pairs += loss.gamma * b * ((inner(row, other) + b) / 2 / b - s) ** 2
    quantization = sum(abs(abs(x) - 1) for row in h for x in row) / (len(u) * b)
    return pairs / len(u) ** 2 + loss.alpha * quantization


def greedy_logits(loss, u, k):
    weights = loss.classifier.split(loss.code_lengths, dim=1)[k].tolist()
    return [[inner([1 if x > 0 else -1 for x in row], w) for w in weights] for row in u]


def greedyhash(loss, u, labels, k):
    total = 0.0
    for row, own in zip(greedy_logits(loss, u, k), classes_of(labels)):
        everything = sum(map(math.exp, row))
        total -= sum(math.log(math.exp(row[c]) / everything) for c in own) / max(len(own), 1)
    cubes = sum(abs(abs(x) - 1) ** 3 for row in u for x in row) / (len(u) * len(u[0]))
    return total / len(u) + loss.alpha * cubes


def cosine(a, b) -> float:
    return inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))


def hyp2(loss, u, labels, k):
    """By the released code's steps, row by row."""
    t, sets, b = loss.thresholds[k], classes_of(labels), len(u[0])
    proxies = [p[:b] for p in loss.proxies.tolist()]
    own = [1 - cosine(row, proxies[c]) for row, mine in zip(u, sets) for c in mine]
    others = [
        max(cosine(row, p) - t, 0) for row, mine in zip(u, sets) for c, p in enumerate(proxies) if c not in mine
    ]
    several = [(row, mine) for row, mine in zip(u, sets) if len(mine) > 1]
    unlike = [max(cosine(x, y) - t, 0) for x, a in several for y, c in several if not a & c]
    total = sum(own) / len(own) + sum(others) / len(others)
    return total + loss.beta * sum(unlike) / max(len(unlike), 1)


def problem(case, multi):
    torch.manual_seed(3)
    loss = make_loss(case, LENGTHS, classes=4, multi=multi, num_train=9).double().eval()
    return loss, torch.randn(7, LENGTHS[-1], dtype=torch.float64), draw_labels(7, 4, multi)


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("case", NEW, ids=str)
def test_a_loss_is_its_papers(case, multi):
    loss, u, labels = problem(case, multi)
    values = loss(u, labels, backend="reference")
    for k, b in enumerate(LENGTHS):
        right = globals()[case.name](loss, u[:, :b].tolist(), labels, k)
        assert values[k].item() == pytest.approx(right, rel=1e-9), b


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_its_gradient_is_that_of_its_value(case, multi):
    loss, u, labels = problem(case, multi)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, backend="reference"), u.requires_grad_())


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
def test_greedyhash_passes_the_gradient_of_the_bits_straight(multi, backend):
    """Of outputs and weights, by hand: (p - y) W and (p - y) z, a row's classes sharing it, and the cubes' own."""
    torch.manual_seed(5)
    loss, u = build("greedyhash", num_classes=4, code_lengths=LENGTHS), torch.randn(7, LENGTHS[-1])
    labels = draw_labels(7, 4, multi)
    x = u.clone().requires_grad_()
    values = loss(x, labels, backend=backend)
    for k, b in enumerate(LENGTHS):
        to_u, to_w = torch.autograd.grad(values[k], (x, loss.classifier), retain_graph=True)
        weights = loss.classifier.detach().split(LENGTHS, dim=1)[k].double()
        wanted_u, wanted_w = torch.zeros(7, LENGTHS[-1]).double(), torch.zeros(4, b).double()
        for i, (row, own) in enumerate(zip(greedy_logits(loss, u[:, :b].tolist(), k), classes_of(labels))):
            everything = sum(map(math.exp, row))
            for c in range(4):
                gap = (bool(own) * math.exp(row[c]) / everything - (c in own) / max(len(own), 1)) / 7
                wanted_u[i, :b] += gap * weights[c]
                wanted_w[c] += gap * naive.signs(u[i, :b]).double()
            for j, value in enumerate(u[i, :b].tolist()):
                gap = abs(value) - 1
                wanted_u[i, j] += loss.alpha * 3 * gap * abs(gap) * math.copysign(1, value) / (7 * b)
        torch.testing.assert_close(to_u.double(), wanted_u, rtol=1e-5, atol=1e-6)
        at = sum(LENGTHS[:k])
        torch.testing.assert_close(to_w[:, at : at + b].double(), wanted_w, rtol=1e-5, atol=1e-6)
        assert not to_w[:, :at].any()
        assert not to_w[:, at + b :].any()


def test_greedyhash_learns_classifier_and_codes_together():
    torch.manual_seed(0)
    layer, loss = NestedHashLayer(12, LENGTHS), build("greedyhash", num_classes=4, code_lengths=LENGTHS)
    x, labels = torch.randn(40, 12), torch.arange(40) % 4
    x[torch.arange(40), labels] += 3
    found = learned_together(layer, loss, x, labels)
    assert found[-1] < 0.3 * found[0]


def test_greedyhash_needs_two_classes():
    with pytest.raises(ValueError, match="num_classes: GreedyHash needs at least 2 classes, got 1"):
        build("greedyhash", num_classes=1)


def test_hashnet_sharpens_by_the_epoch():
    loss = HashNet(4, (8,), continuation=5)
    sharpness = []
    for epoch in (0, 4, 5, 15):
        loss.set_epoch(epoch)
        sharpness.append(loss.sharpness)
    assert sharpness == [1, 1, math.sqrt(2), 2]
    u, labels = torch.randn(6, 8), torch.arange(6) % 4
    torch.testing.assert_close(loss(u, labels), HashNet(4, (8,), beta=2.0)(u, labels))
    fixed = HashNet(4, (8,), continuation=None)
    fixed.set_epoch(100)
    assert fixed.sharpness == 1


@pytest.mark.parametrize("name", ["orthocos", "orthoarc"])
def test_rows_at_their_centre(name):
    """The angle is 0 or pi, where its slope has no bound: the gradient stays finite, and backends agree."""
    loss = build(name, num_classes=2, code_lengths=(4,), centers=[torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])])
    u = torch.tensor([[2.0] * 4, [-3.0] * 4, [1, 1, -1, -1], [0.0] * 4])
    for backend in ("auto", "reference"):
        x = u.clone().requires_grad_()
        value = loss(x, torch.tensor([0, 0, 1, 1]), backend=backend)
        (grad,) = torch.autograd.grad(value.sum(), x)
        assert torch.isfinite(grad).all()
        assert not grad[3].any()  # a row without a direction has no slope
    margin, s = 0.2, 8.0
    own = 1 - margin if name == "orthocos" else math.cos(margin) - 0.01 * math.sin(margin)
    torch.testing.assert_close(loss(u[:1], torch.tensor([0])), torch.tensor([math.log1p(math.exp(-s - s * own))]))


@pytest.mark.parametrize("name", ["orthocos", "orthoarc"])
def test_cross_entropy_needs_two_classes(name):
    with pytest.raises(ValueError, match=r"num_classes: Ortho.* needs at least 2 classes, got 1"):
        build(name, num_classes=1)
