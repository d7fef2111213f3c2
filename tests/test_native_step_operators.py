"""The operators of the C++ training step: their schemas and fakes, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from native_cases import AVAILABLE, DETAIL

INF = float("inf")
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
        "center": (u, centers, labels, lengths, "csq", [1e-4]),
        "center a row": (u, centers[labels], None, lengths, "dpn_ternary", [1.0]),
        "pairs": (u, labels, *bank, lengths, "contrastive", [2.0], "absolute", 0.1, "halves", "pairs", INF, 0.0),
        "pairs of sets": (u, sets, *bank_sets, lengths, "likelihood", [], "log_cosh", 0.1, "no", "pairs", INF, 16.0),
        "pairs of the batch": (
            u,
            sets,
            None,
            None,
            None,
            lengths,
            "locality",
            [3.0, 50.0],
            "none",
            0.0,
            "no",
            "pairs",
            INF,
            0.0,
        ),
        "triplets": (u, labels, lengths, "logistic", [5.0, -100.0, 50.0], "sign", 1.0, 32.0),
        "listwise": (u, features, torch.ones(2), lengths, "divergence", [0.2]),
        "listwise of views": (u, labels, torch.ones(2), lengths, "views", [0.1]),
        "classifier": (u, labels, torch.randn(3, 17), lengths, "cross_entropy", [], "cube", 0.1),
        "softmax": (u, labels, centers, lengths, "likelihood", [0.1, 1.0], "square", 1e-4, 16.0),
    }


@pytest.mark.parametrize("name", list(sample_arguments()))
def test_opcheck(name):
    operator = getattr(torch.ops.nhl_fast, f"step_{name.split()[0]}").default
    torch.library.opcheck(operator, sample_arguments()[name], test_utils=["test_schema", "test_faketensor"])


def test_operators_refuse_what_they_cannot_read():
    good, ops = sample_arguments(), torch.ops.nhl_fast
    u, sets = good["center"][0], good["pairs of sets"][1]

    def replaced(name, place, value):
        arguments = list(good[name])
        arguments[place] = value
        return lambda: getattr(ops, f"step_{name.split()[0]}")(*arguments)

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
        replaced("center", 0, u.T.contiguous().T),
        replaced("center", 0, u[:0]),
        replaced("center", 1, torch.randn(3, 16)),
        replaced("center", 2, torch.full((6,), 3)),
        replaced("center", 2, torch.arange(6, dtype=torch.int32) % 3),
        replaced("center", 3, []),
        replaced("center a row", 1, torch.randn(5, 17)),
        replaced("pairs of sets", 1, torch.arange(6) % 3),
        replaced("pairs of sets", 1, sets[:, :2].contiguous()),
        replaced("pairs of sets", 2, torch.randn(20, 11)),
        replaced("pairs of sets", 4, torch.ones(19, dtype=torch.bool)),
        replaced("pairs of the batch", 1, sets.long()),
        replaced("pairs of the batch", 13, -1.0),
        replaced("pairs of the batch", 13, float("nan")),
        replaced("pairs of sets", 13, float("inf")),
        replaced("pairs", 1, torch.arange(5)),
        replaced("pairs", 6, "nothing"),
        replaced("triplets", 1, torch.arange(5)),
        replaced("classifier", 2, torch.randn(1, 17)),
        replaced("classifier", 2, torch.randn(3, 16)),
        replaced("classifier", 1, sets[:, :2].contiguous()),
        replaced("classifier", 4, "hinge"),
        replaced("classifier", 5, [1.0]),
        replaced("softmax", 2, torch.randn(1, 17)),
        replaced("softmax", 1, sets[:, :2].contiguous()),
        replaced("listwise", 0, u[:1]),
        replaced("listwise", 1, good["project"][0][:5]),
        replaced("listwise", 1, good["project"][0].double()),
        replaced("listwise", 1, torch.ones(6, 0)),
        replaced("listwise", 2, torch.ones(3)),
        replaced("listwise", 4, "ranks"),
        replaced("listwise", 5, [0.0]),
        replaced("listwise of views", 1, torch.randn(6, 7)),
        replaced("listwise of views", 1, torch.arange(5)),
        replaced("listwise of views", 5, []),
    ):
        with pytest.raises(RuntimeError):
            call()
