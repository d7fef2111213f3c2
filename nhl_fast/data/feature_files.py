"""Arrays of features, labels and splits from .npz, .npy, .safetensors and .pt files. No pickle is ever run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import existing_file

SPLIT_NAMES = ("train", "query", "database")
# The first name is ours; the others are what scikit-learn, feature extractors and notebooks write.
NAMES = {
    "features": ("features", "X", "x", "data", "embeddings", "feats", "vectors"),
    "labels": ("labels", "y", "Y", "label", "targets", "target"),
}
ARCHIVES = (".npz", ".safetensors", ".pt", ".pth")  # that may hold labels, too


def read_arrays(path: Path, labels) -> dict:
    """The known arrays by our names; `features` may be a tensor, everything else is a NumPy array.

    Args:
        path: of the file.
        labels: the file of the labels, where that file has features alone.

    Raises:
        ValueError: no such kind of file, one that cannot be read, or one that lacks features or labels (the
            message says what it holds).
    """
    suffix = path.suffix.lower()
    if suffix not in (*ARCHIVES, ".npy"):
        raise ValueError(f"path: expected an .npz, .npy or .safetensors file, or .pt of tensors, got {str(path)!r}")
    missing = f"labels: expected their file, or 'labels' beside the features in {path}, which holds these alone"
    if labels is None and suffix == ".npy":
        raise ValueError(missing)
    arrays, present = _read(path)
    if labels is None and len(present) == 1 and "features" in arrays:
        raise ValueError(missing)
    if labels is not None:
        if "labels" in arrays:
            raise ValueError(f"labels: expected None, got {labels!r}: {path} holds its own")
        file = existing_file(labels, "labels")
        found, beside = _read(file)
        if not {"labels", "features"} & set(found):
            raise ValueError(f"labels: expected one array in {file}, found {sorted(beside) or 'none'}")
        arrays = {**arrays, "labels": _array(found.get("labels", found.get("features")))}
    for name, known in NAMES.items():
        if arrays.get(name) is None:
            others = f" (or {', '.join(known[1:])})" if present else ""
            raise ValueError(f"{path}: expected an array {name!r}, found {sorted(present) or 'none'}{others}")
    return arrays


def read_features(path: Path):
    """The features alone of a file that may hold more, a tensor or an array; ValueError where it has none."""
    arrays, present = _read(path)
    if arrays.get("features") is None:
        others = ", ".join(NAMES["features"][1:])
        raise ValueError(f"{path}: expected an array 'features', found {sorted(present) or 'none'} (or {others})")
    return arrays["features"]


def _read(path: Path) -> tuple[dict, list[str]]:
    """The known arrays of a file, and the names of all of them; an array alone is `features`."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path) if suffix in (".pt", ".pth") else _read_numpy(path)


def _ours(present: Iterable[str], path: Path) -> dict[str, str]:
    """{our name: the file's name} of the known arrays; ValueError where two could be meant.

    One array alone is `features`, whatever it is called; so are NumPy's `arr_0` and, as labels, `arr_1`.
    """
    present = set(present)
    if present == {"arr_0", "arr_1"}:
        return {"features": "arr_0", "labels": "arr_1"}
    chosen = {name: name for name in ("split", "class_names", *SPLIT_NAMES) if name in present}
    for name, known in NAMES.items():
        found = [other for other in known if other in present]
        if len(found) > 1 and found[0] != name:
            raise ValueError(
                f"{path}: {name}: {' and '.join(map(repr, found))} could both be meant; call one {name!r}"
            )
        if found:
            chosen[name] = found[0]
    return chosen or ({"features": present.pop()} if len(present) == 1 else {})


def _read_numpy(path: Path) -> tuple[dict, list[str]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}, ["features"]
        with loaded:
            present = list(loaded.files)
            chosen = _ours(present, path)
            return {ours: loaded[name] for ours, name in chosen.items()}, present
    except Exception as error:
        if str(error).startswith(f"{path}: "):
            raise
        hint = "; save strings with dtype=str" if "allow_pickle" in str(error) else ""
        # zipfile, zlib, the header parser and the allocator each raise their own.
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error}{hint})") from None


def _read_safetensors(path: Path) -> tuple[dict, list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            present = list(file.keys())
            tensors = {ours: file.get_tensor(name) for ours, name in _ours(present, path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    return {name: value if name == "features" else _array(value) for name, value in tensors.items()}, present


def _read_torch(path: Path) -> tuple[dict, list[str]]:
    """A .pt file of a tensor, of (features, labels), or of a dict; labels may be a list. Read with weights_only."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be read as tensors alone ({type(error).__name__}: {first})") from None
    if isinstance(loaded, torch.Tensor):
        return {"features": loaded.detach()}, ["features"]
    if isinstance(loaded, (tuple, list)) and len(loaded) == 2 and isinstance(loaded[0], torch.Tensor):
        loaded = dict(zip(("features", "labels"), loaded))
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"{path}: expected a tensor, a pair or a dict of tensors, got {check.describe(loaded)}")
    arrays = {}
    for ours, name in _ours(loaded, path).items():
        value = loaded[name]
        if isinstance(value, list) and value and len(set(map(type, value))) == 1 and type(value[0]) in (str, int):
            value = np.array(value)
        elif not isinstance(value, torch.Tensor):
            raise TypeError(f"{path}: {name}: expected a tensor, got {check.describe(value)}")
        arrays[ours] = value if ours == "features" else _array(value)
    return arrays, list(loaded)


def _array(value) -> np.ndarray:
    """A tensor as an array. NumPy has no bfloat16: labels, zeros and ones then, lose nothing in float32."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
