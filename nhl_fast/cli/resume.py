"""`nhl-fast train --resume RUN`: the run's own settings and data; what is given again may only be equal."""

from __future__ import annotations

import dataclasses

from ..core import check, names
from ..core.files import as_path
from ..training import presets
from ..training.config import TrainConfig
from ..training.run_folder import RunFolder, check_target, free_settings

_FLAGS = {"code_lengths": "--lengths", "loss_options": "--loss-option", "name": "--data", "seed": "--split-seed"}
_DATA_DEFAULTS = {"name": "digits", "seed": 0, "validation": 0.1}
# Where the files lie may change: what they hold is compared when they are loaded.
_PLACES = ("root", "path", "labels")


def prepare(args, settings: dict, data: dict) -> None:
    """Set `out`, `config` and `data_spec` of `args` from the run to resume.

    Args:
        args: of the command line.
        settings, data: what was given of `TrainConfig`'s and `load_dataset`'s arguments.

    Raises:
        ValueError: an option says something else than the run (named with both values), or the run cannot be
            resumed from here.
        FileNotFoundError: there is no run.
    """
    if isinstance(args.resume, str):
        run = as_path(args.resume, "--resume")
        if as_path(args.out, "--out").resolve() != run.resolve():
            raise ValueError(f"--out: expected the folder of --resume ({args.resume}), got {args.out}")
    run = check_target(args.out, resume=True, name="--resume")
    stored = RunFolder(run).read_config()
    config = TrainConfig.from_dict(stored["config"])
    for name in ("loss", "backbone", "weighting"):
        if getattr(config, name) == "custom":
            raise ValueError(f"--resume: {run} was trained in Python with a {name} of its own; go on with it there")
    if stored["data"].get("name") not in names.DATASETS:
        raise ValueError(f"--resume: {run} was trained in Python on data of its own; go on with it there")
    args.config = _settings(config, settings, args.preset)
    args.data_spec = _data(stored["data"], data)


def _settings(config: TrainConfig, given: dict, preset: str | None) -> TrainConfig:
    free, changes = free_settings(config.schedule), {}
    if preset is not None:
        chosen = presets.settings(preset, given, config.loss, config.code_lengths)
        _compare(
            config, {k: v for k, v in chosen.items() if k not in given and k not in free}, f"--preset {preset}: "
        )
    wanted = dataclasses.replace(config, **{k: v for k, v in given.items() if k != "loss_options"})
    for name in given:
        if name in free:
            changes[name] = getattr(wanted, name)
    _compare(config, {k: v for k, v in given.items() if k not in free}, "")
    return dataclasses.replace(config, **changes)


def _compare(config: TrainConfig, given: dict, where: str) -> None:
    for name, value in given.items():
        flag = _FLAGS.get(name, "--" + name.replace("_", "-")) if name != "seed" else "--seed"
        if name == "loss_options":
            for option, number in value.items():
                _equal(f"{where}{flag} {option}", config.loss_options.get(option), number)
        else:
            _equal(
                f"{where}{flag}", getattr(config, name), getattr(dataclasses.replace(config, **{name: value}), name)
            )


def _data(stored: dict, given: dict) -> dict:
    for name, value in given.items():
        if name not in _PLACES:
            flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
            _equal(flag, stored.get(name, _DATA_DEFAULTS.get(name)), value)
    return {**stored, **{name: value for name, value in given.items() if name in _PLACES}}


def _equal(flag: str, own, given) -> None:
    if own != given:
        raise ValueError(
            f"{flag}: the run has {_text(own)}, got {_text(given)}; it goes on with its own settings only"
        )


def _text(value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return check.describe(value).partition(" ")[2] if value is not None else "none"
