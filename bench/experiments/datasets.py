"""The data of the experiments: features by name or path, or digits; whole or spoilt (noise, few, long tails)."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch

from nhl_fast.data import RetrievalData, load_dataset

# Unsupervised 256-d k-means features of CIFAR-10 (JPEG copy); any .npz with `features` and `labels` will do.
FEATURES = Path(
    os.environ.get("NHL_FAST_FEATURES", Path(__file__).parents[3] / "shared" / "data" / "cifar10_kmeans256.npz")
)


def default_name() -> str:
    """ "features" where the file is there, else the digits that scikit-learn carries."""
    return "features" if FEATURES.is_file() else "digits"


def source(name: str) -> Path:
    """The file of "features", "pseudo100", a set beside them (its stem) or an .npz given by its path."""
    if name in ("features", "pseudo100"):
        return FEATURES
    return Path(name) if name.endswith(".npz") else FEATURES.with_name(f"{name}.npz")


def told(name: str) -> str:
    """Where the set `name` comes from, in words."""
    return {"digits": "scikit-learn", "pictures": "a JPEG copy"}.get(name) or source(name).name


@functools.lru_cache(maxsize=2)
def _read(path: str, key: str = "labels"):
    """Features (N, d) float32, and ids (N,) int64 or, from rows that numpy.packbits packed, multi-hot (N, C) uint8.

    Rows without any label are left out.
    """
    with np.load(path, allow_pickle=False) as file:
        if wrong := sorted({"features", key} - set(file.files)):
            raise ValueError(f"labels: {Path(path).name} has no {', '.join(wrong)}, only {', '.join(file.files)}")
        features, labels = torch.from_numpy(file["features"].astype(np.float32)), file[key]
    if labels.ndim == 1:
        return features, torch.from_numpy(labels.astype(np.int64))
    labels = np.unpackbits(labels, axis=1)
    labels = torch.from_numpy(labels[:, : int(labels.any(0).nonzero()[0].max()) + 1])
    some = labels.bool().any(1)
    return features[some], labels[some]


def _larger_classes(inputs: torch.Tensor, labels: torch.Tensor, least: int):
    """Rows of the classes with at least `least` rows, whose ids are counted anew."""
    sizes = torch.bincount(labels)
    ids = torch.where(sizes >= least, (sizes >= least).cumsum(0) - 1, -1)[labels]
    return inputs[ids >= 0], ids[ids >= 0]


@functools.lru_cache(maxsize=1)
def _pseudo_labels(path: str) -> torch.Tensor:
    """100 classes from 10: each class's rows in halves along their first principal component, then in fifths."""
    features, labels = _read(path)
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    fine = torch.zeros_like(labels)
    for c in range(int(labels.max()) + 1):
        halves = _cut(features, (labels == c).nonzero().flatten(), 2)
        for i, rows in enumerate(part for half in halves for part in _cut(features, half, 5)):
            fine[rows] = 10 * c + i
    return fine


def _cut(features: torch.Tensor, rows: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """Rows in equal parts along their first principal component."""
    x = features[rows] - features[rows].mean(0)
    component = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    component = component * component[component.abs().argmax()].sign()
    order = (x @ component).argsort(stable=True)
    return list(rows[order].tensor_split(parts))


def _spoil(labels: torch.Tensor, train: np.ndarray, spec: dict, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Labels and training rows after `noise`, `per_class` or `imbalance`; queries and database keep theirs."""
    rng = np.random.default_rng([seed, 77])
    classes = int(labels.max()) + 1
    owner = labels.numpy()[train]
    if "per_class" in spec:
        train = np.concatenate([rng.permutation(train[owner == c])[: spec["per_class"]] for c in range(classes)])
    if "imbalance" in spec:
        sizes = [(owner == c).sum() * spec["imbalance"] ** (-i / (classes - 1)) for i, c in enumerate(range(classes))]
        parts = [rng.permutation(train[owner == c])[: max(2, round(n))] for c, n in enumerate(sizes)]
        train = np.concatenate(parts)
    if "noise" in spec:
        wrong = rng.permutation(train)[: round(spec["noise"] * len(train))]
        labels = labels.clone()
        shift = torch.from_numpy(rng.integers(1, classes, len(wrong)))
        labels[wrong] = (labels[wrong] + shift) % classes
    return labels, np.sort(train)


def build(spec: dict, seed: int) -> RetrievalData:
    """The data set of one run.

    Args:
        spec: "name" ("digits", "pictures", or see `source`), "labels" (the file's array, default "labels"),
            "queries_per_class" and "train_per_class", or "queries" and "train" (rows in all, as data of several
            labels need), "smallest_class" (classes of fewer rows are left out), "standardise" (by the training
            rows; default True), "validation", "split" (the
            seed of every run's split, where settings are looked for), and at most one of "noise" (share of wrong
            training labels), "per_class" (training rows a class) and "imbalance" (largest over smallest class).
        seed: of the split and of what is spoilt.
    """
    name, validation = spec["name"], spec.get("validation", 0.0)
    if name == "pictures":
        return pictures(spec, seed)
    if name == "digits":
        inputs, labels = _digits()
    elif source(name).is_file():
        inputs, labels = _read(str(source(name)), spec.get("labels", "labels"))
        if name == "pseudo100":
            labels = _pseudo_labels(str(FEATURES))
    else:
        raise FileNotFoundError(
            f"features: {source(name)} is not there; set NHL_FAST_FEATURES, or take --data digits"
        )
    if "smallest_class" in spec:
        inputs, labels = _larger_classes(inputs, labels, spec["smallest_class"])
    plain = RetrievalData.from_tensors(
        *(inputs, labels), **_rows(labels, spec, seed), validation=0.0, name=name, seed=seed
    )
    train = plain.train.indices.numpy()
    noisy, train = (labels, train) if labels.ndim == 2 else _spoil(labels, train, spec, seed)
    rows = torch.from_numpy(train)
    if spec.get("standardise", True):
        mean, std = inputs[rows].mean(0), inputs[rows].std(0).clamp(min=1e-6)
        inputs = (inputs - mean) / std
    return RetrievalData.from_tensors(
        inputs,
        noisy,
        train=train,
        query=plain.query.indices.numpy(),
        database=plain.database.indices.numpy(),
        validation=validation,
        num_classes=plain.num_classes,
        name=name,
        seed=seed,
    )


def _rows(labels: torch.Tensor, spec: dict, seed: int) -> dict:
    """Queries and training rows, so many of every class or in all; the database is what is left."""
    rng = np.random.default_rng([seed, 55])
    query, train = [], []
    if "queries" in spec:
        q, t = spec["queries"], spec["train"]
        groups, what = [torch.arange(len(labels))], "train: the set"
    else:
        q, t = spec["queries_per_class"], spec["train_per_class"]
        if labels.ndim == 2:
            raise ValueError("queries_per_class: rows have several labels; give queries and train, in all")
        groups = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
        what = "train_per_class: class {}"
    for c, group in enumerate(groups):
        rows = rng.permutation(group.numpy())
        if len(rows) < q + t + 1:
            raise ValueError(f"{what.format(c)} has {len(rows)} rows, fewer than {q + t + 1}")
        query.append(rows[:q])
        train.append(rows[q : q + t])
    query, train = np.concatenate(query), np.concatenate(train)
    taken = np.concatenate([query, train])
    return {"query": query, "train": train, "database": np.setdiff1d(np.arange(len(labels)), taken)}


@functools.lru_cache(maxsize=1)
def _digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def pictures(spec: dict, seed: int) -> RetrievalData:
    """Pictures of CIFAR-10, "size" pixels wide (bicubic), as (px - 127) / 128, and a part of the database.

    "queries_per_class", "train_per_class" and "database_per_class" count them. NHL_FAST_CIFAR10 names their folder.
    """
    root = os.environ.get("NHL_FAST_CIFAR10")
    if root is None:
        raise FileNotFoundError("pictures: NHL_FAST_CIFAR10 names the folder of CIFAR-10, and is not set")
    counts = {name: spec[name] for name in ("queries_per_class", "train_per_class")}
    whole = load_dataset("cifar10", root=root, protocol="paper", validation=0.0, seed=seed, **counts)
    labels = whole.database.labels
    some = torch.cat([(labels == c).nonzero().flatten()[: spec["database_per_class"]] for c in range(10)])
    parts = [
        (whole.train.inputs, whole.train.labels),
        (whole.query.inputs, whole.query.labels),
        (whole.database.inputs[some], labels[some]),
    ]
    size = (spec["size"], spec["size"])
    inputs = [
        torch.nn.functional.interpolate(x.float(), size, mode="bicubic", align_corners=False).clamp(0, 255)
        for x, _ in parts
    ]
    train, query, database = torch.arange(sum(map(len, inputs))).split([len(x) for x in inputs])
    return RetrievalData.from_tensors(
        torch.cat(inputs).sub_(127).div_(128),
        torch.cat([y for _, y in parts]),
        train=train,
        query=query,
        database=database,
        validation=0.0,
        name="cifar10 pictures",
        seed=seed,
    )


def images(root, rows: int) -> RetrievalData:
    """`rows` training pictures of CIFAR-10 and few others: enough to measure a step of a convolutional net."""
    whole = load_dataset(
        "cifar10",
        root=root,
        protocol="paper",
        queries_per_class=1,
        train_per_class=(rows + 200) // 10,
        validation=0.0,
    )
    inputs, labels = whole.train.batch(slice(None))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, query, database = order.split([rows, 100, len(order) - rows - 100])
    return RetrievalData.from_tensors(
        inputs, labels, train=train, query=query, database=database, validation=0.0, name="cifar10 pictures"
    )
