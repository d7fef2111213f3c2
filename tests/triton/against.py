"""The reference's values and gradients of a loss, and how far a fused form may be from them."""

import copy

import torch

import nhl_fast.fused.step  # noqa: F401  (all fused forms register themselves)
from nhl_fast.fused.registry import FUSED
from nhl_fast.objective import per_length_gradients
from nhl_fast.prefixes import expand, split


def reference(loss, u, labels, dtype):
    """(values (m,), deltas (N, T)) of the reference in `dtype`; labels as `prepare` gives them."""
    loss = copy.deepcopy(loss).to(dtype)
    values, deltas = per_length_gradients(lambda v: loss.expanded(v, labels), expand(u.to(dtype), loss.code_lengths))
    return values.detach(), deltas


def fused(loss, u, labels):
    values, deltas = FUSED[type(loss)](loss, u, labels)
    assert values.dtype == deltas.dtype == torch.float32
    return (values.sum(0) if values.ndim == 2 else values), deltas


def assert_within_budget(found, plain, truth, what, slack=4e-7, atol=1e-30):
    """|found - truth| is at most twice |plain - truth|, and a few roundings (`atol`, where terms cancel)."""
    truth, found = truth.double(), found.double()
    assert torch.isfinite(found).all(), what
    error, own = (found - truth).norm(), (plain.double() - truth).norm()
    assert error <= 2 * own + slack * truth.norm() + atol, (what, error.item(), own.item(), truth.norm().item())


def check(loss, u, labels, atol=1e-30):
    """A fused form against the reference in float64, no further than twice the reference in float32."""
    values, deltas = fused(loss, u, labels)
    lengths = loss.code_lengths
    assert values.shape == (len(lengths),)
    assert deltas.shape == (u.shape[0], sum(lengths))
    true_values, true_deltas = reference(loss, u, labels, torch.float64)
    plain_values, plain_deltas = reference(loss, u, labels, torch.float32)
    assert_within_budget(values, plain_values, true_values, "values")
    parts = (split(x, lengths) for x in (deltas, plain_deltas, true_deltas))
    for b, found, plain, truth in zip(lengths, *parts):
        assert_within_budget(found, plain, truth, f"gradient at {b} bits", atol=atol)
    return values, deltas


def check_golden(golden, name, loss, u, labels, lengths, exception=lambda b, g: g):
    """A fused form against the golden values and gradients, to 1e-4."""
    values, deltas = fused(loss, u, labels)
    expected = torch.from_numpy(golden[f"{name}_loss"]).to(values)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)
    for b, g in zip(lengths, split(deltas, lengths)):
        want, g = torch.from_numpy(golden[f"{name}_grad_{b}"]).to(g), exception(b, g)
        assert (g - want).norm() <= 1e-4 * want.norm(), (name, b)
