"""Random retrieval problems and their exact measures (tests/oracle.py), for the tests of the metrics."""

from functools import partial

import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

from nhl_fast.core import backend as backends
from nhl_fast.retrieval.ties import RULES

# These tests hold CPU tensors.
BACKENDS = [name for name in ("reference", "cpp") if backends.probe(name).available]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
TIES = tuple(RULES)
DENOMINATORS = ("retrieved", "relevant", "min")
CLOSE = {"rel": 1e-12, "abs": 1e-13}


def problem(num_queries, n, num_bytes, seed, pool=None, form="ids", classes=3):
    """(query codes, database codes, query labels, database labels); with `pool`, few distinct codes."""
    generator = np.random.default_rng(seed)
    distinct = generator.integers(0, 256, (pool or n, num_bytes), dtype=np.uint8)
    q = distinct[generator.integers(0, len(distinct), num_queries)]
    d = distinct[generator.integers(0, len(distinct), n)]
    labels = []
    for count, hot in ((num_queries, form in ("hot", "hot-ids")), (n, form in ("hot", "ids-hot"))):
        if hot:
            labels.append((generator.random((count, classes)) < 0.3).astype(np.uint8))
        else:
            labels.append(generator.integers(0, classes, count))
    return q, d, *labels


@st.composite
def problems(draw, most_items):
    num_bytes = draw(st.integers(1, 2))
    return problem(
        draw(st.integers(1, 3)),
        draw(st.integers(1, most_items)),
        num_bytes,
        draw(st.integers(0, 2**16)),
        pool=draw(st.sampled_from([1, 2, 3, 8])),
        form=draw(st.sampled_from(["ids", "hot", "ids-hot", "hot-ids"])),
        classes=draw(st.integers(1, 4)),
    ), draw(st.lists(st.integers(1, 8 * num_bytes), min_size=1, max_size=3, unique=True).map(sorted))


def per_query(data, length, ties, measure, **arguments):
    """[measure under the rule, exactly] a query."""
    q, d, q_labels, db_labels = data
    measure = partial(measure, **arguments)
    pairs = zip(oracle.distances(q, d, length), oracle.relevance(q_labels, db_labels))
    return [float(oracle.over_orders(row, relevant, ties, measure)) for row, relevant in pairs]


def expected_ap(data, length, cutoff, ties, denominator):
    arguments = {"cutoff": cutoff, "denominator": denominator}
    return per_query(data, length, ties, oracle.average_precision, **arguments)
