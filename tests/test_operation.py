"""The registry: who serves a call, what is refused and how, and implementations that come from elsewhere."""

import subprocess
import sys
import textwrap

import pytest
import torch

import nhl_fast as nhl
from nhl_fast.core import backend as backends
from nhl_fast.core import first_use, operation
from nhl_fast.core.operation import OPERATIONS, Operation, table
from nhl_fast.head.step import STEP
from nhl_fast.retrieval.codes import PACK
from nhl_fast.retrieval.hamming import SEARCH

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Two backends more, of which "near" runs here; what a test registers is gone after it."""
    table()  # every operation of the package is there
    monkeypatch.setattr(backends, "_probes", dict(backends._probes))
    monkeypatch.setattr(operation, "OPERATIONS", dict(OPERATIONS))
    backends.declare("near", lambda: (True, "on this machine"))
    backends.declare("far", lambda: (False, "its device is not plugged in"))
    yield
    monkeypatch.undo()
    backends.probe.cache_clear()


def total(x, scale):
    return "reference", x.sum() * scale


def make(**options):
    """An operation of a tensor and a number that "near" and "far" serve, and a list of what `refuses` was asked."""
    made, asked = Operation("total", total, **options), []

    def refuses(x, scale):
        asked.append((x, scale))
        return "it cannot scale down" if scale < 1 else None

    for name in ("near", "far"):
        made.serves(name, on="cpu", refuses=refuses)(lambda x, scale, name=name: (name, x.sum() * scale))
    return made, asked


X = torch.ones(3)


def test_auto_takes_what_is_here_and_serves():
    made, asked = make()
    assert made(X, 2) == ("near", 6)
    assert len(asked) == 1  # the absent one was not asked
    assert made(X, 0.5) == ("reference", 1.5)
    assert made(X, 2, device=CUDA) == ("reference", 6)
    assert made.reference(X, 2) == ("reference", 6)


def test_the_first_to_register_goes_first():
    made, _ = make()
    made.serves("cpp", on="cpu")(lambda x, scale: ("cpp", 0))
    assert made(X, 2)[0] == "near"
    assert made(X, 0.5)[0] == ("cpp" if backends.available("cpp") else "reference")


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("far", RuntimeError, "backend: 'far' is not available for total: its device is not plugged in"),
        ("cuda", ValueError, "backend: total runs here on 'near', 'far', 'reference', not on 'cuda'"),
        ("gpu", ValueError, "backend: expected one of 'auto', 'reference', .*'near', 'far', got 'gpu'"),
        (None, ValueError, "backend: expected one of 'auto'"),
        (3, ValueError, "backend: expected one of 'auto'"),
        (torch.ones(2), ValueError, "backend: expected one of 'auto'"),
    ],
)
def test_a_named_backend_serves_or_raises(backend, error, message):
    made, _ = make()
    with pytest.raises(error, match=message):
        made(X, 2, backend=backend)


def test_what_is_named_does_not_fall_back():
    made, _ = make()
    assert made(X, 2, backend="near") == ("near", 6)
    assert made(X, 2, backend="near", device=CUDA) == ("near", 6)  # it refuses no device
    assert made(X, 2, backend="reference") == ("reference", 6)
    with pytest.raises(RuntimeError, match="backend: 'near' cannot serve total here: it cannot scale down"):
        made(X, 0.5, backend="near")


def test_strict_refusals_are_wrong_values():
    made, _ = make(strict=True)
    assert made(X, 2, backend="near") == ("near", 6)
    assert made(X, 0.5) == ("reference", 1.5)
    for backend in ("near", "far"):  # whether or not it is there
        with pytest.raises(ValueError, match=f"backend: total runs here on 'reference', not on '{backend}'"):
            made(X, 0.5, backend=backend)
        with pytest.raises(ValueError, match=f"backend: total runs here on 'reference', not on '{backend}'"):
            made(X, 2, backend=backend, device=CUDA)
    for given, device, why in (
        (0.5, None, "it cannot scale down"),
        (2, CUDA, "serves cpu tensors, these are on cuda"),
    ):
        with pytest.raises(ValueError, match=f"not on 'near': {why}"):
            made(X, given, backend="near", device=device)
    with pytest.raises(RuntimeError, match="not plugged in"):
        made(X, 2, backend="far")


def test_auto_may_leave_what_a_named_backend_serves():
    made = Operation("total", total)

    @made.serves("near", on="cpu", leaves=lambda x, scale: "small" if len(x) < 5 else None)
    def near(x, scale):
        return "near", 0

    assert made(X, 2)[0] == "reference"
    assert made(torch.ones(5), 2)[0] == "near"
    assert made(X, 2, backend="near")[0] == "near"


def test_names_in_errors_may_depend_on_the_arguments():
    made, _ = make(called=lambda x, scale: f"total of {len(x)}")
    with pytest.raises(RuntimeError, match="'far' is not available for total of 3"):
        made(X, 2, backend="far")


def test_reasons():
    made, _ = make()
    said = made.reasons()
    assert set(said) == {"reference", "triton", "cpp", "cuda", "near", "far"}
    assert (said["reference"], said["near"]) == ("serves", "serves")
    assert (said["far"], said["cpp"]) == ("its device is not plugged in", "has no implementation")
    assert made.reasons(X, 2)["near"] == "serves"
    assert made.reasons(X, 0.5)["near"] == "it cannot scale down"
    assert table()["total"] == said
    strict, _ = make(strict=True)
    assert strict.reasons(X, 2, device=CUDA)["near"] == "serves cpu tensors, these are on cuda"


@pytest.mark.parametrize("traced", [False, True])
def test_in_torch_compile(traced):
    made = Operation("halves", lambda x: x / 2)
    made.serves("near", on="cpu", traced=traced)(lambda x: x - 100)
    torch._dynamo.reset()
    for backend, eager in (("auto", -99), ("near", -99), ("reference", 0.5)):
        compiled = torch.compile(lambda x, b=backend: made(x, backend=b), fullgraph=True, backend="eager")
        assert made(X, backend=backend).tolist() == [eager] * 3
        expected = 0.5 if backend == "auto" and not traced else eager
        assert compiled(X).tolist() == [expected] * 3


# ------------------------------------------------------------------------------------------ from somebody else


def test_a_third_party_serves_a_public_call(monkeypatch):
    monkeypatch.setattr(SEARCH, "_compiled", dict(SEARCH._compiled))
    calls = []

    def refuses(queries, database, k, length, allow, chunk_bytes):
        return None if allow is None else "it has no masks"

    @SEARCH.serves("near", on="cpu", refuses=refuses)
    def mine(queries, database, k, length, allow, chunk_bytes):
        calls.append(length)
        return SEARCH.reference(queries, database, k, length, allow, chunk_bytes)

    codes = torch.randint(0, 256, (9, 4), dtype=torch.uint8)
    found = nhl.search(codes, codes, 2, 20, backend="near")
    assert all(map(torch.equal, found, nhl.search(codes, codes, 2, 20, backend="reference")))
    assert calls == [20]
    index = nhl.NestedIndex(32)
    index.add(codes)
    assert torch.equal(index.search(codes, 1, backend="near")[1][:, 0], torch.arange(9))
    everything = torch.ones(9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"search runs here on .*'reference', not on 'near'"):
        nhl.search(codes, codes, 2, allow=everything, backend="near")
    assert nhl.backends()["near"].available
    assert table()["search"]["near"] == "serves"


def test_a_third_party_serves_the_step(monkeypatch):
    monkeypatch.setattr(STEP, "_compiled", {})
    objective = nhl.NestedObjective(nhl.NestedHashLayer(6, (4, 8)), nhl.losses.CSQ(3, (4, 8)), weighting="uniform")
    seen = []

    @STEP.serves("near", on="cpu")
    def step(request):
        seen.append(request)
        return STEP.reference(request)

    features, labels = torch.randn(5, 6), torch.arange(5) % 3
    result = objective(features, labels)
    (request,) = seen
    assert request.features is features
    assert request.weight is objective.layer.hash_layer.weight
    assert request.fixed_weights.tolist() == [1.0, 1.0]
    monkeypatch.undo()
    objective.backend = "reference"
    assert torch.equal(result.total, objective(features, labels).total)


def test_every_operation_of_the_package_is_listed():
    assert set(table()) == {
        "NestedHashLayer.encode",
        "NestedHashLayer.project",
        "NestedLoss",
        "NestedObjective",
        "distillation_losses",
        "dominance_weights",
        "evaluate_retrieval",
        "funnel_search",
        "hamming_distances",
        "pack_codes",
        "radius_search",
        "rescore",
        "search",
    }
    compiled = {name: [b for b, why in r.items() if why != "has no implementation"] for name, r in table().items()}
    assert compiled["search"] == compiled["pack_codes"] == ["reference", "cpp", "cuda"]
    assert compiled["NestedObjective"] == compiled["NestedLoss"] == ["reference", "triton", "cpp"]
    assert compiled["NestedHashLayer.encode"] == ["reference", "triton"]
    assert compiled["rescore"] == ["reference", "cpp", "cuda"]
    assert compiled["funnel_search"] == ["reference", "cpp"]
    assert compiled["dominance_weights"] == ["reference"]


def test_packing_says_what_it_leaves():
    bits = torch.ones(2, 3, dtype=torch.bool)
    assert PACK.reasons(bits)["cpp"] in ("x is torch.bool, the engine packs floating-point numbers",
                                         backends.probe("cpp").detail)  # fmt: skip
    assert PACK.pick("auto", CPU, (bits,)).backend == "reference"


# ----------------------------------------------------------------------------------------------- at first use


def test_what_registers_is_imported_at_first_use(tmp_path, monkeypatch):
    made, _ = make()
    (tmp_path / "late_total.py").write_text(
        "from nhl_fast.core import operation\n"
        "operation.OPERATIONS['total'].serves('cuda', on='meta')(lambda x, scale: ('late', 0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "probe", lambda name: backends.Backend(name, True, ""))
    first_use.on_first_use("total", "late_total")
    assert "late_total" not in sys.modules
    assert made(X, 2, device=torch.device("meta")) == ("late", 0)
    assert sys.modules.pop("late_total")
    assert made(X, 2, device=torch.device("meta")) == ("late", 0)
    assert "late_total" not in sys.modules  # it was imported once


def fresh(code):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_a_search_imports_no_training():
    loaded = fresh("""
        import sys, torch, nhl_fast as nhl
        codes = nhl.pack_codes(torch.randn(9, 16))
        nhl.search(codes, codes, 1)
        print(*(name for name in sys.modules if name.startswith("nhl_fast.")))
    """)
    assert "nhl_fast.retrieval.hamming" in loaded
    assert not {"nhl_fast.steps", "nhl_fast.head", "nhl_fast.losses"} & set(loaded)


def test_the_very_first_call_may_be_a_compiled_one():
    said = fresh("""
        import torch, nhl_fast as nhl
        torch.manual_seed(0)
        layer = nhl.NestedHashLayer(6, (4, 8))
        objective = nhl.NestedObjective(layer, nhl.losses.CSQ(3, (4, 8)))
        features, labels = torch.randn(5, 6), torch.arange(5) % 3
        compiled = torch.compile(objective, fullgraph=True, backend="eager")
        first = compiled(features, labels).total
        torch.testing.assert_close(first, objective(features, labels).total)
        codes = torch.compile(layer.encode, fullgraph=True, backend="eager")(features)
        assert torch.equal(codes, layer.encode(features))
        print("done")
    """)
    assert said == ["done"]


def test_without_the_native_library_everything_runs():
    said = fresh("""
        import warnings
        warnings.simplefilter("ignore")
        from nhl_fast.native import library
        library._load = lambda kind: "there is no library"
        import torch, nhl_fast as nhl
        layer = nhl.NestedHashLayer(6, (4, 8))
        loss = nhl.losses.CSQ(3, (4, 8))
        nhl.NestedObjective(layer, loss)(torch.randn(5, 6), torch.arange(5) % 3).total.backward()
        codes = layer.encode(torch.randn(5, 6))
        nhl.search(codes, codes, 2)
        assert loss(torch.randn(5, 8), torch.arange(5) % 3).shape == (2,)
        print(nhl.backends()["cpp"].available)
    """)
    assert said == ["False"]


# ------------------------------------------------------------------------------------------- the step's request


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_features_are_checked_once(backend, monkeypatch):
    checks, check = [], nhl.NestedHashLayer.check_features
    monkeypatch.setattr(
        nhl.NestedHashLayer, "check_features", lambda self, x, *name: (checks.append(x), check(self, x, *name))
    )
    layer = nhl.NestedHashLayer(6, (4, 8))
    objective = nhl.NestedObjective(layer, nhl.losses.CSQ(3, (4, 8)), backend=backend)
    features = torch.randn(5, 6)
    for call in (lambda: objective(features, torch.arange(5) % 3), lambda: layer.encode(features, backend),
                 lambda: layer.project(features, backend)):  # fmt: skip
        checks.clear()
        call()
        assert len(checks) == 1


def test_a_layer_that_is_more_than_its_weight_keeps_it():
    layer = nhl.NestedHashLayer(6, (4, 8))
    objective = nhl.NestedObjective(layer, nhl.losses.CSQ(3, (4, 8)))
    features, labels = torch.randn(5, 6), torch.arange(5) % 3
    assert objective.request(features, labels).unusual is None
    layer.hash_layer = torch.nn.utils.parametrizations.weight_norm(layer.hash_layer)
    request = objective.request(features, labels)
    assert (request.weight, request.bias) == (None, None)
    assert "not a plain Linear" in request.unusual
    assert STEP.pick("auto", CPU, (request,)).backend == "reference"
    if backends.available("cpp"):
        with pytest.raises(RuntimeError, match="cannot serve NestedObjective here: hash_layer is a Parametrized"):
            STEP.pick("cpp", CPU, (request,))


def test_fixed_weights_keep_their_values_on_every_way():
    def build():
        return nhl.NestedObjective(nhl.NestedHashLayer(6, (4, 8)), nhl.losses.CSQ(3, (4, 8)), weighting=[0.1, 2.0])

    features, labels = torch.randn(5, 6), torch.arange(5) % 3
    expected = torch.tensor([0.1, 2.0])
    for objective in (build().half().float(), build().to("meta").to_empty(device="cpu"), build().double()):
        weights = objective.request(features, labels).fixed_weights
        assert torch.equal(weights, expected)
        assert weights.dtype == torch.float32
    assert not any("fixed" in name for name in build().state_dict())
