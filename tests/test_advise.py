import pytest

from nhl_fast.retrieval.advise import advise, measure_latency

CURVE = {4: 0.5, 8: 0.8, 16: 0.9, 24: 0.93, 32: 0.92, 64: 0.934}


def test_shortest_length_with_the_map():
    assert advise(CURVE, 1000, min_map=0.9).bits == 16
    assert advise(CURVE, 1000, min_map=0.901).bits == 24
    assert advise(CURVE, 1000, min_map=0.934).bits == 64


def test_without_a_map_the_shortest_near_the_best():
    assert advise(CURVE, 1000).bits == 24
    assert advise(CURVE, 1000, tolerance=0).bits == 64
    assert advise(CURVE, 1000, max_bytes=2500).bits == 16
    assert advise(CURVE, 1000, max_bytes=1000).bits == 8


def test_latency_and_memory_together():
    latencies = {b: b / 1000 for b in CURVE}
    found = advise(CURVE, 1000, min_map=0.85, max_bytes=4000, max_latency=0.02, latencies=latencies)
    assert (found.bits, found.memory_bytes, found.latency_seconds) == (16, 2000, 0.016)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"max_bytes": 999}, "1,000 bytes"),
        ({"min_map": 0.99}, "0.9340"),
        ({"min_map": 0.91, "max_bytes": 2000}, "16 bits"),
        ({"max_latency": 0.001, "latencies": dict.fromkeys(CURVE, 0.002)}, "quickest"),
    ],
)
def test_bounds_that_cannot_be_met(bounds, reason):
    found = advise(CURVE, 1000, **bounds)
    assert found.bits is None
    assert reason in found.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, 10), "prefix_map"),
        ((CURVE, 0), "num_items"),
        ((CURVE, 10, {"min_map": 1.2}), "min_map"),
        ((CURVE, 10, {"min_map": 0}), "min_map"),
        ((CURVE, 10, {"max_bytes": -1}), "max_bytes"),
        ((CURVE, 10, {"max_latency": 1}), "latencies"),
        ((CURVE, 10, {"max_latency": float("nan"), "latencies": {8: 1}}), "max_latency"),
    ],
)
def test_bad_input(arguments, message):
    curve, items, *rest = arguments
    with pytest.raises((ValueError, TypeError), match=message):
        advise(curve, items, **(rest[0] if rest else {}))


def test_latency_is_measured_for_every_length():
    found = measure_latency((8, 12, 64), 500, repeats=1)
    assert set(found) == {8, 12, 64}
    assert all(v > 0 for v in found.values())
    assert measure_latency((8,), 4000, repeats=1, sample=500)[8] > 0
