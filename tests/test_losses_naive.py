"""The plain formulas and the reference are the same losses, in float64; and the plain formulas bear no mistake."""

import ast
import copy
import functools
import inspect
import types

import pytest
import torch
from losses_cases import ALL as CASES
from losses_cases import PLAIN, UNLABELLED, make_loss, naive_by_length, reference_by_length
from numeric import Expected

from nhl_fast import NestedHashLayer, NestedObjective
from nhl_fast.losses import REGISTRY, NestedLoss, naive

pytestmark = pytest.mark.numeric


def drawn(n, lengths, *, multi=False, scale=1.5, labels=None, classes=4, num_train=17, unwritten=None):
    """What makes (loss, u, labels) of a case."""

    def problem(case):
        torch.manual_seed(n)
        bank = {"num_train": num_train, "unwritten": unwritten, "scale": scale}
        loss = make_loss(case, lengths, classes=classes, multi=multi, **bank).eval()
        u = scale * torch.randn(n, lengths[-1], dtype=torch.float64)
        return loss, u, case.labels(n, classes, multi) if labels is None else labels

    return problem


SETTINGS = {
    "ids": drawn(11, (3, 8, 20)),
    "multi-hot": drawn(11, (3, 8, 20), multi=True),
    "one row": drawn(1, (1, 5)),
    "beyond the clamps": drawn(7, (8, 20), scale=6.0),
    "all alike": drawn(5, (3, 8), labels=torch.ones(5, dtype=torch.long), classes=2),
    "all unlike": drawn(5, (3, 8), labels=torch.arange(90, 95), classes=99),
    "nothing written": drawn(4, (3, 8), unwritten=17),
}


def settings(case) -> list[str]:
    """Those that the case can have, and that say something of it."""
    left_out = {"multi-hot"} if case.ids_only else set()
    left_out |= set() if case.bank else {"nothing written"}
    left_out |= {"one row"} if case in UNLABELLED else set()
    left_out |= {"all alike", "all unlike"} if case.name == "neighbors" else set()  # ids
    left_out |= {"beyond the clamps"} if case.name == "csq" else set()  # (tanh u + 1) / 2 is 1
    return [name for name in SETTINGS if name not in left_out]


@functools.cache
def problem_and_bounds(number: int, setting: str):
    problem = SETTINGS[setting](CASES[number])
    plain, ours = (functools.partial(f, *problem) for f in (naive_by_length, reference_by_length))
    return problem, Expected(plain, torch.float64, truth=ours)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_naive_equals_the_reference(number, setting):
    if setting not in settings(CASES[number]):
        pytest.skip("no such labels, no bank, nothing to compare a row with, or tanh u rounds to 1")
    problem, right = problem_and_bounds(number, setting)
    found = right.check(naive_by_length(*problem))
    assert all(torch.isfinite(x).all() for x in found.values())
    assert all(right.bound(key, torch.float64) <= 1e-9 * x.norm() + 1e-11 for key, x in right.truth.items())


# ---------------------------------------------------------------------------------------------------- no mistakes

SOURCE = inspect.getsource(naive)


def places(function: ast.FunctionDef):
    """The sums, differences and minus signs of a function, but for those of indices and constants."""
    for node in ast.walk(function):
        plus = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub))
        minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if plus or (minus and not isinstance(node.operand, ast.Constant)):
            yield node


def changes(node):
    """Other expressions: the sign turned, a term dropped."""
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    turned = copy.copy(node)
    turned.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    return [turned, node.left, node.right]


class Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else super().visit(node)


def mistakes(name: str):
    """(what was done, module) of every changed form of one function of `naive`."""
    for at in range(len(list(places(function_of(ast.parse(SOURCE), name))))):
        for what in range(3):
            tree = ast.parse(SOURCE)
            node = list(places(function_of(tree, name)))[at]
            others = changes(node)
            if what < len(others):
                said = f"{ast.unparse(node)} -> {ast.unparse(others[what])}"
                module = types.ModuleType("changed")
                exec(
                    compile(ast.fix_missing_locations(Replace(node, others[what]).visit(tree)), name, "exec"),
                    vars(module),
                )
                yield said, module


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


FUNCTIONS = [node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)]
NAMES = {*REGISTRY, *(case.name for case in UNLABELLED)}
LOSSES = [name for name in FUNCTIONS if name.removesuffix("_pairs") in NAMES]


def passes(module, problem, right) -> bool:
    """Whether the changed formulas pass for those of `naive`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LOSSES:
            patch.setattr(naive, name, getattr(module, name))
        try:
            return not right.wrong(naive_by_length(*problem))
        except (RuntimeError, IndexError, TypeError, AttributeError):  # shapes or types that do not fit
            return False


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_dropped_term_or_a_turned_sign_does_not_pass(name):
    loss, survivors = name.removesuffix("_pairs"), list(mistakes(name))
    for number, case in enumerate(CASES):
        for setting in settings(case) if loss not in NAMES or case.name == loss else ():
            if survivors:
                problem, right = problem_and_bounds(number, setting)
                survivors = [(said, module) for said, module in survivors if passes(module, problem, right)]
    assert not survivors


def test_there_are_mistakes_to_find():
    assert set(LOSSES) == {*NAMES, "mdsh_pairs"}
    for name in LOSSES:
        assert len(list(mistakes(name))) >= 3, name


# -------------------------------------------------------------------------------------------- what needs no more


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_a_loss_trains_by_its_formula_alone(case):
    """Without `expanded`: the same step, by the objective and every backend that serves other losses."""
    loss = make_loss(case, (4, 12), classes=3, num_train=9)

    class Plain(type(loss)):
        expanded = NestedLoss.expanded

    plain = copy.deepcopy(loss)
    plain.__class__ = Plain
    layer, features, labels = NestedHashLayer(6, (4, 12)), torch.randn(7, 6), torch.arange(7) % 3
    for backend in ("auto", "reference"):
        ours, theirs = (
            NestedObjective(layer, f, backend=backend)(features, labels, torch.arange(7)) for f in (plain, loss)
        )
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        parameters = list(layer.parameters())
        for a, b in zip(*(torch.autograd.grad(r.total, parameters) for r in (ours, theirs))):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_loss_without_any_formula_says_so():
    with pytest.raises(NotImplementedError, match="NestedLoss defines neither naive nor expanded"):
        NestedLoss(2, (4,))(torch.randn(3, 4), torch.tensor([0, 1, 1]))
