"""The trainer's optimizer: one pass over every parameter where PyTorch has it, its plain steps elsewhere."""

import pytest
import torch

from nhl_fast.data import RetrievalData
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.trainer import Trainer, train

GENERATOR = torch.Generator().manual_seed(0)


def data(n=48):
    inputs = torch.randn(n, 6, generator=GENERATOR)
    return RetrievalData.from_tensors(inputs, torch.arange(n) % 3, train=range(8, n), query=range(8), validation=0.0)


def config(**changes):
    return TrainConfig(**{"code_lengths": (4, 8), "hidden": (5,), "epochs": 2, "batch_size": 8, **changes})


class Spectrum(torch.nn.Module):
    """A backbone whose parameters are complex."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.complex64, generator=GENERATOR))

    def forward(self, x):
        return (torch.fft.rfft(x) @ self.weight).abs()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_is_the_formula(name):
    """Adam's first step moves by lr g / (|g| + eps), every part of which rounds a few times."""
    lr, decay = 0.01, 0.1
    optimizer = Trainer(data(), config(optimizer=name, weight_decay=decay, lr=lr), progress=False).optimizer
    assert optimizer.defaults["fused"] is True
    wanted = []
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.grad = torch.sign(torch.randn(p.shape, generator=GENERATOR))  # |g + decay p| stays far from 0
        start, grad = p.detach().double(), p.grad.double()
        if name == "adam":
            grad = grad + decay * start
        kept = start * (1 - lr * decay) if name == "adamw" else start
        wanted.append((p, kept - lr * grad / (grad.abs() + 1e-8), start.abs()))
    optimizer.step()
    for p, value, size in wanted:
        assert ((p.detach().double() - value).abs() <= 8 * torch.finfo(p.dtype).eps * (size + lr)).all()


def test_complex_parameters_train():
    backbone = Spectrum()
    before = backbone.weight.detach().clone()
    train(data(), config(backbone="custom"), backbone=backbone, progress=False)
    assert torch.isfinite(torch.view_as_real(backbone.weight)).all()
    assert not torch.equal(backbone.weight, before)


def test_a_checkpoint_of_plain_steps_goes_on(tmp_path, monkeypatch):
    def plain(self):
        return torch.optim.Adam([*self.model.parameters(), *self.objective.loss.parameters()], lr=self.config.lr)

    rows, folder = data(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimizer", plain)
        train(rows, config(), folder, progress=False)
    longer = train(rows, config(epochs=4), folder, resume=True, progress=False)
    assert [record["epoch"] for record in longer.history] == [1, 2, 3, 4]
    assert all(torch.isfinite(value).all() for value in longer.model.state_dict().values())
