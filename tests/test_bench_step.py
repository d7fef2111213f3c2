"""The step beside loops: what is timed gives the same results, and what does not is not timed."""

import json

import pytest
import torch

from bench.common.record import write
from bench.readme import speed
from bench.step import loops
from bench.step.literal import LiteralStep

LENGTHS = (4, 8, 16)


@pytest.mark.parametrize("name", loops.LOSSES)
def test_the_loops_give_the_gradients_of_the_step(name):
    problem = loops.Loops(name, 12, 40, 5, 60, LENGTHS)
    assert problem.difference() < 1e-5
    assert problem.difference() < 1e-5  # with the banks as the first call left them


def test_a_loop_that_differs_is_noticed(monkeypatch):
    monkeypatch.setattr(LiteralStep, "weights", lambda self, *given: [2.0, 1.0, 1.0])
    problem = loops.Loops("dch", 12, 40, 5, 60, LENGTHS)
    assert problem.difference() > 1e-3
    with pytest.raises(SystemExit, match=r"step, dch: results differ by .*; nothing is timed"):
        loops.step_row("dch", 12, 40, 5, 60, 1)


@pytest.mark.parametrize("name", ["dhn", "greedyhash"])
def test_an_epoch(name):
    row = loops.epoch_row(name, 200, 3, 1, LENGTHS)
    assert row["error"] < 1e-4
    assert min(row[f"{how}_ms"] for how in loops.CONTENDERS) > 0


def test_an_epoch_trains_on_every_row():
    data = loops.Pictures(70, 3)
    training = loops.Training("dsh", data, 3, loops.OURS, lengths=LENGTHS)
    before, bank = [p.detach().clone() for p in training.parameters], training.objective.loss.bank
    rows = bank.u.clone()
    training.epoch()
    assert (bank.u != rows).any(1).all()
    assert torch.equal(bank.labels, data.labels)
    assert not any(torch.equal(a, b) for a, b in zip(before, training.parameters))


def test_an_evaluation():
    row = loops.evaluation_row(7, 150, 3, 1, LENGTHS)
    assert (row["case"], row["single_ms"]) == ("7 x 150", None)
    assert row["error"] < 1e-9


def test_the_table_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    assert speed.loops() == "Not measured yet."
    times = {"nhl_fast": [0.002], "published": [0.01], "single": [0.02]}
    rows = [
        loops.row("step", "csq", times, 2e-7),
        loops.row("evaluation", "7 x 150", dict(list(times.items())[:2]), 0),
    ]
    write("loops", rows, tmp_path)
    assert json.loads((tmp_path / "loops.json").read_text())["environment"]["versions"]["torch"]
    *table, _, machine = speed.loops().splitlines()
    assert table[2:] == [
        "| step | csq | 2.00 | 10.0 (5.0) | 20.0 (10.0) |",
        "| evaluation | 7 x 150 | 2.00 | 10.0 (5.0) |  |",
    ]
    assert " of a" in machine
