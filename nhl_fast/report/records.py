"""What a report reads: run folders and comparisons, checked, as records of one kind."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ..core import check
from ..core.files import as_path
from ..data import splits
from ..training.config import TrainConfig
from ..training.evaluate import weights_sha256
from ..training.run_folder import RunFolder
from .files import naming, read_history, read_metrics, read_object, read_split, share


@dataclass(frozen=True)
class Conditions:
    """What two results must have in common to stand in one table.

    Attributes:
        data, protocol: names.
        rows: which rows are queries, database and training rows (validation included), as a digest; or where they
            come from, where that was not recorded.
        topk, ties: of the mean average precision.
        mean_over: the queries of all means.
    """

    data: str
    protocol: str
    rows: str
    topk: int | None
    ties: str
    mean_over: str = "all"


@dataclass
class Record:
    """One trained model, or one model for each length, and what it measured.

    Attributes:
        path: the run folder, or the comparison's file.
        name: what the page calls it: the folder's name, no path.
        variant: "" for a run; "nested" or "single" for a side of a comparison.
        config: settings, seed included.
        data_options: how the data set was loaded.
        fingerprint: SHA-256 of data and split, or None where it was not recorded.
        conditions: see there.
        facts: sizes of the splits and the like, {name: value}.
        metrics: {"mAP": {bits: value}, and others}.
        prefix_map: {bits: mAP} of every prefix, may be empty.
        history: the training log.
        environments: machines and versions, may be empty.
        epochs, seconds, seconds_per_epoch, seconds_per_step: of training; medians for the last two.
        best_epoch: the epoch of the weights, None where there are several.
        note: further words about the times.
    """

    path: Path
    name: str
    variant: str
    config: dict
    data_options: dict
    fingerprint: str | None
    conditions: Conditions
    facts: dict
    metrics: dict[str, dict[int, float]]
    prefix_map: dict[int, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    environments: list[dict] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    seconds_per_epoch: float = 0.0
    seconds_per_step: float = 0.0
    best_epoch: int | None = None
    note: str = ""

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def map(self) -> dict[int, float]:
        return self.metrics["mAP"]


def load_records(path) -> list[Record]:
    """The records of one run folder, comparison folder or compare.json.

    Raises:
        FileNotFoundError: nothing there, or nothing evaluated.
        ValueError: damaged or foreign files; the message names the folder.
    """
    path = as_path(path, "run")
    if not path.exists():
        raise FileNotFoundError(f"run: {path} does not exist")
    if path.is_file():
        return _comparison(path)
    folder = RunFolder(path)
    has_run, has_comparison = folder.config.is_file(), folder.comparison.is_file()
    if not has_run and not has_comparison:
        raise FileNotFoundError(
            f"run: {path} is no run folder: it holds neither {folder.config.name} (of train) nor "
            f"{folder.comparison.name} (of compare)"
        )
    found = [_run(folder)] if has_run else []
    return found + (_comparison(folder.comparison) if has_comparison else [])


def distinct_names(records: list[Record]) -> list[Record]:
    """The records; where folders of the same name lie in different places, with the folder above in the name."""
    names = [record.name for record in records]
    for record in records:
        if any(name == record.name and other.path != record.path for name, other in zip(names, records)):
            place = record.path.resolve()
            place = place if place.name == record.name else place.parent
            record.name = "/".join(place.parts[-2:])
    return records


def best_epoch(history: list[dict]) -> int:
    """The epoch whose weights a run keeps: the first with the best mean validation mAP, else the last."""
    best, epoch = None, history[-1]["epoch"]
    for record in history:
        if record["validation"]:
            mean = statistics.fmean(record["validation"].values())
            if best is None or mean > best:
                best, epoch = mean, record["epoch"]
    return epoch


def _run(folder: RunFolder) -> Record:
    path, stored = folder.path, folder.read_config()
    if not folder.metrics.is_file():
        raise FileNotFoundError(f"run: {path} is not evaluated yet: run 'nhl-fast evaluate {path}' first")
    with naming(folder.config):
        config = TrainConfig.from_dict(stored["config"]).to_dict()
        environments = stored.get("environments", [])
        for found in environments:
            check.positive_int(found.get("from_epoch", 1), "from_epoch")
    metrics, prefixes, head = read_metrics(folder, config["code_lengths"][-1])
    if head.get("weights_sha256") is not None and weights_sha256(folder) not in (None, head["weights_sha256"]):
        raise ValueError(f"run: {path} was trained on after its evaluation: run 'nhl-fast evaluate {path}' again")
    indices, facts = read_split(folder, head)
    history = read_history(folder, config["code_lengths"])
    steps = [r["seconds"] / r["steps"] for r in history]
    rows = hashlib.sha256(facts["labels_sha256"].encode())
    for part in (sorted([*indices.train.tolist(), *indices.validation.tolist()]), indices.query, indices.database):
        rows.update(json.dumps([int(i) for i in part]).encode())
    return Record(
        path=path,
        name=path.resolve().name,
        variant="",
        config=config,
        data_options=stored["data"],
        fingerprint=stored["data_fingerprint"],
        conditions=Conditions(
            head["data"], head["protocol"], rows.hexdigest(), head["topk"], head["ties"], head["mean_over"]
        ),
        facts=facts,
        metrics=metrics,
        prefix_map=prefixes,
        history=history,
        environments=environments,
        epochs=len(history),
        seconds=math.fsum(r["seconds"] for r in history),
        seconds_per_epoch=statistics.median(r["seconds"] for r in history),
        seconds_per_step=statistics.median(steps),
        best_epoch=best_epoch(history),
    )


def _comparison(path: Path) -> list[Record]:
    """Both sides of a comparison, every seed."""
    folder = RunFolder(path.parent)
    content = read_object(path)
    with naming(path):
        if not isinstance(content.get("seeds"), list) or not content["seeds"]:
            raise ValueError(f"is no comparison of nhl-fast compare (which writes {folder.comparison.name})")
        config = TrainConfig.from_dict(content["config"]).to_dict()
        fingerprint = content.get("data_fingerprint")
        split, options = content.get("split", {}), content.get("data_spec", {})
        environments = [content["environment"]] if "environment" in content else []
        for name, value, kind in (
            ("split", split, dict),
            ("data_spec", options, dict),
            ("environment", environments[0] if environments else {}, dict),
            ("data_fingerprint", "" if fingerprint is None else fingerprint, str),
        ):
            if not isinstance(value, kind):
                raise ValueError(f"{name}: expected {kind.__name__}, got {check.describe(value)}")
        rows = fingerprint or f"not recorded: {path.resolve()}"
        conditions = Conditions(str(content["data"]), str(content["protocol"]), rows, None, "expected")
        facts = {"num_classes": split.get("num_classes"), "split_seed": split.get("seed")}
        facts |= {n: None if n not in split else check.positive_int(split[n], n, 0) for n in splits.NAMES}
        facts["labels_sha256"] = split.get("fingerprint")
        common = {
            "path": path,
            "name": path.resolve().parent.name if path.name == folder.comparison.name else path.name,
            "data_options": options,
            "fingerprint": fingerprint,
            "conditions": conditions,
            "facts": facts,
            "environments": environments,
        }
        found = []
        for entry in content["seeds"]:
            seeded = {**config, "seed": check.positive_int(entry["seed"], "seed", 0)}
            found.append(_side("nested", seeded, [entry["nested"]], common))
            found.append(_side("single", seeded, list(entry["single"].values()), common))
    return found


def _side(variant: str, config: dict, measured: list[dict], common: dict) -> Record:
    """One side of a comparison: the nested model, or the models of all lengths together."""
    single = variant == "single"
    scores = {int(b): share(v, f"mAP at {b} bits") for m in measured for b, v in m["map"].items()}
    times = ("seconds", "seconds_per_epoch", "seconds_per_step")
    total, epoch, step = ([check.number(m[n], n, positive=True) for m in measured] for n in times)
    if max(scores) > config["code_lengths"][-1]:
        raise ValueError(f"{variant}: holds lengths beyond {config['code_lengths'][-1]} bits")
    if single:
        config = {**config, "code_lengths": [f"{b} alone" for b in sorted(scores)]}
        config["weighting"] = config["weighting"] if isinstance(config["weighting"], str) else "uniform"
    return Record(
        variant=variant,
        config=config,
        metrics={"mAP": dict(sorted(scores.items()))},
        epochs=sum(check.positive_int(m["epochs"], "epochs") for m in measured),
        seconds=math.fsum(total),
        seconds_per_epoch=statistics.median(epoch),
        seconds_per_step=statistics.median(step),
        best_epoch=None if single else check.positive_int(measured[0]["best_epoch"], "best_epoch", 0),
        note=f"{len(measured)} models" if single else "",
        **common,
    )
