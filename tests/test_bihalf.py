"""The layer's `bihalf`: halves over the batch, by the paper's code written anew; where it applies, and where not."""

import copy

import pytest
import torch

from nhl_fast import NestedHashLayer, NestedObjective
from nhl_fast.head.bihalf import halved
from nhl_fast.losses import Contrastive, build

LENGTHS = (4, 9)


def by_hand(u):
    """Column by column: the largest half of the rows."""
    bits = [[-1.0] * u.shape[1] for _ in u]
    for c, column in enumerate(u.T.tolist()):
        for row in sorted(range(len(u)), key=lambda i: -column[i])[: len(u) // 2]:
            bits[row][c] = 1.0
    return torch.tensor(bits, dtype=u.dtype)


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_half_of_the_rows_have_each_bit(n):
    u = torch.randn(n, 9, dtype=torch.float64) + 3
    bits = halved(u, 6.0)
    assert torch.equal(bits, by_hand(u))
    assert (bits.sum(0) == 2 * (n // 2) - n).all()


def test_equal_outputs_are_halved_too():
    assert halved(torch.zeros(6, 2), 1.0).sum() == 0


@pytest.mark.parametrize("gamma", [0.0, 6.0])
def test_gradients_pass_straight_and_draw_to_the_bits(gamma):
    u, weights = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.randn(8, 5, dtype=torch.float64)
    (halved(u, gamma) * weights).sum().backward()
    wanted = weights + gamma * (u.detach() - by_hand(u.detach())) / 40
    torch.testing.assert_close(u.grad, wanted)


def test_a_step_is_that_of_the_halves():
    """The objective's gradient: the loss's at the bits, straight through the layer, and the draw to the bits."""
    torch.manual_seed(0)
    layer, loss = NestedHashLayer(6, LENGTHS, bihalf=6.0), build("hashnet", num_classes=3, code_lengths=LENGTHS)
    plain = NestedHashLayer(6, LENGTHS)
    plain.load_state_dict(layer.state_dict())
    x, labels = torch.randn(10, 6), torch.arange(10) % 3
    total = NestedObjective(layer, loss, distill_weight=0, weighting="uniform")(x, labels).total
    total.backward()
    u = plain(x)[-1]
    bits = by_hand(u.detach()).requires_grad_()
    value = loss(bits, labels, backend="reference").sum()
    value.backward()
    (u * bits.grad + 3.0 * (u - bits.detach()).square() / u.numel()).sum().backward()
    torch.testing.assert_close(total.detach(), value.detach())
    torch.testing.assert_close(layer.hash_layer.weight.grad, plain.hash_layer.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.hash_layer.bias.grad, plain.hash_layer.bias.grad, rtol=1e-4, atol=1e-6)


def test_prefixes_of_the_layer_are_halves_in_training_alone():
    torch.manual_seed(1)
    layer, x = NestedHashLayer(6, LENGTHS, bihalf=1.0), torch.randn(8, 6)
    raw = layer.project(x).detach()
    for k, b in enumerate(LENGTHS):
        assert torch.equal(layer(x)[k], by_hand(raw)[:, :b])
    tokens = layer(x.view(2, 4, 6))[-1]
    assert torch.equal(tokens, by_hand(raw).view(2, 4, 9))
    with torch.no_grad():
        assert torch.equal(layer(x)[-1], raw)
    assert torch.equal(layer.eval()(x)[-1], raw)
    codes = layer.encode(x)
    assert torch.equal(codes, layer.train().encode(x))
    assert torch.equal(codes, copy.deepcopy(layer).eval().encode(x))


def test_it_trains_balanced_codes():
    """Features far from the origin: plain outputs leave bits that most rows share."""
    torch.manual_seed(2)
    centers = 4 + torch.randn(8, 12)
    x, share = centers[torch.arange(64) % 8] + 0.3 * torch.randn(64, 12), {}
    for gamma in (None, 6.0):
        torch.manual_seed(3)
        layer = NestedHashLayer(12, LENGTHS, bihalf=gamma)
        objective = NestedObjective(layer, Contrastive(LENGTHS))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            objective(x, torch.arange(64) % 8).total.backward()
            optimizer.step()
        ones = (layer.project(x) > 0).float().mean(0)
        share[gamma] = (ones - 0.5).abs().mean().item()
    assert share[6.0] < 0.02
    assert share[None] > 0.1


def test_what_does_not_serve_it_says_so():
    layer, loss = NestedHashLayer(6, LENGTHS, bihalf=6.0), build("csq", num_classes=3, code_lengths=LENGTHS)
    x, labels = torch.randn(4, 6), torch.arange(4) % 3
    with pytest.raises(RuntimeError, match="bihalf: bits are halved over the batch"):
        NestedObjective(layer, loss, backend="cpp")(x, labels)
    with pytest.raises(ValueError, match="NaN or infinity"):
        NestedObjective(layer, loss)(torch.full((4, 6), torch.nan), labels)


@pytest.mark.parametrize("wrong", ["6", -1.0, float("nan")])
def test_a_wrong_weight(wrong):
    with pytest.raises((TypeError, ValueError), match="bihalf: expected"):
        NestedHashLayer(6, LENGTHS, bihalf=wrong)
