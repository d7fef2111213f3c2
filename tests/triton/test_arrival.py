"""The counters that tell who comes last."""

import torch
from nhl_fast.kernels.device import arrival
from torch._subclasses.fake_tensor import FakeTensorMode

import nhl_fast.steps.fused.projection  # noqa: F401  (the operators)


def test_a_compiler_that_comes_first_leaves_counters_that_count(device, monkeypatch):
    """It runs the operators on fake tensors, and the counters made then serve every later launch."""
    monkeypatch.setattr(arrival, "_RINGS", {})
    shapes = ((4, 300), (8, 300), (8,))
    with FakeTensorMode():
        torch.ops.nhl_fast.project(*(torch.randn(shape, device=device) for shape in shapes), True)
    assert list(arrival._RINGS) == [device]
    x, w, b = (torch.randn(shape, device=device) for shape in shapes)
    torch.testing.assert_close(torch.ops.nhl_fast.project(x, w, b, True)[0], x @ w.T + b)


def test_new_counters_are_there_for_every_stream(monkeypatch):
    """A first launch may be followed by one on a stream that does not wait for the first's."""
    done, zeros = [], torch.zeros

    class Stream:
        def synchronize(self):
            done.append("waited")

    def made(*shape, device, **options):
        done.append(f"filled on {device}")
        return zeros(*shape, **options)

    monkeypatch.setattr(arrival, "_RINGS", {})
    monkeypatch.setattr(torch, "zeros", made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    arrival.prepare(torch.device("cuda", 1))
    assert done == ["filled on cuda:1", "waited"]
