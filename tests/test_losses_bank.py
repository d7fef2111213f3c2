"""The bank of the training items' outputs: what it takes in, when, and what of it counts."""

import pytest
import torch
from losses_cases import BANKS

from nhl_fast.core.prefixes import expand
from nhl_fast.losses import build

NAMES = [case.name for case in BANKS if not case.pairs]


def make(name, num_classes, lengths, num_train=50):
    return build(name, num_classes=num_classes, code_lengths=lengths, num_train=num_train)


def test_rows_never_written_do_not_count():
    u, labels = torch.randn(4, 16), torch.tensor([0, 1, 2, 0])
    for name in NAMES:
        large, small = make(name, 3, (8, 16), 50), make(name, 3, (8, 16), 4)
        torch.testing.assert_close(large(u, labels, torch.arange(4)), small(u, labels, torch.arange(4)))


def test_mdsh_fills_its_own_bank_unless_told_otherwise():
    settings = {"num_classes": 3, "code_lengths": (8,), "num_train": 5}
    own, external = build("mdsh", **settings), build("mdsh", **settings, external_bank=True)
    u, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
    own(u, labels, torch.tensor([4, 0, 1]))
    assert torch.equal(own.bank.u[[4, 0, 1]], u)
    external(u, labels)
    assert not external.bank.written.any()
    with pytest.raises(ValueError, match="index"):
        own(u, labels)


def test_float64_outputs_survive_a_state_dict():
    a, b = make("dhn", 3, (8,), 4).double(), make("dhn", 3, (8,), 4)
    a(torch.randn(2, 8, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([0, 3]))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.bank.u, b.bank.u)


def test_an_empty_bank_leaves_the_penalty_alone():
    for name in NAMES:
        loss = make(name, 3, (8, 16), 5).eval()
        u = torch.randn(2, 16)
        torch.testing.assert_close(
            loss(u, torch.tensor([0, 1])), loss.penalty(expand(u.clamp(-1, 1) if name == "dbdh" else u, (8, 16)))
        )


def test_the_batch_is_stored_detached_before_it_is_read():
    loss = make("dsh", 3, (8, 16), 5)
    u = torch.randn(3, 16, requires_grad=True)
    loss(u, torch.tensor([0, 1, 2]), torch.tensor([4, 0, 2]))
    assert torch.equal(loss.bank.u[[4, 0, 2]], u.detach())
    assert loss.bank.written.tolist() == [True, False, True, False, True]
    assert not loss.bank.u.requires_grad


def test_evaluation_reads_without_writing():
    loss = make("dhn", 3, (8, 16), 5)
    loss(torch.randn(3, 16), torch.tensor([0, 1, 2]), torch.arange(3))
    before = loss.bank.u.clone()
    loss.eval()
    loss(torch.randn(3, 16), torch.tensor([0, 1, 2]))
    assert torch.equal(loss.bank.u, before)


def test_two_calls_before_backward():
    """The bank changes between forward and backward; nothing that backward needs is in it."""
    loss = make("dhn", 3, (8, 16), 8)
    u = torch.randn(4, 16, requires_grad=True)
    first = loss(u, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    (expected,) = torch.autograd.grad(first.sum(), u, retain_graph=True)
    second = loss(u + 1, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    (again,) = torch.autograd.grad(first.sum() + 0 * second.sum(), u)
    torch.testing.assert_close(again, expected)


def test_ids_and_multi_hot_may_meet():
    loss = make("dsh", 3, (8,), 4)
    loss.bank.update(torch.tensor([0, 1]), torch.randn(2, 8), torch.tensor([2, 0]))
    loss.bank.update(torch.tensor([2]), torch.randn(1, 8), torch.tensor([[1, 0, 1]]))
    similar = loss.bank.similarity(torch.tensor([2, 0]))
    assert similar.tolist() == [[True, False, True, False], [False, True, True, False]]


def test_state_dict_round_trip_with_multi_hot_labels():
    a, b = make("dsh", 3, (8,), 4), make("dsh", 3, (8,), 4)
    a(torch.randn(2, 8), torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.tensor([3, 1]))
    b.load_state_dict(a.state_dict())
    u, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
    torch.testing.assert_close(a.eval()(u, labels), b.eval()(u, labels), rtol=0, atol=0)
