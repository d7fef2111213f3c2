"""A loss's values and gradients by its formula, and how far a fused form may be from them."""

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


def check_golden(golden, name, loss, u, labels, lengths):
    """A fused form against the golden values and gradients, to 1e-4."""
    values, deltas = fused(loss, u, labels)
    expected = torch.from_numpy(golden[f"{name}_loss"]).to(values)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)
    for b, found in zip(lengths, split(deltas, lengths)):
        want = golden_gradient(golden, name, b, loss, u)
        assert (found - want).norm() <= 1e-4 * want.norm(), (name, b)
