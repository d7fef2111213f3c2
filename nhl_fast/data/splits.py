"""Which rows train, validate, query and are searched: seeded splits, their checks and their files.

Row ids of a data set are 0 .. n-1; a split lists them in ascending order (list files keep their own order).
Queries, training rows and validation rows come from separate random streams of one seed, so that changing
the size of one leaves the earlier ones as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..core import check as _check
from ..core.files import existing_file, read_json, write_json

_QUERY, _TRAIN, _VALIDATION = range(3)
_FORMAT, _VERSION = "nhl_fast.split", 1


@dataclass(frozen=True, eq=False)
class Indices:
    """Row ids, int64 arrays: training, validation, queries and the database that is searched."""

    train: np.ndarray
    validation: np.ndarray
    query: np.ndarray
    database: np.ndarray


NAMES = tuple(field.name for field in fields(Indices))


def _stream(seed: int, which: int) -> np.random.Generator:
    return np.random.default_rng([seed, which])


def stratified(labels: np.ndarray, rows: np.ndarray, count, rng: np.random.Generator) -> np.ndarray:
    """`count(size of the class)` random rows of every class that occurs among `rows`, ascending.

    Multi-hot labels have no one class a row: there `rows` is treated as one class.
    """
    groups = np.zeros(len(rows), np.int64) if labels.ndim == 2 else labels[rows]
    order = np.argsort(groups, kind="stable")
    starts = np.unique(groups[order], return_index=True)[1]
    picks = [np.empty(0, np.int64)]
    for members in np.split(rows[order], starts[1:]):
        picks.append(rng.permutation(members)[: max(count(len(members)), 0)])
    return np.sort(np.concatenate(picks))


def pooled(
    labels: np.ndarray,
    queries: int,
    training: int | None,
    keep_train: bool,
    seed: int,
    names: tuple[str, str] = ("queries_per_class", "train_per_class"),
) -> Indices:
    """All rows pooled: `queries` and then `training` random rows a class, and the rest as the database.

    For multi-hot labels the two numbers are totals. `training` None takes every row that is no query (and
    then the database is the training rows). `keep_train` leaves the training rows in the database.

    Raises:
        ValueError: a class has too few rows (`names` are the arguments that the message names).
    """
    needed = queries + (1 if training is None else training)
    sizes = np.array([len(labels)]) if labels.ndim == 2 else np.unique(labels, return_counts=True)[1]
    if len(labels) == 0 or sizes.min() < needed:
        asked = f"{names[0]}={queries}" + ("" if training is None else f" and {names[1]}={training}")
        least = 0 if len(labels) == 0 else int(sizes.min())
        what = "the data set" if labels.ndim == 2 else "the smallest class"
        raise ValueError(f"{asked}: expected at least {needed} rows, but {what} has {least}")
    everything = np.arange(len(labels), dtype=np.int64)
    query = stratified(labels, everything, lambda size: queries, _stream(seed, _QUERY))
    rest = np.setdiff1d(everything, query, assume_unique=True)
    if training is None:
        return Indices(rest, rest[:0], query, rest)
    train = stratified(labels, rest, lambda size: training, _stream(seed, _TRAIN))
    database = rest if keep_train else np.setdiff1d(rest, train, assume_unique=True)
    return Indices(train, train[:0], query, database)


def holdout(
    labels: np.ndarray, seed: int, share: float = 0.1, most_queries: int = 10_000, most_train: int = 50_000
) -> Indices:
    """A split for any data: a `share` of every class as queries (at least one of two rows), the rest is searched.

    All of the database trains, up to `most_train` random rows; at most `most_queries` rows are queries.
    """
    everything = np.arange(len(labels), dtype=np.int64)
    stream = _stream(seed, _QUERY)
    query = stratified(labels, everything, lambda size: min(max(round(share * size), 1), size - 1), stream)
    if len(query) == 0:
        raise ValueError("labels: expected a class of at least 2 rows, to hold one out as a query, got none")
    query = np.sort(stream.permutation(query)[:most_queries])
    rest = np.setdiff1d(everything, query, assume_unique=True)
    train = np.sort(_stream(seed, _TRAIN).permutation(rest)[:most_train])
    return Indices(train, train[:0], query, rest)


def leading(num_rows: int, num_train: int) -> Indices:
    """The first `num_train` rows train and are the database; the others are the queries."""
    if not 0 < num_train < num_rows:
        raise ValueError(f"num_train: expected a number from 1 to {num_rows - 1}, got {num_train}")
    rows = np.arange(num_rows, dtype=np.int64)
    return Indices(rows[:num_train], rows[:0], rows[num_train:], rows[:num_train])


def check_fraction(validation) -> float:
    """`validation` as a fraction in [0, 1)."""
    if isinstance(validation, bool) or not isinstance(validation, (int, float)):
        raise TypeError(f"validation: expected a number in [0, 1), got {_check.describe(validation)}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a number in [0, 1), got {validation}")
    return float(validation)


def take_validation(indices: Indices, labels: np.ndarray, fraction: float, seed: int) -> Indices:
    """Move a fraction of the training rows (of every class, rounded) to the validation rows.

    At least one row of a class stays in the training rows; queries and database are left as they are.
    """
    validation = stratified(
        labels,
        indices.train,
        lambda size: min(round(fraction * size), size - 1),
        _stream(seed, _VALIDATION),
    )
    train = indices.train[~np.isin(indices.train, validation)]
    return Indices(train, validation, indices.query, indices.database)


def row_ids(value, name: str, num_rows: int) -> np.ndarray:
    """`value` as a 1-d int64 array of row ids, each in range and at most once."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: expected a list of row ids, got nested lists of unequal length") from None
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected a list of integer row ids, got {_check.describe(array)}")
    if array.min() < 0 or array.max() >= num_rows:
        bad = array[(array < 0) | (array >= num_rows)][0]
        raise ValueError(f"{name}: expected row ids from 0 to {num_rows - 1}, got {bad}")
    array = array.astype(np.int64)
    values, counts = np.unique(array, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"{name}: expected every row at most once, got row {values[counts > 1][0]} twice")
    return array


def check(indices: Indices, num_rows: int) -> Indices:
    """`indices` with every list checked; ValueError where a query or a validation row leaks."""
    checked = Indices(**{name: row_ids(getattr(indices, name), name, num_rows) for name in NAMES})
    for name in ("train", "query", "database"):
        if len(getattr(checked, name)) == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
    for a, b in (("query", "train"), ("query", "validation"), ("query", "database"), ("validation", "train")):
        shared = np.intersect1d(getattr(checked, a), getattr(checked, b))
        if len(shared):
            raise ValueError(f"{a}: expected no row of {b} in it, got {len(shared)} (the first is row {shared[0]})")
    return checked


def save(path, indices: Indices, header: dict) -> None:
    """Write a split file: `header` (what the data set was) and the row ids, as JSON, atomically."""
    sizes = {name: len(getattr(indices, name)) for name in NAMES}
    lists = {name: getattr(indices, name).tolist() for name in NAMES}
    write_json(path, {"format": _FORMAT, "version": _VERSION, **header, "sizes": sizes, "indices": lists}, None)


def load(path, expected: dict, num_rows: int) -> tuple[Indices, dict]:
    """The row ids and the header of a split file that was written for this data set.

    Args:
        path: a file that `save` wrote.
        expected: entries of the header that must be equal.
        num_rows: rows of the data set.

    Raises:
        ValueError: the file is no split file, is damaged, or belongs to other data (the message says why).
    """
    path = existing_file(path, "split_file")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"split_file: {path} is not a split file of nhl_fast")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"split_file: {path} has version {content.get('version')!r}, expected {_VERSION} "
            "(another version of nhl_fast wrote it)"
        )
    for key, value in expected.items():
        if content.get(key) != value:
            raise ValueError(
                f"split_file: {path} is for other data: {key} is {content.get(key)!r} there, "
                f"and {value!r} in the data set that was loaded"
            )
    if type(content.get("seed")) is not int or content["seed"] < 0 or not isinstance(content.get("protocol"), str):
        raise ValueError(f"split_file: {path} lacks a seed or a protocol")
    lists = content.get("indices")
    if not isinstance(lists, dict) or not all(isinstance(lists.get(name), Sequence) for name in NAMES):
        raise ValueError(f"split_file: {path} lacks the row lists {', '.join(NAMES)}")
    try:
        indices = check(Indices(**{name: lists[name] for name in NAMES}), num_rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"split_file: {path}: {error}") from None
    if content.get("sizes") != {name: len(getattr(indices, name)) for name in NAMES}:
        raise ValueError(f"split_file: {path} is damaged: its sizes are not those of its row lists")
    return indices, content
