"""HyP2's proxies: their gradients, what it takes for thresholds, and training them."""

import copy

import pytest
import torch
from losses_cases import draw_labels, learned_together
from native_cases import AVAILABLE
from numeric import Expected

from nhl_fast import NestedHashLayer
from nhl_fast.losses import HyP2, NestedLoss

LENGTHS = (3, 8, 20)
CPP = pytest.param("cpp", marks=pytest.mark.skipif(not AVAILABLE, reason="native library"))
BACKENDS = ["reference", CPP]


def problem(multi, n=9, classes=5, **options):
    loss, u, labels = HyP2(classes, LENGTHS, **options), torch.randn(n, LENGTHS[-1]), draw_labels(n, classes, multi)
    if multi:
        labels[:3] = torch.eye(classes, dtype=torch.bool)[[0, 1, 2]] | torch.eye(classes, dtype=torch.bool)[[3, 4, 3]]
    return loss, u, labels


def of_proxies(loss, u, labels, backend, plainly=False):
    """Each length's own gradient in the proxies, by name; in its own columns alone."""
    values = loss(u, labels, backend=backend) if not plainly else NestedLoss.expanded(loss, widened(u), labels)
    found = [torch.autograd.grad(value, loss.proxies, retain_graph=True)[0] for value in values]
    assert not any(gradient[:, b:].any() for gradient, b in zip(found, LENGTHS))
    return {f"proxies at {b} bits": gradient for b, gradient in zip(LENGTHS, found)}


def widened(u):
    return torch.cat([u[:, :b] for b in LENGTHS], 1)


@pytest.mark.numeric
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
def test_the_proxies_gradient_is_the_formulas(multi, backend):
    loss, u, labels = problem(multi)
    double = copy.deepcopy(loss).double(), u.double(), labels
    right = Expected(lambda: of_proxies(*double, "reference"), truth=lambda: of_proxies(*double, None, plainly=True))
    right.check(of_proxies(loss, u, labels, backend))


@pytest.mark.numeric
@pytest.mark.parametrize("soft", [False, True])
def test_the_proxies_gradient_where_labels_count_by_weights(soft):
    loss, u, labels = problem(True)
    loss.label_options(ignore_index=-1, class_weights=[1.0, 2.0, 0.5, 1.0, 3.0], soft=soft)
    labels = labels * torch.rand(labels.shape) if soft else labels.long()
    labels[4] = -1
    right = Expected(lambda: of_proxies(copy.deepcopy(loss).double(), u.double(), labels, "reference"))
    right.check(of_proxies(loss, u, labels, "auto"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_of_nothing_is_none(backend):
    loss, u, _ = problem(False)
    none, every = torch.zeros(9, 5, dtype=torch.bool), torch.ones(9, 5, dtype=torch.bool)
    for labels, y in ((none, 0.0), (every, 1.0)):
        values = loss(u, labels, backend=backend)
        for value, b, t in zip(values, LENGTHS, loss.thresholds):
            cosine = torch.nn.functional.cosine_similarity(u[:, None, :b], loss.proxies[None, :, :b], dim=2)
            wanted = (1 - cosine) if y else (cosine - t).relu()
            torch.testing.assert_close(value, wanted.mean())
    both = torch.eye(5, dtype=torch.bool)[[0, 1, 2]] | torch.eye(5, dtype=torch.bool)[[1, 2, 0]]  # all share one
    apart = HyP2(5, LENGTHS, beta=0.0)
    torch.testing.assert_close(loss(u[:3], both, backend=backend), apart(u[:3], both, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_several_classes_are_driven_apart_to_the_threshold(backend):
    loss = HyP2(4, (8,), beta=3.0, threshold=0.25)
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    near = torch.ones(3, 8)
    near[1, 0] = -1  # cosine 3 / 4; the third row has one class
    far = near.clone()
    far[1, :4] = -1  # cosine 0
    gap = loss(near, labels, backend=backend) - HyP2(4, (8,), beta=0.0, threshold=0.25)(near, labels, backend=backend)
    torch.testing.assert_close(gap, torch.tensor([3 * 0.5]))
    plain = HyP2(4, (8,), beta=0.0, threshold=0.25)(far, labels, backend=backend)
    torch.testing.assert_close(loss(far, labels, backend=backend), plain)


def test_thresholds():
    assert HyP2(100, (8, 16, 64)).thresholds == (0.5, 0.25, 0.0)
    assert HyP2(20, (16, 48)).thresholds == (0.0, 0.0)
    assert HyP2(2, (8,)).thresholds == (-1.0,)
    assert HyP2(5, (8, 16), threshold=0.3).thresholds == (0.3, 0.3)
    assert HyP2(5, (8, 16), threshold=[0.3, -0.1]).thresholds == (0.3, -0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, "threshold: expected cosines, from -1 to 1"),
        ({"threshold": -1.5}, ValueError, "threshold: expected a finite number of at least -1"),
        ({"threshold": "high"}, TypeError, "threshold: expected a number"),
        (
            {"threshold": [0.1, 0.2]},
            ValueError,
            "threshold: expected a number, or one for each of the 3 lengths, got 2",
        ),
        ({"beta": -1.0}, ValueError, "beta: expected a finite number of at least 0"),
        ({"num_classes": 1}, ValueError, "num_classes: HyP2 needs at least 2 classes, got 1"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        HyP2(**{"num_classes": 5, "code_lengths": LENGTHS, **options})


def test_proxies_and_codes_learn_together():
    torch.manual_seed(0)
    layer, loss = NestedHashLayer(12, LENGTHS), HyP2(4, LENGTHS)
    x, labels = torch.randn(40, 12), torch.zeros(40, 4, dtype=torch.bool)
    for shift in (0, 1):
        labels[torch.arange(40), (torch.arange(40) + shift * (torch.arange(40) % 3)) % 4] = True
    x[:, :4] += 3 * labels
    found = learned_together(layer, loss, x, labels)
    assert found[-1] < 0.5 * found[0]


def test_proxies_begin_by_their_seed():
    first, again, other = (HyP2(5, LENGTHS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.proxies, again.proxies)
    assert not torch.equal(first.proxies, other.proxies)
    with torch.no_grad():
        first.proxies.zero_()
    first.reset_parameters()
    assert torch.equal(first.proxies, again.proxies)
