"""What tells how far a command is: on a terminal, without one, and on a machine that has no cores left."""

import io
import os
import sys

import pytest
import torch

from nhl_fast.cli import actions
from nhl_fast.training import progress


class Terminal(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (True, False), (False, True)])
def test_a_bar_while_rows_are_encoded(terminal, shown, monkeypatch):
    monkeypatch.setattr(progress, "_STEPS_FROM", 0)
    stream = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.watch(iter("abc"), 3, shown)) == list("abc")
    said = stream.getvalue()
    assert "encoding: " in said if terminal and shown else said == ""


def test_what_is_quick_shows_no_bar(monkeypatch):
    stream = Terminal(True)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.watch(range(3), 3, True)) == [0, 1, 2]
    assert "encoding" not in stream.getvalue()


def test_steps_and_epochs_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_STEPS_FROM", 0)
    stream = Terminal(True)
    monkeypatch.setattr(sys, "stderr", stream)
    bars = progress.Progress(True)
    for epoch in bars.epochs(range(1, 3)):
        assert list(bars.steps([1, 2], 2)) == [1, 2]
        bars.close_epoch({"epoch": epoch, "total": 1.5, "validation": {"8": 0.5, "16": 0.7}, "seconds": 1.0})
    said = stream.getvalue()
    assert "training" in said
    assert "epoch: " in said
    assert "loss=1.500, mAP=0.600" in said
    assert "epoch 1/2" not in said  # that is for logs


@pytest.mark.parametrize(
    ("load", "threads", "epoch", "warned"),
    [(9.0, 2, 1, True), (9.0, 2, 2, False), (9.0, 1, 1, False), (1.0, 2, 1, False)],
)
def test_threads_without_cores_are_said_once(load, threads, epoch, warned, monkeypatch, capsys):
    """The waiting of OpenMP's threads for one another takes many times the work."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    actions.warn_of_threads({"epoch": epoch})
    text = (
        "nhl-fast: 2 threads on 2 cores whose load is 9.0 wait for one another; --threads 1 may be many times faster"
    )
    assert capsys.readouterr().err == (f"{text}\n" if warned else "")
