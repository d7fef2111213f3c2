"""The comparison's arithmetic, on made-up runs."""

import pytest

from nhl_fast.training import compare as comparing
from nhl_fast.training.compare import Measured, compare
from nhl_fast.training.config import TrainConfig


class Data:
    name, protocol = "made up", "none"


@pytest.fixture
def seen(monkeypatch):
    calls = []

    def measure(data, config, progress):
        calls.append(config)
        nested = len(config.code_lengths) > 1
        seed = config.seed
        step = 0.003 if nested else 0.002
        scores = {b: (0.5 if nested else 0.4) + b / 1000 + seed / 10 for b in config.code_lengths}
        return Measured(scores, step, 10 * step, 12.0 if nested else 5.0, 4, 3), None

    monkeypatch.setattr(comparing, "measure", measure)
    monkeypatch.setattr(comparing, "warm_up", lambda data, config: calls.append("warm-up"))
    return calls


def test_ratios_and_summary(seen):
    result = compare(Data, TrainConfig(code_lengths=(8, 16, 32)), seeds=(0, 1))
    times = result["time"]
    assert times["nested_seconds"] == pytest.approx(12)
    assert times["all_single_seconds"] == pytest.approx(15)
    assert times["total_ratio"] == pytest.approx(15 / 12)
    assert times["step_cost_of_nesting"] == pytest.approx(1.5)
    assert times["epoch_cost_of_nesting"] == pytest.approx(1.5)
    first = result["summary"][0]
    assert first["bits"] == 8
    assert first["nested"] == pytest.approx(0.508 + 0.05)
    assert first["single"] == pytest.approx(0.408 + 0.05)
    assert first["difference"] == pytest.approx(0.1)
    assert first["nested_std"] == pytest.approx(0.1 / 2**0.5)
    assert result["mean"]["nested"] - result["mean"]["single"] == pytest.approx(0.1)


def test_single_runs_differ_in_their_length_alone(seen):
    config = TrainConfig(code_lengths=(8, 16), weighting=(1.0, 2.0), lr=0.5)
    compare(Data, config, seeds=(3,))
    assert seen[0] == "warm-up"
    nested, *single = seen[1:]
    assert nested.code_lengths == (8, 16)
    assert [c.code_lengths for c in single] == [(8,), (16,)]
    assert {(c.lr, c.seed, c.weighting) for c in single} == {(0.5, 3, "uniform")}
