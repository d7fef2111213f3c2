"""docs/add-a-loss.md: one more loss by its recipe, and its lists of files against the files there are.

That a name stands in the recipe's files alone is what keeps the rest of the package from knowing the losses.
"""

import re
from pathlib import Path

import pytest
import torch
from losses_cases import Case, draw_labels, make_loss, naive_by_length, of_backend, reference_by_length
from native_cases import AVAILABLE, DETAIL
from numeric import Expected
from step_cases import check, make

from nhl_fast import losses
from nhl_fast.head.layer import NestedHashLayer
from nhl_fast.head.objective import NestedObjective
from nhl_fast.losses import NestedLoss, naive, pairs
from nhl_fast.losses.form import PENALTIES

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (ROOT / "docs/add-a-loss.md").read_text()
EXPORT = "nhl_fast/losses/__init__.py"
SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for folder, patterns in (("nhl_fast", ["*.py"]), ("kernels", ["*.py"]), ("csrc", ["*"]))
    for pattern in patterns
    for path in (ROOT / folder).rglob(pattern)
    if path.is_file()
)
# Settings by a loss's name: data, which a new loss does without.
DATA = {"nhl_fast/losses/tuned.py"}
native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

# ---------------------------------------------------------------------------------------------------- the new loss


def python_of(heading: str) -> str:
    """The code of a section of the recipe."""
    return re.search(r"```python\n(.*?)```", section(heading), re.DOTALL)[1]


def section(heading: str) -> str:
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", RECIPE, re.DOTALL | re.MULTILINE)[1]


def defined() -> type[NestedLoss]:
    """The recipe's own class, as it stands there."""
    formula, loss = python_of("A loss of pairs, on a function that is there").split("# nhl_fast/losses/pairs.py\n")
    plain = dict(vars(naive))
    exec(formula, plain)
    module = type("naive", (), {"halved": staticmethod(plain["halved"])})
    space = {**vars(pairs), "naive": module}
    exec(loss, space)
    return space["Halved"]


@pytest.fixture
def halved(monkeypatch):
    """The loss under a name of its own, its line of the registry set."""
    monkeypatch.setitem(losses.REGISTRY, "halved", defined())
    return Case("halved")


def test_the_reference_serves_it(halved):
    loss, u = make_loss(halved, (3, 8, 20)), torch.randn(9, 20)
    labels = draw_labels(9, 5)
    values = loss(u, labels, backend="reference")
    for k, b in enumerate((3, 8, 20)):
        torch.testing.assert_close(values[k], loss.naive(u[:, :b], labels, k))
    assert (values > 0).all()


@native
@pytest.mark.numeric
@pytest.mark.parametrize("multi", [False, True], ids=["ids", "multi-hot"])
def test_the_compiled_step_equals_its_formula(halved, multi):
    loss = make_loss(halved, (8, 20, 64))
    problem = loss, torch.randn(27, 64), draw_labels(27, 5, multi)
    right = Expected(lambda: reference_by_length(*problem), truth=lambda: naive_by_length(*problem))
    right.check(of_backend(*problem, "cpp"))


@native
@pytest.mark.numeric
def test_a_whole_step(halved):
    check(make("halved", 40, 33, (8, 20, 64)))


@native
def test_training_it(halved):
    """A few steps of gradient descent give the same layer, from the reference and from the C++ step."""
    trained = []
    for backend in ("reference", "cpp"):
        torch.manual_seed(0)
        layer, loss = NestedHashLayer(12, (4, 16)), make_loss(halved, (4, 16))
        x, labels = torch.randn(30, 12), torch.arange(30) % 5
        objective = NestedObjective(layer, loss, backend=backend)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        totals = []
        for step in range(8):
            index = (torch.arange(10) + 10 * step) % 30
            total = objective(x[index], labels[index]).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.detach())
        trained.append((torch.stack(totals), layer.hash_layer.weight.detach()))
    for reference, compiled in zip(*trained):
        torch.testing.assert_close(compiled, reference, rtol=1e-4, atol=1e-5)
    assert trained[0][0][-1] < trained[0][0][0]


def test_by_its_name(halved):
    loss = losses.build("halved", num_classes=4, code_lengths=(8, 16), num_train=10)
    assert type(loss).__name__ == "Halved"
    assert loss.code_lengths == (8, 16)
    with pytest.raises(TypeError, match="unknown option alpha"):
        losses.build("halved", num_classes=4, alpha=1)


# ------------------------------------------------------------------------------------------------------ the lists


def files_of(heading: str) -> list[str]:
    return re.findall(r"^- `([^`]+)`: ", section(heading), re.MULTILINE)


EXISTING = files_of("A loss of pairs, on a function that is there")
NEW = files_of("A loss of pairs, on a new function")
PAIR_LOSSES = [name for name, cls in losses.REGISTRY.items() if cls.__module__ == "nhl_fast.losses.pairs"]


def naming(word: str) -> set[str]:
    """The shipped files that a word stands in, in any case."""
    found = re.compile(rf"(?<![a-z0-9]){word}(?![a-z0-9])", re.IGNORECASE)
    return {path for path in SHIPPED if found.search((ROOT / path).read_text())}


def test_the_recipe_names_files_that_there_are():
    assert len(EXISTING) == 3
    assert len(NEW) == 6
    assert set(EXISTING) < set(NEW)
    for path in (*NEW, EXPORT):
        assert (ROOT / path).is_file(), path
    assert len(SHIPPED) > 100


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_pair_loss_is_named_in_the_recipes_files_alone(name):
    found = naming(name)
    assert {"nhl_fast/losses/naive.py", "nhl_fast/losses/pairs.py", EXPORT} <= found
    assert found - DATA <= {*NEW, EXPORT}


def test_a_pair_function_is_named_in_the_recipes_files_alone():
    optional = "nhl_fast/losses/weighted.py"  # without a line there `label_options` refuses the function by name
    assert naming("locality") - {optional} == set(NEW) - {"tests/losses_cases.py"}


def test_the_tables_say_what_there_is():
    """Every function that a published loss uses, and every penalty."""
    tables = section("What a form says")
    for name in losses.REGISTRY:
        loss = losses.build(name, num_classes=4, num_train=9)
        for form in loss.forms():
            assert f"`{form.body}`" in tables
            assert f"`{form.function}`" in tables
    for body, kinds in PENALTIES.items():
        for kind in kinds:
            assert re.search(rf"^\| `{kind}` \| {body} \|", tables, re.MULTILINE), kind


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (lambda u: u.sum(1), ValueError, r"a mean or a sum, got .*\(6,\)"),
        (lambda u: float(u.sum()), TypeError, "a mean or a sum, got .*float"),
    ],
)
def test_a_formula_that_gives_no_value_is_told_by_name(value, error, said):
    class Mine(NestedLoss):
        def naive(self, u, labels, k):
            return value(u)

    loss = Mine(4, (8, 16))
    with pytest.raises(error, match=f"Mine.naive: expected a tensor without dimensions for 8 bits, {said}"):
        loss(torch.randn(6, 16), torch.zeros(6, dtype=torch.long))
