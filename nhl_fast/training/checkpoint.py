"""Nested state (model, optimizer, bank, history) in one safetensors file: no pickles, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..core.files import atomic_write, existing_file

_KEY = "nhl_fast"


def _flatten(value, path: str, tensors: dict[str, torch.Tensor]):
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[_key(k), _flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"state: cannot store {path!r} of type {type(value).__name__}")


def _key(key):
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return key
    raise TypeError(f"state: cannot store the key {key!r} of type {type(key).__name__}")


def _restore(node, tensors):
    kind, value = next(iter(node.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _restore(v, tensors) for k, v in value}
    if kind == "list":
        return [_restore(v, tensors) for v in value]
    return value


def save_state(path, state: dict) -> None:
    """Write nested dicts and lists of tensors, numbers, strings, bools and None; tuples come back as lists."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(state, "state", tensors)
    data = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(tree)})
    with atomic_write(path) as handle:
        handle.write(data)


def load_state(path) -> dict:
    """What `save_state` wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or was not written by `save_state`.
    """
    path = existing_file(path)
    try:
        with safetensors.safe_open(str(path), "pt") as handle:
            metadata = handle.metadata() or {}
            if _KEY not in metadata:
                raise ValueError(f"{path}: a safetensors file, but not one of nhl_fast")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return _restore(json.loads(metadata[_KEY]), tensors)
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, StopIteration, AttributeError) as error:
        raise ValueError(f"{path}: damaged or no state of nhl_fast ({error})") from error


def save_weights(path, module: torch.nn.Module) -> None:
    """A module's state_dict as plain safetensors, for any reader."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    with atomic_write(path) as handle:
        handle.write(safetensors.torch.save(tensors))


def load_weights(path, module: torch.nn.Module) -> None:
    """Load weights of `save_weights` into a module of the same shape; ValueError where they do not fit."""
    path = existing_file(path)
    try:
        tensors = safetensors.torch.load_file(str(path))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file ({error})") from error
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: these weights do not fit the model: {reason}") from error


def write_lines(path: Path, records: list[dict]) -> None:
    """A JSON-lines file, replaced as a whole."""
    with atomic_write(path, "w") as handle:
        handle.writelines(json.dumps(record) + "\n" for record in records)
