"""A loss's values and gradients by its formula, and how far a fused form may be from them."""

import pytest
import torch
from losses_cases import by_length, golden_gradient, naive_by_length, reference_by_length
from numeric import Expected

from nhl_fast.core.prefixes import split
from nhl_fast.steps.fused.bodies import values_and_deltas


def fused(loss, u, labels):
    values, deltas = values_and_deltas(loss.forms(), u, labels, list(loss.code_lengths))
    assert values.dtype == deltas.dtype == torch.float32
    return (values.sum(0) if values.ndim == 2 else values), deltas


def check(loss, u, labels, plainly=True):
    """A fused form is the loss's plain formula in float64 but for float32's own errors (see `numeric`).

    Not `plainly`: it is the reference, where the formula loses all digits.
    """
    values, deltas = fused(loss, u, labels)
    lengths = loss.code_lengths
    assert values.shape == (len(lengths),)
    assert deltas.shape == (u.shape[0], sum(lengths))
    truth = (lambda: naive_by_length(loss, u, labels)) if plainly else None
    right = Expected(lambda: reference_by_length(loss, u, labels), truth=truth)
    right.check(by_length(values, deltas, lengths))
    return values, deltas


def same_by_ids_and_rows(loss, u, ids, rows):
    """The kernels of class ids and of multi-hot rows give one result, and both the formula's.

    Bit for bit where Triton interprets them; a device's compiler fuses each one's multiply-adds in its own way.
    """
    for first, second in zip(check(loss, u, ids), check(loss, u, rows)):
        if first.device.type == "cpu":
            assert torch.equal(first, second)


def check_golden(golden, name, loss, u, labels, lengths):
    """A fused form against the golden values and gradients, to 1e-4."""
    values, deltas = fused(loss, u, labels)
    expected = torch.from_numpy(golden[f"{name}_loss"]).to(values)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)
    for b, found in zip(lengths, split(deltas, lengths)):
        want = golden_gradient(golden, name, b, loss, u)
        assert (found - want).norm() <= 1e-4 * want.norm(), (name, b)


def learns_from_values_alone(loss, u, targets):
    """Nothing of what a loss learns is recorded where gradients are not, or where it is fixed."""
    with torch.no_grad():
        assert not loss(u, targets, backend="triton").requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(loss(u, targets, backend="triton"), loss(u, targets, backend="reference"))
    assert not loss.requires_grad_(False)(u, targets, backend="triton").requires_grad


def gradients_are_taken_once(loss, learned, u, targets):
    u.requires_grad_()
    for source, other in ((u, u), (learned, u), (learned, learned)):
        (gradient,) = torch.autograd.grad(loss(u, targets, backend="triton").sum(), source, create_graph=True)
        with pytest.raises(RuntimeError, match="create_graph=True: this gradient of nhl_fast"):
            torch.autograd.grad(gradient.sum(), other)


def compiles_in_one_graph(loss, u, targets):
    """Compiled, a loss has the values and gradients, in what it learns, too, that it has eagerly."""
    torch._dynamo.reset()
    u.requires_grad_()
    results = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        values = call(u, targets, backend="triton")
        results.append((values.detach(), *torch.autograd.grad(values.square().sum(), [u, *loss.parameters()])))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager)
