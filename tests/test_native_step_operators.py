"""The operators of the C++ training step: their schemas and fakes, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")


def sample_arguments():
    u, labels, lengths = torch.randn(6, 12), torch.arange(6) % 3, [5, 12]
    sets, centers = F.one_hot(labels, 3).bool(), torch.randn(3, 17).sign()
    bank = torch.randn(20, 12), torch.arange(20) % 3, torch.rand(20) < 0.8
    bank_sets = bank[0], F.one_hot(bank[1], 3).bool(), bank[2]
    features, weight, bias = torch.randn(6, 7), torch.randn(12, 7), torch.randn(12)
    deltas, values = torch.randn(6, 17), torch.rand(2)
    return {
        "project": (features, weight, bias, True),
        "project_back": (torch.tensor(2.0), u, features, weight, True, True),
        "combine": (u, features, features @ features.T, values, deltas, lengths, 0.5, None),
        "csq": (u, centers, labels, lengths, 1e-4),
        "dpn": (u, centers[labels], None, lengths, 1.0, True),
        "dsh": (u, labels, *bank, lengths, 0.1, 2.0, True),
        "dhn": (u, sets, *bank_sets, lengths, 0.1, 16.0, True),
        "dbdh": (u, labels, *bank, lengths, 0.1, 1.0, 0.0, False),
        "lcdsh": (u, sets, lengths, 3.0, 50.0, 0.0),
        "dch": (u, labels, lengths, 20.0, 0.1, 0.99),
        "dtsh": (u, labels, lengths, 5.0, 1.0, -100.0, 50.0, 32.0),
        "center_softmax": (u, labels, centers, lengths, 0.1, 1.0, 1e-4, 16.0, *bank),
    }


@pytest.mark.parametrize("name", list(sample_arguments()))
def test_opcheck(name):
    operator = getattr(torch.ops.nhl_fast, f"step_{name}").default
    torch.library.opcheck(operator, sample_arguments()[name], test_utils=["test_schema", "test_faketensor"])


def test_operators_refuse_what_they_cannot_read():
    good, ops = sample_arguments(), torch.ops.nhl_fast
    u, sets = good["csq"][0], good["lcdsh"][1]

    def replaced(name, place, value):
        arguments = list(good[name])
        arguments[place] = value
        return lambda: getattr(ops, f"step_{name}")(*arguments)

    for call in (
        replaced("project", 1, torch.randn(12, 8)),
        replaced("project", 2, torch.randn(11)),
        replaced("project", 0, torch.randn(6, 7).double()),
        replaced("project_back", 1, u[:5]),
        replaced("combine", 4, torch.randn(6, 16)),
        replaced("combine", 2, torch.randn(5, 5)),
        replaced("combine", 3, torch.rand(3)),
        replaced("combine", 5, [12, 12]),
        replaced("combine", 7, torch.ones(3)),
        replaced("csq", 0, u.T.contiguous().T),
        replaced("csq", 0, u[:0]),
        replaced("csq", 1, torch.randn(3, 16)),
        replaced("csq", 2, torch.full((6,), 3)),
        replaced("csq", 2, torch.arange(6, dtype=torch.int32) % 3),
        replaced("csq", 3, []),
        replaced("dpn", 1, torch.randn(5, 17)),
        replaced("dhn", 1, torch.arange(6) % 3),
        replaced("dhn", 1, sets[:, :2].contiguous()),
        replaced("dhn", 2, torch.randn(20, 11)),
        replaced("dhn", 4, torch.ones(19, dtype=torch.bool)),
        replaced("lcdsh", 1, sets.long()),
        replaced("lcdsh", 5, -1.0),
        replaced("lcdsh", 5, float("nan")),
        replaced("dhn", 7, float("inf")),
        replaced("dch", 1, torch.arange(5)),
        replaced("center_softmax", 2, torch.randn(1, 17)),
        replaced("center_softmax", 1, sets[:, :2].contiguous()),
    ):
        with pytest.raises(RuntimeError):
            call()
