"""The trainer: resuming, determinism, model choice, failures that leave nothing half-written."""

import itertools
import json
import os
import random
import resource
import signal
import sys
import time

import pytest
import torch
from children import outcome

from nhl_fast.data import RetrievalData
from nhl_fast.losses import REGISTRY
from nhl_fast.training.checkpoint import load_state, save_state
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.model import HashModel
from nhl_fast.training.run import load_model
from nhl_fast.training.run_folder import RunFolder
from nhl_fast.training.state import TrainState
from nhl_fast.training.trainer import Trainer, train

LENGTHS = (4, 12, 20)


def blobs(n=96, d=10, classes=3, validation=0.2, spread=0.6):
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(n) % classes
    inputs = 2 * torch.randn(classes, d, generator=generator)[labels]
    inputs = inputs + spread * torch.randn(n, d, generator=generator)
    return RetrievalData.from_tensors(
        inputs, labels, train=range(24, n), query=range(24), validation=validation, num_classes=classes
    )


def config(**changes):
    base = {"code_lengths": LENGTHS, "hidden": (16,), "epochs": 4, "batch_size": 16, "dropout": 0.1}
    return TrainConfig(**{**base, **changes})


def weights(result):
    return {k: v.clone() for k, v in result.model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


def without_times(history):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in history]


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_loss_trains_and_is_deterministic(name):
    data = blobs()
    a, b = (train(data, config(loss=name, epochs=8, lr=5e-3), progress=False) for _ in range(2))
    assert_same(weights(a), weights(b))
    assert without_times(a.history) == without_times(b.history)
    assert min(r["total"] for r in a.history[4:]) < a.history[0]["total"]
    assert len(a.history[0]["losses"]) == len(a.history[0]["weights"]) == 3


def test_seed_changes_the_run_and_leaves_the_global_generator_alone():
    data = blobs()
    state = torch.random.get_rng_state()
    a = train(data, config(seed=0), progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    b = train(data, config(seed=1), progress=False)
    assert not torch.equal(weights(a)["layer.hash_layer.weight"], weights(b)["layer.hash_layer.weight"])


@pytest.mark.parametrize("name", ["csq", "dhn", "mdsh"])
@pytest.mark.parametrize(
    "extra", [{}, {"accumulate": 2, "schedule": "cosine", "optimizer": "sgd", "lr": 0.05}], ids=str
)
def test_resumed_run_equals_an_unbroken_one(tmp_path, name, extra):
    data = blobs()
    whole = train(data, config(loss=name, **extra), tmp_path / "whole", progress=False)
    done = []

    def stop(record):
        done.append(record)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, config(loss=name, **extra), tmp_path / "broken", progress=False, on_epoch=stop)
    resumed = train(data, config(loss=name, **extra), tmp_path / "broken", resume=True, progress=False)
    assert_same(weights(whole), weights(resumed))
    assert without_times(whole.history) == without_times(resumed.history)
    files = [RunFolder(tmp_path / run).log for run in ("whole", "broken")]
    logs = [without_times(map(json.loads, file.read_text().splitlines())) for file in files]
    assert logs[0] == logs[1] == without_times(whole.history)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def at_change(number, folder, took):
    """The child is killed when it is about to open, rename, remove or list in `folder` for the time `number`."""
    events = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir")
    seen = itertools.count(1)

    def kill(event, arguments):
        if event in events and str(arguments[0]).startswith(str(folder)) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)


def at_any_moment(number, folder, took):
    """The child ends after a part of the processor's time that a run took, as little cleaned up as by SIGKILL."""
    part = random.Random(number).uniform(0.02, 0.25) * (1 + number / 10)
    signal.setitimer(signal.ITIMER_PROF, part * took)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("epochs", "die"), [(4, at_change), (20, at_any_moment)])
def test_killed_at_any_moment(tmp_path, epochs, die):
    """Killed over and over, between any two changes of files or anywhere; the result is that of an unbroken run."""
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    train(blobs(), config(epochs=1), progress=False)  # loads what a process loads once, and no child has to
    before = time.process_time()
    unbroken = train(blobs(), config(epochs=epochs), whole.path, progress=False)
    took = time.process_time() - before
    said, number = [], 0

    def work():
        die(number, run.path, took)
        train(blobs(), config(epochs=epochs), run.path, resume=run.config.exists(), progress=False)

    while not said or said[-1] != (0, ""):
        number += 1
        said += outcome(work)
        assert number < 400, said[-1]
    assert set(said[:-1]) <= {(-signal.SIGKILL, ""), (-signal.SIGPROF, "")}
    assert number > (20 if die is at_change else 5)
    resumed = train(blobs(), config(epochs=epochs), run.path, resume=True, progress=False)
    assert_same(weights(resumed), weights(unbroken))
    assert len(run.log.read_text().splitlines()) == epochs
    assert {p.name for p in run.path.iterdir()} == {p.name for p in whole.path.iterdir()}
    assert not list(run.path.glob(".*.tmp")), (number, sorted(p.name for p in run.path.iterdir()))


@pytest.mark.usefixtures("one_thread")
def test_full_disk_in_the_middle_of_a_checkpoint(tmp_path):
    run = RunFolder(tmp_path / "run")

    def fill(record):
        if record["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        train(blobs(), config(epochs=5), run.path, progress=False, on_epoch=fill)

    ((status, said),) = outcome(work)
    assert status == 1
    assert said.startswith("OSError: [Errno 27] cannot write (nothing was changed)")
    assert ".safetensors" in said
    assert load_state(run.checkpoint)["epoch"] == 2
    assert not [p.name for p in run.path.iterdir() if "tmp" in p.name]
    resumed = train(blobs(), config(epochs=5), run.path, resume=True, progress=False)
    assert_same(weights(resumed), weights(train(blobs(), config(epochs=5), progress=False)))


def test_patience_stops_and_the_best_weights_are_kept(tmp_path):
    data = blobs(spread=3.0)
    result = train(data, config(epochs=60, patience=3, lr=0.05), tmp_path / "run", progress=False)
    scores = [sum(r["validation"].values()) for r in result.history]
    assert len(result.history) < 60
    assert result.best_epoch == scores.index(max(scores)) + 1
    assert len(result.history) == result.best_epoch + 3
    again = train(data, config(epochs=60, patience=3, lr=0.05), tmp_path / "run", resume=True, progress=False)
    assert len(again.history) == len(result.history)
    assert_same(weights(again), weights(result))


def test_model_choice_never_sees_the_queries():
    data = blobs()
    touched = []
    original = type(data.query).batch

    def spy(split, index):
        touched.append(split.name)
        return original(split, index)

    type(data.query).batch = spy
    try:
        train(data, config(epochs=2), progress=False)
    finally:
        type(data.query).batch = original
    assert "train" in touched
    assert "validation" in touched
    assert "query" not in touched
    assert "database" not in touched


def test_best_per_length(tmp_path):
    data = blobs(spread=3.0)
    result = train(data, config(epochs=8, best_per_length=True, lr=0.05), tmp_path / "run", progress=False)
    assert set(result.best_per_length) == set(LENGTHS)
    for b, epoch in result.best_per_length.items():
        scores = [r["validation"][str(b)] for r in result.history]
        assert epoch == scores.index(max(scores)) + 1
        assert RunFolder(tmp_path / "run").weights(b).exists()
        load_model(tmp_path / "run", data, length=b)


def test_without_validation_the_last_weights_are_kept():
    result = train(blobs(validation=0), config(), progress=False)
    assert result.best_epoch == 4
    assert result.history[-1]["validation"] is None


def test_custom_backbone_and_frozen_layers(tmp_path):
    data = blobs()
    backbone = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.Tanh())
    backbone.out_features = 6
    for p in backbone.parameters():
        p.requires_grad_(False)
    before = backbone[0].weight.clone()
    result = train(data, config(backbone="custom"), tmp_path / "run", backbone=backbone, progress=False)
    assert torch.equal(backbone[0].weight, before)
    loaded = load_model(tmp_path / "run", data, backbone=backbone)
    assert_same(dict(loaded.state_dict()), dict(result.model.state_dict()))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_trains(amp):
    result = train(blobs(), config(amp=amp, epochs=3), progress=False)
    assert result.history[-1]["total"] < result.history[0]["total"]


def test_multi_label_data_trains():
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(80, 5, generator=generator) < 0.4).to(torch.uint8)
    inputs = labels.float() @ torch.randn(5, 8, generator=generator)
    data = RetrievalData.from_tensors(inputs, labels, train=range(20, 80), query=range(20), num_classes=5)
    for loss in ("csq", "dsh", "dch", "mdsh"):
        result = train(data, config(loss=loss, epochs=2), progress=False)
        assert len(result.history) == 2


def test_momentum_encoder_with_batch_norm():
    """MDSH's momentum encoder averages the running statistics too, and counts whole batches."""
    generator = torch.Generator().manual_seed(2)
    inputs, labels = torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 2
    data = RetrievalData.from_tensors(inputs, labels, train=range(8, 40), query=range(8), num_classes=2)
    trainer = Trainer(data, config(loss="mdsh", backbone="conv", epochs=2), progress=False)
    trainer.fit()
    average = trainer.momentum_model.module.backbone.blocks[1]
    current = trainer.model.backbone.blocks[1]
    assert not torch.equal(average.running_mean, current.running_mean)
    assert average.num_batches_tracked.dtype == torch.long
    assert trainer.objective.loss.bank.written.all()


def test_state_files_round_trip(tmp_path):
    state = {"a": [1, 2.5, None, True, "x"], "b": {0: torch.arange(3), "c": {"d": torch.ones(0, 2)}}, "e": (1, 2)}
    save_state(tmp_path / "s", state)
    loaded = load_state(tmp_path / "s")
    assert loaded["a"] == state["a"]
    assert loaded["e"] == [1, 2]
    assert torch.equal(loaded["b"][0], state["b"][0])
    assert loaded["b"]["c"]["d"].shape == (0, 2)


def interrupt(record):
    raise KeyboardInterrupt


@pytest.mark.parametrize("more", [7, 10])
def test_a_longer_run_equals_one_that_was_long_from_the_start(tmp_path, more):
    data, settings = blobs(spread=3.0), {"validate_every": 3, "lr": 0.05, "patience": 2}
    whole = train(data, config(epochs=more, **settings), tmp_path / "whole", progress=False)
    train(data, config(epochs=4, **settings), tmp_path / "parts", progress=False)
    parts = train(data, config(epochs=more, **settings), tmp_path / "parts", resume=True, progress=False)
    assert without_times(whole.history) == without_times(parts.history)
    assert_same(weights(whole), weights(parts))


def test_a_kill_between_checkpoint_and_weights(tmp_path, monkeypatch):
    """The checkpoint alone brings the weights back."""
    data, path = blobs(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "_keep_weights", lambda self, length: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(data, config(epochs=1), path, progress=False)
    assert not RunFolder(path).weights().exists()
    resumed = train(data, config(epochs=1), path, resume=True, progress=False)
    assert_same(weights(resumed), weights(train(data, config(epochs=1), progress=False)))


def run_with(tmp_path, **changes):
    train(blobs(), config(epochs=1), tmp_path / "run", progress=False)
    return lambda **options: train(blobs(), config(**changes), tmp_path / "run", progress=False, **options)


class TestBadInput:
    def test_a_folder_that_holds_a_run(self, tmp_path):
        with pytest.raises(FileExistsError, match="resume"):
            run_with(tmp_path)()

    def test_a_model_that_diverged(self):
        model = HashModel(torch.nn.Identity(), LENGTHS, in_features=3)
        with torch.no_grad():
            model.layer.hash_layer.weight.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"^model: its outputs have no codes .*training diverged: x: .* NaN"):
            model.encode_batch(torch.ones(2, 3))

    def test_other_settings(self, tmp_path):
        with pytest.raises(ValueError, match=r"lr 0.001 -> 0.5"):
            run_with(tmp_path, lr=0.5)(resume=True)

    def test_other_number_of_epochs_on_a_schedule(self, tmp_path):
        train(blobs(), config(epochs=1, schedule="cosine"), tmp_path / "run", progress=False)
        with pytest.raises(ValueError, match="epochs 1 -> 3"):
            train(blobs(), config(epochs=3, schedule="cosine"), tmp_path / "run", resume=True, progress=False)

    def test_other_data(self, tmp_path):
        run_with(tmp_path)
        with pytest.raises(ValueError, match="other data"):
            train(blobs(n=120), config(), tmp_path / "run", resume=True, progress=False)

    def test_another_split_of_the_same_data(self, tmp_path):
        run_with(tmp_path)
        before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
        with pytest.raises(ValueError, match="another split"):
            train(blobs(validation=0.4), config(), tmp_path / "run", resume=True, progress=False)
        assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    def test_other_inputs_with_the_same_labels(self, tmp_path):
        run_with(tmp_path)
        with pytest.raises(ValueError, match="other data"):
            train(blobs(spread=0.7), config(), tmp_path / "run", resume=True, progress=False)

    @pytest.mark.parametrize("setting", [{"patience": 2}, {"best_per_length": True}])
    def test_settings_that_need_validation(self, setting):
        with pytest.raises(ValueError, match="needs validation rows"):
            Trainer(blobs(validation=0), config(**setting))

    def test_validation_that_would_never_come(self):
        with pytest.raises(ValueError, match="validate_every"):
            Trainer(blobs(), config(validate_every=5))

    def test_a_trainer_is_used_once(self):
        trainer = Trainer(blobs(), config(epochs=1), progress=False)
        trainer.fit()
        with pytest.raises(RuntimeError, match="fit"):
            trainer.fit()

    @pytest.mark.parametrize("device", ["cuad", "meta", "cpu:x"])
    def test_unknown_device(self, device):
        with pytest.raises(ValueError, match="device"):
            Trainer(blobs(), config(device=device))

    @pytest.mark.parametrize("damage", [b"", b"garbage", None])
    def test_damaged_checkpoint(self, tmp_path, damage):
        again = run_with(tmp_path)
        path = RunFolder(tmp_path / "run").checkpoint
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
        with pytest.raises(ValueError, match="checkpoint"):
            again(resume=True)

    def test_weights_of_another_model(self, tmp_path):
        run_with(tmp_path)
        train(blobs(), config(hidden=(8,), epochs=1), tmp_path / "other", progress=False)
        os.replace(*(RunFolder(tmp_path / name).weights() for name in ("other", "run")))
        with pytest.raises(ValueError, match="do not fit"):
            load_model(tmp_path / "run", blobs())

    def test_nan_features(self):
        data = blobs()
        bad = data.train.inputs.clone()
        bad[30, 2] = float("nan")
        rows = {"train": range(10, 40), "query": range(10), "num_classes": 3}
        data = RetrievalData.from_tensors(bad, data.train.labels, **rows)
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            train(data, config(), progress=False)

    def test_backbone_without_width(self):
        with pytest.raises(ValueError, match="out_features"):
            Trainer(blobs(), config(backbone="custom"), backbone=torch.nn.Identity())

    def test_backbone_given_but_not_named(self):
        with pytest.raises(ValueError, match="custom"):
            Trainer(blobs(), config(), backbone=torch.nn.Identity())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_missing_device(self):
        with pytest.raises(RuntimeError, match="CUDA"):
            Trainer(blobs(), config(device="cuda"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"loss": "hinge"}, "loss"),
            ({"backbone": "vgg"}, "backbone"),
            ({"epochs": 0}, "epochs"),
            ({"batch_size": 2.5}, "batch_size"),
            ({"lr": -1}, "lr"),
            ({"lr": float("nan")}, "lr"),
            ({"lr": "fast"}, "lr"),
            ({"patience": 0}, "patience"),
            ({"amp": "int8"}, "amp"),
            ({"optimizer": "lion"}, "optimizer"),
            ({"schedule": "step"}, "schedule"),
            ({"momentum": 1.0}, "momentum"),
            ({"seed": -1}, "seed"),
            ({"code_lengths": (8, 8)}, "code_lengths"),
            ({"hidden": (0,)}, "hidden"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises((ValueError, TypeError), match=message):
            config(**changes)

    def test_unknown_setting(self):
        with pytest.raises(ValueError, match="learning_rate"):
            TrainConfig.from_dict({"learning_rate": 1})

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match="preset"):
            TrainConfig.preset("best")


def test_config_goes_through_json():
    tuned = TrainConfig.preset("tuned", loss="dsh", code_lengths=(8, 24), loss_options={"alpha": 0.3}, epochs=2)
    for original in (config(weighting=(1, 2, 3), loss_options={"quantization": 0.1}), tuned):
        assert TrainConfig.from_dict(json.loads(json.dumps(original.to_dict()))) == original
