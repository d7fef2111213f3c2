"""Any value of any public argument gives a result or our own error, which names an argument of the call."""

import re
import resource
import warnings

import numpy as np
import pytest
from any_arguments import VALUES, calls, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import nhl_fast as nhl

OURS = (TypeError, ValueError, IndexError, KeyError, MemoryError, RuntimeError)


@pytest.fixture(scope="module", autouse=True)
def _bounded():
    """Sizes that no machine has fail at once, on one that lends what it hasn't, too."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return calls(tmp_path_factory.mktemp("any"))


def own(error, good, changed):
    """Whether an error is one of ours: it begins with an argument's name, or says that memory ran out."""
    message = str(error)
    if isinstance(error, MemoryError):
        return "not enough memory" in message
    if isinstance(error, KeyError):
        return message.strip("\"'").startswith("ids: ")
    if changed.keys() & {"path", "run"} and isinstance(error, (OSError, nhl.IndexFileError)):
        return True
    named = re.match(r"([A-Za-z_]+)(\[[^\]]*\])*: ", message)
    return isinstance(error, OURS) and named is not None and named[1] in good


def check(call, good, **changed):
    """The call with changed arguments gives a result, or our own error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(**{**good, **changed})
        except Exception as error:
            if not own(error, good, changed):
                raise AssertionError(f"{list(changed)} -> {type(error).__name__}: {error}") from error


def test_the_calls_are_right_and_complete(public):
    for name, (call, good) in public.items():
        if "from_faiss" not in name and "empty" not in name:
            call(**good)
    listed = {name.split()[0].split(".")[0] for name in public}
    # Without arguments to get wrong.
    classes = {"Filter", "FunnelAdvice", "IndexFileError", "ObjectiveResult", "losses", "backends"}
    assert set(nhl.__all__) - classes <= listed | {"RetrievalResult"}
    assert set(nhl.losses.__all__) - {"REGISTRY", "NestedLoss"} <= listed
    methods = {n for n in dir(nhl.NestedIndex) if callable(getattr(nhl.NestedIndex, n)) and n[0] != "_"}
    tried = {name.split()[0].split(".")[1] for name in public if name.startswith("NestedIndex.")}
    assert methods - tried == {"save", "to_faiss", "to_lancedb", "to_milvus", "copy", "reset", "compact"}


def test_every_value_for_every_argument(public):
    count = 0
    for name, (call, good) in public.items():
        for argument in good:
            for label, value in values().items():
                if name == "NestedIndex.__contains__" and label.endswith("Broken"):
                    continue  # `in` passes the class's own error on
                try:
                    check(call, good, **{argument: value})
                except AssertionError as error:
                    raise AssertionError(f"{name}, {argument} = {label}: {error}") from error
                count += 1
    assert count > 30_000


EXTREME = st.one_of(
    st.integers(),
    st.sampled_from([2**e + d for e in (7, 8, 15, 16, 31, 32, 33, 48, 62, 63, 64, 127) for d in (-1, 0, 1)]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.floats(), st.none()), max_size=4),
    arrays.arrays(
        st.sampled_from([np.uint8, np.int8, np.int64, np.uint64, np.float16, np.float32, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=16),
    ),
    st.sampled_from(list(VALUES)).map(lambda label: values()[label]),
)


def without_long_work(value):
    """Numbers of classes that are legal, but take Python long."""
    number = isinstance(value, (int, np.integer)) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return 4096 if number and 4096 < value < 2**31 else value


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_values_for_two_arguments_at_once(public, data):
    name = data.draw(st.sampled_from(sorted(public)))
    call, good = public[name]
    chosen = data.draw(st.sets(st.sampled_from(sorted(good)), min_size=1, max_size=2))
    changed = {argument: data.draw(EXTREME) for argument in sorted(chosen)}
    if name != "NestedIndex.__contains__":
        changed = {a: without_long_work(v) if a == "num_classes" else v for a, v in changed.items()}
        check(call, good, **changed)


def test_what_is_saved_goes_to_a_path(tmp_path):
    index = nhl.NestedIndex(8)
    for value in values().values():
        if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
            continue
        with pytest.raises(TypeError, match=r"^path: "):
            index.save(value)
    for value in ("", "\0", str(tmp_path), str(tmp_path / "no" / "such"), "x" * 300):
        with pytest.raises((OSError, ValueError)):
            index.save(value)
