"""Arrays and tables as files: written whole or not at all, and read with clear errors."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np

from ..core import check
from ..core.files import atomic_write, existing_file


def load_array(path, name: str) -> np.ndarray:
    """An .npy file; a clear error where it is none."""
    try:
        array = np.load(existing_file(path, name), allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: {path} is no readable .npy file ({error})") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"{name}: {error.strerror}", str(path)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name}: expected one array in an .npy file, but {path} is an archive of several")
    if array.ndim == 0:
        raise ValueError(f"{name}: expected an array of rows, got {check.describe(array)} in {path}")
    return array


def save_array(path: Path, array) -> None:
    """An .npy file, written whole or not at all."""
    with atomic_write(path) as handle:
        np.save(handle, np.asarray(array), allow_pickle=False)


def save_csv(path: Path, rows: list[dict]) -> None:
    """A CSV file of equal dicts, written whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path, "w") as handle:
        handle.write(text.getvalue())
