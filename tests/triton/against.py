"""The reference's values and gradients of a loss, and how far a fused form may be from them."""

import copy

import torch
from numeric import Expected

import nhl_fast.steps.fused.step  # noqa: F401  (all fused forms register themselves)
from nhl_fast.core.known_gradient import per_length_gradients
from nhl_fast.core.prefixes import expand, split
from nhl_fast.steps.fused.registry import FUSED


def reference(loss, u, labels, dtype):
    """(values (m,), deltas (N, T)) of the reference in `dtype`; labels as `prepare` gives them."""
    loss = copy.deepcopy(loss).to(dtype)
    values, deltas = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u.to(dtype), loss.code_lengths))
    return values.detach(), deltas


def fused(loss, u, labels):
    values, deltas = FUSED[type(loss)](loss, u, labels)
    assert values.dtype == deltas.dtype == torch.float32
    return (values.sum(0) if values.ndim == 2 else values), deltas


def by_length(values, deltas, lengths):
    """What there is to compare, by name."""
    return {"values": values, **{f"gradient at {b} bits": x for b, x in zip(lengths, split(deltas, lengths))}}


def check(loss, u, labels):
    """A fused form is the reference in float64 but for float32's own errors (see `numeric`)."""
    values, deltas = fused(loss, u, labels)
    lengths = loss.code_lengths
    assert values.shape == (len(lengths),)
    assert deltas.shape == (u.shape[0], sum(lengths))
    right = Expected(lambda: by_length(*reference(loss, u, labels, torch.float64), lengths))
    right.check(by_length(values, deltas, lengths))
    return values, deltas


def check_golden(golden, name, loss, u, labels, lengths, exception=lambda b, g: g):
    """A fused form against the golden values and gradients, to 1e-4."""
    values, deltas = fused(loss, u, labels)
    expected = torch.from_numpy(golden[f"{name}_loss"]).to(values)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)
    for b, g in zip(lengths, split(deltas, lengths)):
        want, g = torch.from_numpy(golden[f"{name}_grad_{b}"]).to(g), exception(b, g)
        assert (g - want).norm() <= 1e-4 * want.norm(), (name, b)
