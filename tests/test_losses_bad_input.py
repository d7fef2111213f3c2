"""Bad input to the losses: an error that names the argument, before any work."""

import pytest
import torch
import torch.nn.functional as F
from losses_cases import BANKS

from nhl_fast.losses import PerLength, build


def make(name, num_classes, lengths, num_train=50, **options):
    """Without the bank that MDSH may have."""
    num_train = num_train if name in [case.name for case in BANKS if not case.pairs] else None
    return build(name, num_classes=num_classes, code_lengths=lengths, num_train=num_train, **options)


U, Y = torch.randn(4, 16), torch.tensor([0, 1, 2, 0])
BAD = [
    ("lengths that do not increase", lambda: build("csq", num_classes=3, code_lengths=(16, 8)), "increasing"),
    ("no lengths", lambda: build("csq", num_classes=3, code_lengths=()), "code_lengths"),
    ("a length of zero", lambda: build("csq", num_classes=3, code_lengths=(0, 8)), "code_lengths"),
    ("a float length", lambda: build("csq", num_classes=3, code_lengths=(8.5,)), "code_lengths"),
    ("no classes", lambda: build("csq", num_classes=0), "num_classes"),
    ("one class for a softmax", lambda: build("mdsh", num_classes=1), "num_classes"),
    ("unknown loss", lambda: build("cqs", num_classes=3), "'csq'"),
    ("unknown option", lambda: build("csq", num_classes=3, margin=2), "margin"),
    ("a bank of unknown size", lambda: build("dsh", num_classes=3), "num_train"),
    ("wrong width", lambda: make("csq", 3, (8, 16))(U[:, :8], Y), "u: expected 16"),
    ("no rows", lambda: make("csq", 3, (8, 16))(U[:0], Y[:0]), "at least one row"),
    ("integer outputs", lambda: make("csq", 3, (8, 16))(U.long(), Y), "floating"),
    ("a NumPy array", lambda: make("csq", 3, (8, 16))(U.numpy(), Y), "torch.Tensor"),
    ("labels too long", lambda: make("csq", 3, (8, 16))(U, Y.repeat(2)), "labels"),
    ("float ids", lambda: make("csq", 3, (8, 16))(U, Y + 0.5), "labels: expected class ids"),
    ("id out of range", lambda: make("csq", 3, (8, 16))(U, Y + 1), "from 0 to 2"),
    ("negative id", lambda: make("csq", 3, (8, 16))(U, Y - 1), "from 0 to 2"),
    ("multi-hot of other width", lambda: make("csq", 3, (8, 16))(U, F.one_hot(Y, 4)), "3 columns"),
    ("multi-hot with a two", lambda: make("csq", 3, (8, 16))(U, 2 * F.one_hot(Y, 3)), "zeros and ones"),
    ("two classes for shcir", lambda: make("shcir", 3, (8, 16))(U, torch.ones(4, 3)), "single-label"),
    ("no class for shcir", lambda: make("shcir", 3, (8, 16))(U, torch.zeros(4, 3)), "single-label"),
    ("no index", lambda: make("dsh", 3, (8, 16))(U, Y), "index"),
    ("index out of range", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(4) + 1), "from 0 to 3"),
    ("float index", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(4.0)), "index"),
    ("short index", lambda: make("dsh", 3, (8, 16), 4)(U, Y, torch.arange(3)), "index"),
    ("wrong bank width", lambda: make("dsh", 3, (8, 16), 4).bank.update(Y, U[:, :8], Y), "u: expected 16"),
    ("too few functions", lambda: PerLength([lambda u, y: u.sum()], (8, 16)), "functions: expected 2"),
    ("a function that is none", lambda: PerLength([3, 4], (8, 16)), "functions"),
    ("a function without a scalar", lambda: PerLength([lambda u, y: u], (16,))(U, Y), "0-d"),
    ("an option that is no number", lambda: make("dsh", 3, (8,), margin="wide"), "margin"),
    ("an option that is not finite", lambda: make("dch", 3, (8,), gamma=float("nan")), "gamma"),
    ("a negative option", lambda: make("lcdsh", 3, (8,), eta=-1), "eta"),
    ("a flag that is none", lambda: make("dtsh", 3, (8,), clamp="no"), "clamp"),
    ("a cosine beyond 1", lambda: make("dch", 3, (8,), max_cosine=1.5), "max_cosine"),
    (
        "the bank's size as an option",
        lambda: build("csq", num_classes=3, num_train=4, **{"num_classes_": 3}),
        "option",
    ),
    ("tie centres that are a number", lambda: setattr(make("csq", 3, (8, 16)), "tie_centers", 5), "tie_centers"),
    ("an unknown backend", lambda: make("csq", 3, (8, 16))(U, Y, backend="gpu"), "backend"),
    ("a missing backend", lambda: make("dch", 3, (8, 16))(U, Y, backend="cuda"), "backend"),
    ("short tie centres", lambda: setattr(make("csq", 3, (8, 16)), "tie_centers", [torch.ones(8)]), "tie_centers"),
]


@pytest.mark.parametrize(("call", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
