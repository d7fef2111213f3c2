"""The files of a run folder, read and checked: every error names the folder and the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ..core import check
from ..core.files import read_json
from ..core.names import MEANS_OVER
from ..data import splits
from ..retrieval.ties import RULES
from ..training.run_folder import RunFolder


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors of the block, with the folder and the file in front."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if str(error).startswith("run: ") or str(file) in str(error):
            raise
        missing = "lacks " if isinstance(error, KeyError) else ""
        raise ValueError(f"run: {file}: {missing}{error}") from error


def read_metrics(folder: RunFolder, longest: int) -> tuple[dict, dict, dict]:
    """metrics.json as {metric: {bits: value}}, mAP of the prefixes, and the rest; codes have `longest` bits."""
    content = read_object(folder.metrics)
    with naming(folder.metrics):
        for name, kind in (("data", str), ("protocol", str), ("lengths", list), ("prefix_map", dict)):
            if not isinstance(content[name], kind):
                raise ValueError(f"{name}: expected {kind.__name__}, got {check.describe(content[name])}")
        for name in ("num_queries", "num_database"):
            check.positive_int(content[name], name)
        if content["topk"] is not None:
            content["topk"] = check.positive_int(content["topk"], "topk")
            if content["topk"] >= content["num_database"]:  # the whole ranking
                content["topk"] = None
        check.one_of(content["ties"], "ties", tuple(RULES))
        check.one_of(content.setdefault("mean_over", "all"), "mean_over", MEANS_OVER)
        found: dict[str, dict[int, float]] = {}
        for row in content["lengths"]:
            bits = check.positive_int(row["bits"], "bits")
            for name, value in row.items():
                if name != "bits":
                    found.setdefault(name, {})[bits] = share(value, f"{name} at {bits} bits")
        check.code_lengths(found["mAP"], "lengths")
        prefixes = {
            check.positive_int(int(b), "prefix_map"): share(v, f"prefix_map[{b}]")
            for b, v in content["prefix_map"].items()
        }
        if max([*found["mAP"], *prefixes]) > longest:
            raise ValueError(f"holds lengths beyond the {longest} bits of the run's codes")
    return found, prefixes, content


def read_split(folder: RunFolder, head: dict) -> tuple[splits.Indices, dict]:
    content = read_object(folder.split)
    with naming(folder.split):
        num_rows = check.positive_int(content["num_rows"], "num_rows")
        if not isinstance(content["fingerprint"], str):
            raise ValueError(f"fingerprint: expected text, got {check.describe(content['fingerprint'])}")
        indices, header = splits.load(folder.split, {"dataset": head["data"], "protocol": head["protocol"]}, num_rows)
        sizes = header["sizes"]
        if (sizes["query"], sizes["database"]) != (head["num_queries"], head["num_database"]):
            other = f"its sizes are not those of {folder.metrics.name}"
            raise ValueError(f"{other}; run 'nhl-fast evaluate {folder.path}' again")
        facts = {
            "num_classes": header["num_classes"],
            "split_seed": header["seed"],
            **{name: sizes[name] for name in splits.NAMES},
            "labels_sha256": header["fingerprint"],
        }
    return indices, facts


def read_history(folder: RunFolder, lengths: list[int]) -> list[dict]:
    log = folder.log
    if not log.is_file():
        raise FileNotFoundError(f"run: {folder.path} holds no {log.name}, the training log")
    history = []
    with naming(log):
        for i, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                for name in ("losses", "weights", "distill"):
                    if [isinstance(v, (int, float)) for v in record[name]] != [True] * len(lengths):
                        raise ValueError(f"{name}: expected {len(lengths)} numbers")
                if record["epoch"] != i:
                    raise ValueError(f"epoch: expected {i}, got {check.describe(record['epoch'])}")
                check.number(check.positive_int(record["steps"], "steps"), "steps")
                check.number(record["seconds"], "seconds")
                for b, value in (record["validation"] or {}).items():
                    share(value, f"validation[{int(b)}]")
                _check_conflicts(record.get("conflicts"), len(lengths))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"line {i} is not the record of an epoch ({error})") from None
            history.append(record)
        if not history:
            raise ValueError("holds no epoch")
    return history


def _check_conflicts(table, m: int) -> None:
    if table is None:
        return
    if len(table) != m or any(len(row) != m for row in table):
        raise ValueError(f"conflicts: expected {m} x {m} shares")
    for row in table:
        for value in row:
            share(value, "conflicts")


def read_object(file: Path) -> dict:
    """The object in a JSON file of a folder."""
    if not file.is_file():
        raise FileNotFoundError(f"run: {file.parent} holds no {file.name}")
    with naming(file):
        content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"run: {file} holds no object, but {check.describe(content)[:60]}")
    return content


def share(value, name: str) -> float:
    value = check.number(value, name)
    if value > 1 + 1e-9:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return value
