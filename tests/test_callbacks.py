"""A trainer's callbacks, its loggers, and a loss of one's own."""

import subprocess
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch

from nhl_fast import losses
from nhl_fast.cli import main
from nhl_fast.core import extras
from nhl_fast.core.files import read_json
from nhl_fast.data import RetrievalData
from nhl_fast.losses import PerLength
from nhl_fast.training.callbacks import Callback, TensorBoard, WandB
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.run import load_model
from nhl_fast.training.trainer import Trainer, train

LENGTHS = (4, 8)
SETTINGS = {"code_lengths": LENGTHS, "hidden": (8,), "epochs": 2, "batch_size": 16}


def blobs(n=60, classes=3):
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(n) % classes
    inputs = 2 * torch.randn(classes, 6, generator=generator)[labels] + torch.randn(n, 6, generator=generator)
    return RetrievalData.from_tensors(inputs, labels, train=range(12, n), query=range(12), num_classes=classes)


class Ear(Callback):
    def __init__(self, break_at=None):
        self.heard, self.break_at = [], break_at

    def hear(self, *what):
        self.heard.append(what)
        if what[0] == self.break_at:
            raise RuntimeError("enough")

    def on_fit_begin(self, trainer):
        self.hear("begin", len(trainer.state.history))

    def on_step_end(self, trainer, step, result):
        assert not result.total.requires_grad
        self.hear("step", step, float(result.total), result.losses.clone())

    def on_epoch_end(self, trainer, record):
        assert trainer.state.history[-1] is record
        self.hear("epoch", record)

    def on_fit_end(self, trainer, result):
        self.hear("end", result)


def test_moments():
    data, ear = blobs(), Ear()
    result = train(data, TrainConfig(**SETTINGS), callbacks=[ear, Callback()])
    assert [what[0] for what in ear.heard] == ["begin", *["step"] * 3, "epoch", *["step"] * 3, "epoch", "end"]
    steps = [what for what in ear.heard if what[0] == "step"]
    assert [step[1] for step in steps] == [1, 2, 3, 4, 5, 6]
    records = [what[1] for what in ear.heard if what[0] == "epoch"]
    assert records == result.history
    for record, own in zip(records, (steps[:3], steps[3:])):
        assert record["total"] == pytest.approx(sum(step[2] for step in own) / 3, rel=1e-6)
        assert record["losses"] == pytest.approx(torch.stack([step[3] for step in own]).mean(0).tolist(), rel=1e-6)
    assert ear.heard[-1] == ("end", result)


def test_callbacks_change_nothing(tmp_path):
    plain = train(blobs(), TrainConfig(**SETTINGS))
    heard = train(blobs(), TrainConfig(**SETTINGS), callbacks=(Ear(),))
    for a, b in zip(plain.model.state_dict().values(), heard.model.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("moment", ["begin", "step", "epoch"])
def test_an_error_ends_the_training_and_the_others_are_told(moment, tmp_path):
    listener = Ear()
    trainer = Trainer(blobs(), TrainConfig(**SETTINGS), tmp_path / "run", callbacks=[listener, Ear(moment)])
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit()
    assert listener.heard[-1] == ("end", None)
    again = Ear()
    Trainer(blobs(), TrainConfig(**SETTINGS), tmp_path / "run", callbacks=[again]).fit(resume=True)
    assert again.heard[0] == ("begin", 1 if moment == "epoch" else 0)
    assert again.heard[1][1] == (4 if moment == "epoch" else 1)


@pytest.mark.parametrize("callbacks", [Ear(), [Ear], [print], "ear", None, [None]])
def test_what_is_no_callback(callbacks):
    with pytest.raises(TypeError, match="callbacks: expected"):
        Trainer(blobs(), TrainConfig(**SETTINGS), callbacks=callbacks)


# --------------------------------------------------------------------------------------------- a loss of one's own


def spread(u, labels):
    same = labels[:, None] == labels[None]
    return torch.where(same, 1 - torch.tanh(u) @ torch.tanh(u).T / u.shape[1], 0).mean()


def test_any_nested_loss_trains_and_its_run_is_for_use(tmp_path):
    own = {**SETTINGS, "loss": "custom", "lr": 0.01, "weighting": "uniform", "distill_weight": 0}
    data, used = blobs(), TrainConfig(**own)
    loss = PerLength([spread, spread], LENGTHS)
    result = train(data, used, tmp_path / "run", loss=loss)
    assert result.history[1]["total"] < result.history[0]["total"]
    assert read_json(tmp_path / "run" / "config.json")["config"]["loss"] == "custom"
    model = load_model(tmp_path / "run", data)
    for a, b in zip(model.state_dict().values(), result.model.state_dict().values()):
        assert torch.equal(a, b)
    longer = TrainConfig(**{**own, "epochs": 3})
    resumed = train(data, longer, tmp_path / "run", loss=PerLength([spread, spread], LENGTHS), resume=True)
    unbroken = train(data, longer, loss=PerLength([spread, spread], LENGTHS))
    assert [r["total"] for r in resumed.history] == [r["total"] for r in unbroken.history]


@pytest.mark.parametrize("name", ["csq", "dsh", "mdsh"])
def test_a_published_loss_given_as_a_loss_trains_alike(name):
    data = blobs()
    by_name = train(data, TrainConfig(loss=name, **SETTINGS))
    given = TrainConfig(loss=name, **SETTINGS).build_loss(3, len(data.train), data.train)
    by_loss = train(data, TrainConfig(loss="custom", **SETTINGS), loss=given)
    assert [r["total"] for r in by_loss.history] == [r["total"] for r in by_name.history]


@pytest.mark.parametrize(
    ("name", "loss", "error", "match"),
    [
        ("csq", PerLength([spread, spread], LENGTHS), ValueError, "loss: give a nested loss together with config"),
        ("custom", None, ValueError, "loss: give a nested loss together with config"),
        ("custom", spread, TypeError, "loss: expected a nested loss .wrap yours in"),
        ("custom", PerLength([spread], (4,)), ValueError, r"loss: its code lengths \(4,\) differ"),
        ("custom", losses.build("csq", num_classes=5, code_lengths=LENGTHS), ValueError, "loss: made for 5 classes"),
        (
            "custom",
            losses.build("dsh", num_classes=3, code_lengths=LENGTHS, num_train=20),
            ValueError,
            r"loss: made for 20 training rows, but the data set has \d+",
        ),
    ],
)
def test_losses_that_do_not_fit(name, loss, error, match):
    with pytest.raises(error, match=match):
        Trainer(blobs(), TrainConfig(loss=name, **SETTINGS), loss=loss)


def test_settings_of_a_loss_of_ones_own(tmp_path, capsys):
    with pytest.raises(ValueError, match="loss_options: expected none with loss='custom', got margin"):
        TrainConfig(loss="custom", loss_options={"margin": 1})
    with pytest.raises(ValueError, match="loss: 'custom' has no definition here"):
        TrainConfig(loss="custom").build_loss(3, 20)
    train(blobs(), TrainConfig(loss="custom", **SETTINGS), tmp_path / "r", loss=PerLength([spread, spread], LENGTHS))
    assert main(["train", "--resume", str(tmp_path / "r")]) == 1
    assert "was trained in Python with a loss of its own" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- loggers


def names():
    per_length = {f"{kind}/{b}" for kind in ("loss", "distill", "weight", "validation_mAP") for b in LENGTHS}
    return per_length | {"loss/total", "validation_mAP/mean", "lr", "seconds"}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {**SETTINGS, "schedule": "cosine", "lr": 0.01}
    result = train(blobs(), TrainConfig(**settings), callbacks=[TensorBoard(tmp_path / "events")])
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == names()
    for name, values in {
        "loss/total": [r["total"] for r in result.history],
        "weight/8": [r["weights"][1] for r in result.history],
        "validation_mAP/4": [r["validation"]["4"] for r in result.history],
        "lr": [0.01, 0.005],
    }.items():
        found = events.Scalars(name)
        assert [point.step for point in found] == [1, 2]
        assert [point.value for point in found] == pytest.approx(values, rel=1e-6)


def test_wandb(monkeypatch):
    told = []

    class Run:
        def __init__(self):
            self.summary = {}

        def log(self, values, step):
            told.append((step, values))

        def finish(self, exit_code):
            told.append(("finish", exit_code, dict(self.summary)))

    module = types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init = lambda **options: told.append(("init", options)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    result = train(blobs(), TrainConfig(**SETTINGS), callbacks=[WandB(project="codes", config={"note": "x"})])
    (_, options), first, second, last = told
    assert options["project"] == "codes"
    assert (options["config"]["lr"], options["config"]["note"]) == (TrainConfig.lr, "x")
    assert [(first[0], set(first[1])), (second[0], set(second[1]))] == [(1, names()), (2, names())]
    assert second[1]["loss/4"] == result.history[1]["losses"][0]
    assert last == ("finish", 0, {"best_epoch": result.best_epoch})
    told.clear()
    with pytest.raises(RuntimeError, match="enough"):
        train(blobs(), TrainConfig(**SETTINGS), callbacks=[WandB(), Ear("epoch")])
    assert told[-1] == ("finish", 1, {})


@pytest.mark.parametrize(("make", "extra"), [(lambda: TensorBoard("x"), "tensorboard"), (WandB, "wandb")])
def test_a_missing_package_is_named_with_what_to_install(make, extra, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"needs '{extra}': pip install 'nhl-fast\[{extra}\]'"):
        make()


def test_no_logger_is_loaded_without_need():
    code = "import sys, nhl_fast.training.trainer; print({'tensorboard', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
