"""Run folders: what training may write into, who owns a folder, and that nothing of anybody's is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import at_work, ended, outcome
from test_train import assert_same, blobs, config, weights

from nhl_fast.core import files
from nhl_fast.data import RetrievalData
from nhl_fast.training import lock
from nhl_fast.training.lock import RunInUseError, hold
from nhl_fast.training.run_folder import RunFolder, check_output
from nhl_fast.training.trainer import Trainer, train

# Written out: they are a format that folders of earlier versions have, too.
CONFIG, CHECKPOINT, LOG, WEIGHTS = "config.json", "checkpoint.safetensors", "log.jsonl", "model.safetensors"
LOCK = ".nhl_fast.lock"


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def short(folder, **options):
    return train(blobs(), config(epochs=1), folder, progress=False, **options)


# ------------------------------------------------------------------------------------------ what training refuses

SOMEBODYS = {
    "a model of the Hugging Face hub": {
        "config.json": '{"architectures": ["ViTModel"], "model_type": "vit"}',
        "model.safetensors": "weights",
    },
    "a log": {"log.jsonl": '{"step": 1}\n'},
    "a hidden file": {".notes.tmp": "mine"},
    "a folder": {"pictures/cat.png": "a cat"},
    "settings that are a list": {"config.json": "[]"},
    "no JSON": {"config.json": "loss: csq"},
    "settings of half the kind": {"config.json": '{"config": {}, "data": {}}'},
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", SOMEBODYS)
def test_somebody_elses_folder_stays_as_it_is(tmp_path, kind, resume):
    for name, text in SOMEBODYS[kind].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(
        (FileExistsError, FileNotFoundError, ValueError), match=r"no run|no config|not the settings|JSON"
    ):
        short(tmp_path, resume=resume)
    assert content(tmp_path) == before


@pytest.mark.parametrize("lost", [[CHECKPOINT], [CHECKPOINT, CONFIG], [CHECKPOINT, LOG]])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_lost_files_is_not_trained_over(tmp_path, lost, resume):
    short(tmp_path / "run")
    for name in lost:
        (tmp_path / "run" / name).unlink()
    before = content(tmp_path)
    with pytest.raises((FileExistsError, FileNotFoundError, ValueError), match=r"holds a run|cannot go on|no config"):
        short(tmp_path / "run", resume=resume)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "error"), [("missing", FileNotFoundError), ("empty", FileNotFoundError), ("file", NotADirectoryError)]
)
def test_resume_of_nothing(tmp_path, name, error):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=name):
        short(tmp_path / name, resume=True)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="resume"):
        short(None, resume=True)


def test_empty_folders_and_what_a_kill_left_are_trained_into(tmp_path):
    (tmp_path / LOCK).write_text("{}")
    (tmp_path / f".nhl_fast-{files._host()}-{dead_process()}-{'0' * 16}.tmp").write_text("half")
    short(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG, CHECKPOINT, LOG, WEIGHTS, "split.json"}


def test_killed_before_the_first_checkpoint(tmp_path, monkeypatch):
    def stop(self, epoch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            short(tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    with pytest.raises(FileExistsError, match="--resume"):
        short(tmp_path / "run")
    (tmp_path / "run" / "split.json").unlink()  # the settings are written first
    assert_same(weights(short(tmp_path / "run", resume=True)), weights(short(tmp_path / "other")))


# ------------------------------------------------------------------------------------------ temporary files


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path):
    run = tmp_path / "run"
    short(run)
    (run / "codes").mkdir()
    host, dead, end = files._host(), dead_process(), "0123456789abcdef.tmp"
    kept = [f".nhl_fast-{host}-{os.getpid()}-{end}", f".nhl_fast-elsewhere-{dead}-{end}", f".0123456789{end}"]
    kept += [".secret.tmp", f".nhl_fast-{host}-{dead}-mine.tmp", f"codes/.nhl_fast-{host}-1-{end}", "codes/.x.tmp"]
    gone = [f".nhl_fast-{host}-{dead}-{end}", f"codes/.nhl_fast-{host}-{dead}-{end}"]
    for name in kept + gone:
        (run / name).write_text("text")
    short(run, resume=True)
    assert all((run / name).read_text() == "text" for name in kept)
    assert not any((run / name).exists() for name in gone)


def test_what_a_killed_write_leaves_is_known_and_removed(tmp_path):
    def write(ready):
        with files.atomic_write(tmp_path / "a.bin"):
            ready()
            time.sleep(60)

    with at_work(write):
        (left,) = tmp_path.iterdir()
        assert files.is_temporary(left.name)
        files.remove_stale(tmp_path)
        assert left.exists()
    files.remove_stale(tmp_path)
    assert not left.exists()


# ------------------------------------------------------------------------------------------ one owner


def test_two_runs_in_one_folder(tmp_path):
    """The second is told who holds it, and changes nothing; once the first is killed, the run goes on."""
    run = tmp_path / "run"

    def trains(ready):
        def wait(record):
            ready()
            time.sleep(60)

        train(blobs(), config(epochs=4), run, progress=False, on_epoch=wait)

    with at_work(trains) as first:
        before = content(run)
        for resume in (False, True):
            with pytest.raises((RunInUseError, FileExistsError), match=r"in use by|already holds") as caught:
                train(blobs(), config(epochs=4), run, resume=resume, progress=False)
        assert f"process {first} on {socket.gethostname()} since 20" in str(caught.value)
        assert content(run) == before
        os.kill(first, signal.SIGKILL)
        assert ended(first) == -signal.SIGKILL
        resumed = train(blobs(), config(epochs=4), run, resume=True, progress=False)
    assert_same(weights(resumed), weights(train(blobs(), config(epochs=4), progress=False)))
    assert len((run / LOG).read_text().splitlines()) == 4
    assert not (run / LOCK).exists()


def test_two_runs_that_start_at_once(tmp_path):
    def trains():
        train(blobs(), config(epochs=3), tmp_path / "run", progress=False)

    (status, said), (other, answer) = sorted(outcome(trains, trains))
    assert (status, said, other) == (0, "", 1)
    assert "is in use by" in answer or "already holds a run" in answer
    assert len((tmp_path / "run" / LOG).read_text().splitlines()) == 3


def test_a_killed_owner_whose_worker_lives_on(tmp_path):
    def holds(ready):
        with hold(tmp_path):
            if os.fork():
                ready()
            time.sleep(60)

    with at_work(holds) as owner:
        children = Path(f"/proc/{owner}/task/{owner}/children")
        if not children.exists():
            pytest.skip("the system does not tell a process's children")
        (child,) = map(int, children.read_text().split())
        with pytest.raises(RunInUseError, match=str(owner)), hold(tmp_path):
            pass
        os.kill(owner, signal.SIGKILL)
        ended(owner)
        try:
            os.kill(child, 0)  # it lives
            with hold(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_one_thread_twice_and_two_threads(tmp_path):
    refused = []

    def other():
        try:
            with hold(tmp_path):
                pass
        except RunInUseError as error:
            refused.append(str(error))

    with hold(tmp_path):
        with hold(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in refused[0]
    other()
    assert len(refused) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_without_a_name_in_it(tmp_path, monkeypatch):
    """A second process may come before the first has written who it is."""
    with hold(tmp_path):
        (tmp_path / LOCK).write_text("")
        monkeypatch.setattr(lock, "_held", {})
        with pytest.raises(RunInUseError, match="another process"), hold(tmp_path):
            pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks"), hold(tmp_path):
        assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ outputs of commands

OWN = [CONFIG, CHECKPOINT, LOG, WEIGHTS, LOCK, "split.json", "metrics.json", "metrics.csv", "model_4.safetensors"]
OWN += ["codes/query.npy", "codes/mine.npy", "pictures/gallery.png"]


def test_no_output_may_be_a_file_of_a_run(tmp_path):
    run = tmp_path / "run"
    short(run)
    (run / "codes").mkdir()
    (run / "pictures").mkdir()
    (tmp_path / "link").symlink_to(run / WEIGHTS)
    for name in OWN:
        with pytest.raises(ValueError, match=f"output: .*{name} is a file of the run"):
            check_output(run / name, "output")
    with pytest.raises(ValueError, match="link is a file of the run"):
        check_output(tmp_path / "link", "output")
    (run / CONFIG).unlink()  # what is left is a run's all the same
    with pytest.raises(ValueError, match="file of the run"):
        check_output(run / WEIGHTS, "output")
    for path in (run / "mine.npy", tmp_path / WEIGHTS):
        assert check_output(path, "output") == path
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(ValueError, match=r"x.npy is a file that this command reads"):
        check_output(tmp_path / "x.npy", "output", [None, str(tmp_path / "." / "x.npy")])


# ------------------------------------------------------------------------------------------ older runs

LATER = ("teacher", "compile", "momentum", "accumulate")


def test_a_run_from_before_some_settings_is_resumed(tmp_path):
    run = tmp_path / "run"
    short(run)
    stored = json.loads((run / CONFIG).read_text())
    del stored["environments"]
    for name in LATER:
        del stored["config"][name]
    (run / CONFIG).write_text(json.dumps(stored))
    (run / ".0123456789abcdef.tmp").write_text("a write that was cut short, under its old name")
    resumed = train(blobs(), config(epochs=3), run, resume=True, progress=False)
    assert_same(weights(resumed), weights(train(blobs(), config(epochs=3), progress=False)))


def test_the_names_of_a_run_folders_files():
    folder = RunFolder("runs/one")
    names = ("config", "checkpoint", "log", "split", "metrics", "metrics_table", "lock")
    files = [getattr(folder, name) for name in names]
    files += [folder.weights(), folder.weights(8), folder.codes("query"), folder.labels("database")]
    files += [folder.picture("gallery"), folder.comparison, folder.comparison_table]
    said = [file.relative_to("runs/one").as_posix() for file in files]
    assert said == [
        *(CONFIG, CHECKPOINT, LOG, "split.json", "metrics.json", "metrics.csv", LOCK),
        *(WEIGHTS, "model_8.safetensors", "codes/query.npy", "codes/database_labels.npy"),
        *("pictures/gallery.png", "compare.json", "compare.csv"),
    ]
    assert [folder.owns(file) for file in files] == [True] * 12 + [False] * 2
    assert not folder.owns(folder.path / "model_8.safetensors.bak")
    assert not folder.owns(folder.path / "deeper" / CONFIG)
    with pytest.raises(TypeError, match=r"^run: expected a path .*int"):
        RunFolder(3)


def test_a_loss_of_one_class_a_row_refuses_others_before_its_folder_is_written(tmp_path):
    labels = torch.eye(4, dtype=torch.uint8).repeat(10, 1)
    labels[[3, 7], 0] = 1
    data = RetrievalData.from_tensors(
        torch.randn(40, 8), labels, train=range(30), query=range(30, 40), num_classes=4, validation=0.0
    )
    with pytest.raises(ValueError, match="loss: 'shcir' is defined for single-label data, 2 of the 30 training rows"):
        train(data, config(loss="shcir", epochs=1), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
