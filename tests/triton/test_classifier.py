"""The fused classifier of the bits (GreedyHash) against the reference: codes' gradients, and the classifier's own."""

import pytest
import torch
from against import (
    check,
    compiles_in_one_graph,
    fused,
    gradients_are_taken_once,
    learns_from_values_alone,
    same_by_ids_and_rows,
)
from launches import launches
from losses_cases import Case, draw_labels, make_loss, reference
from nhl_fast.kernels import classifier as kernels
from nhl_fast.kernels import tiles
from numeric import Expected, expected
from step_cases import by_formulas, make, run
from test_forms import Named

from nhl_fast.core.prefixes import segment_matrix, split
from nhl_fast.losses import build
from nhl_fast.losses.form import Form
from nhl_fast.steps.fused import bodies
from nhl_fast.steps.fused.classifier import classifier

LENGTHS = (8, 16, 32, 64, 128)
CASE = Case("greedyhash", {"alpha": 0.5})


def problem(lengths, n, device, classes=5, multi=False, scale=1.0):
    """(loss, u, labels); weights larger than at the start, for probabilities that differ."""
    loss = make_loss(CASE, lengths, classes=classes, device=device)
    with torch.no_grad():
        loss.classifier.mul_(2)
    return loss, scale * torch.randn(n, lengths[-1], device=device), draw_labels(n, classes, multi, device)


def of_classifier(loss, u, labels, backend):
    """Each length's own gradient in the classifier, by name."""
    values = loss(u, labels, backend=backend)
    found = [torch.autograd.grad(value, loss.classifier, retain_graph=True)[0] for value in values]
    for k, gradient in enumerate(found):
        parts = split(gradient, loss.code_lengths)
        assert not any(part.any() for i, part in enumerate(parts) if i != k)
    return {f"classifier at {b} bits": g for b, g in zip(loss.code_lengths, found)}


def check_both(loss, u, labels):
    """Gradients in codes and in the classifier are those of the plain formulas in float64."""
    check(loss, u, labels)

    def by_formula():
        double = build("greedyhash", num_classes=loss.num_classes, code_lengths=loss.code_lengths, alpha=loss.alpha)
        double = double.double().to(u.device)
        double.load_state_dict(loss.state_dict())
        double.classifier.data = loss.classifier.detach().double()
        return of_classifier(double, u.double(), labels, "reference")

    Expected(by_formula).check(of_classifier(loss, u, labels, "triton"))


@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (3, 33), (33, 7)])
def test_equals_the_reference(n, classes, multi, device):
    check_both(*problem((5, 48), n, device, classes, multi))


@pytest.mark.parametrize("lengths", [(1,), LENGTHS, (7, 200)], ids=str)
def test_lengths(lengths, device):
    check_both(*problem(lengths, 6, device))


@pytest.mark.slow
def test_long_codes(device):
    check_both(*problem((64, 1024), 5, device))


@pytest.mark.parametrize("sides", [(32, 16, 16, 32), (16, 64, 64, 64)], ids=str)
def test_tiles_give_the_same(sides, device, monkeypatch):
    rows, columns, bits, width = sides
    monkeypatch.setattr(kernels, "GRADIENT", tiles.Tiles(rows, columns, bits, width))
    monkeypatch.setattr(kernels, "SLOPES", tiles.Tiles(columns, rows, bits, width))
    check_both(*problem((8, 70), 20, device, classes=40))


def test_parts_of_the_rows(device, monkeypatch):
    """The classifier's gradient is formed in parts of the rows, the last of them shorter."""
    monkeypatch.setattr(kernels, "parts", lambda n, classes, lengths: (3, 32))
    check_both(*problem((4, 9), 70, device))
    monkeypatch.undo()
    for n in (1, 64, 300, 32768):
        number, rows = kernels.parts(n, 100, LENGTHS)
        assert rows % kernels.SLOPES.rows == 0
        assert (number - 1) * rows < n <= number * rows
    assert kernels.parts(32768, 100, LENGTHS)[0] > 4


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e2, 1e4])
def test_extreme_outputs_stay_finite(scale, device):
    loss, u, labels = problem((8, 64), 16, device, scale=scale)
    values, deltas = fused(loss, u, labels)
    truth = reference(loss, u, labels)
    assert torch.isfinite(deltas).all()
    torch.testing.assert_close(values, truth[0].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deltas, truth[1].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("classes", [2, 40])
def test_certain_probabilities(classes, right, device):
    """p rounds to 1 in float32: neither -log p nor 1 - p may cancel."""
    loss, _, _ = problem((16,), 3, device, classes)
    codes = torch.randn(3, 16, device=device).sign()
    with torch.no_grad():
        loss.classifier.normal_(std=0.1)
        loss.classifier[1] += 1.3 * codes[0]
        labels = torch.full((3,), 1 if right else 0, device=device)
    u = codes[[0, 0, 0]] * torch.rand(3, 16, device=device)
    values, deltas = fused(loss, u, labels)
    loss.alpha = 0.0
    plain_values, plain_deltas = fused(loss, u, labels)
    truth = reference(loss, u, labels)
    assert truth[0] < 1e-6 if right else truth[0] > 15
    torch.testing.assert_close(plain_values, truth[0].float(), rtol=1e-4, atol=0)
    assert (plain_deltas - truth[1]).norm() <= 1e-4 * truth[1].norm()
    assert (values > plain_values).all()
    assert not torch.equal(deltas, plain_deltas)


@pytest.mark.parametrize("weighting", ["dominance", "uniform"])
@pytest.mark.parametrize("size", [(9, 5, (1, 7)), (40, 33, (8, 20, 64))], ids=str)
def test_a_whole_step_with_the_classifier_that_it_learns(size, weighting, device):
    """Values, weights, gradients of layer, features and classifier: the formulas', in float32."""
    layer, loss, features, labels, index, options = make("greedyhash", *size, weighting=weighting, distill_weight=0.3)
    given = layer.to(device), loss.to(device), features.to(device), labels.to(device), index.to(device), options
    truth = expected(run, given, "reference", torch.float64, 1.0, truth=by_formulas)
    assert "dclassifier" in truth.check(run(given, "triton"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    """Outputs in half precision are numbers of float32; so are features, whose gradient is rounded again."""
    loss, u, labels = problem((5, 20), 9, device)
    found = {}
    for x in (u.to(dtype), u.to(dtype).float()):
        x = x.requires_grad_()
        values = loss(x, labels, backend="triton")
        found[x.dtype] = (values, *torch.autograd.grad(values.sum(), [loss.classifier, x]))
    for half, full in zip(found[dtype][:2], found[torch.float32][:2]):
        assert torch.equal(half, full)
    assert torch.equal(found[dtype][2], found[torch.float32][2].to(dtype))


def test_classes_learn_from_the_values_alone(device):
    loss, u, labels = problem((8, 40), 20, device)
    learns_from_values_alone(loss, u, labels)
    fixed = loss(u.requires_grad_(), labels, backend="triton")
    assert fixed.requires_grad
    (gradient,) = torch.autograd.grad(fixed.sum(), u)
    assert gradient.any()


def test_gradients_are_taken_once(device):
    loss, u, labels = problem((4, 8), 6, device)
    gradients_are_taken_once(loss, loss.classifier, u, labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_multi_hot_of_one_class_is_its_id(dtype, device):
    loss, u, ids = problem((8, 40), 20, device, 12)
    same_by_ids_and_rows(loss, u, ids, torch.nn.functional.one_hot(ids, 12).to(dtype))


def test_rows_without_a_class_count_for_the_penalty_alone(device):
    loss, u, labels = problem((4, 20), 10, device, multi=True)
    labels[:] = False
    for gradient in of_classifier(loss, u, labels, "triton").values():
        assert not gradient.any()
    check(loss, u, labels)


@pytest.mark.parametrize("learns", [True, False])
def test_opcheck_launches_and_repetition(learns, device):
    loss, u, labels = problem((8, 24), 20, device)
    given = (u, loss.classifier.detach(), labels, [8, 24], "cross_entropy", 0.5, learns)
    torch.library.opcheck(classifier, given)
    assert launches(lambda: classifier(*given)) == ["rows_kernel", *["classes_kernel"] * learns]
    for one, other in zip(classifier(*given), classifier(u.T.contiguous().T, *given[1:])):
        assert torch.equal(one, other)
    assert len(classifier(*given)[2]) == learns


def test_compiles_in_one_graph(device):
    loss, u, labels = problem((5, 12), 12, device)
    compiles_in_one_graph(loss, u, labels)


def test_a_function_that_there_is_not(device):
    lengths = (5, 12, 48)
    table, segments = torch.zeros(4, sum(lengths)), segment_matrix(lengths)
    loss = Named(Form("classifier", "hinge", classifier=table, segments=segments)).to(device)
    with pytest.raises(ValueError, match="function: expected one of 'cross_entropy', got 'hinge'"):
        loss(torch.randn(3, 48, device=device), torch.zeros(3, dtype=torch.long, device=device), backend="triton")


def test_a_body_without_a_kernel_is_refused_by_name(device, monkeypatch):
    loss, u, labels = problem((4, 30), 5, device)
    monkeypatch.delitem(bodies.BODIES, "classifier")
    with pytest.raises(RuntimeError, match="there is no kernel for the body 'classifier'"):
        loss(u, labels, backend="triton")
