"""Data sets for retrieval: digits, CIFAR-10, folders, list files and feature files, split the same way every time."""

from __future__ import annotations

import importlib
import inspect

from ..core import check
from ..core.names import data_title
from . import splits
from .dataset import RetrievalData, Split

__all__ = ["RetrievalData", "Split", "load_dataset"]

_LOADERS = {"digits": "digits", "cifar10": "cifar10", "list": "listfile", "folder": "folder", "features": "features"}


def load_dataset(name: str, *, seed: int = 0, validation: float = 0.1, split_file=None, **options) -> RetrievalData:
    """Load a data set and split it into training, validation, query and database rows.

    The rule is one for all: queries never train and are never searched; `data.validation` are queries for
    choosing a model, a fraction of the training rows of every class (multi-label data: plain random), and
    `data.train` is what remains of them; validation queries are ranked against `data.validation_database`,
    the remaining training rows. The database does not change with `validation`.

    Args:
        name: which data set, with its own options:

            - "digits": scikit-learn's 1,797 digits. 200 queries; the other 1,597 rows are the database and
              also the training and validation rows. `queries_per_class=20`; `as_images=False` gives float32
              features (64,) in [0, 1], True gives (1, 8, 8).
            - "cifar10": `root`, the directory with the official binary or Python files (nothing is
              downloaded). `protocol="paper"`: all 60,000 pooled, 100 queries and 500 training rows a class,
              54,000 others are the database; "keep-train": the same with the training rows in the database
              (59,000); "full": 50,000 training rows are the database, 10,000 test rows the queries.
              `queries_per_class`, `train_per_class` change the numbers; `image_size` resizes the pictures.
              Inputs are float32 (3, 32, 32), normalised as ImageNet models expect.
            - "list": `root`, a directory with train.txt, test.txt (queries) and database.txt; every line is a
              path below `image_root` (default: `root`), which may hold spaces, and then C labels, 0 or 1, or the
              ids of its classes, with blanks, tabs or commas between them (a first line that ends in `0 1` is of
              two classes' labels unless more or fewer ids follow, one above 1). `multi_label` None looks whether
              every line has exactly one class. Pictures are opened when they are needed: `image_size=224`, cut out
              of a shorter side of `resize` (default: 256 for 224, in proportion); `augment=True` crops and flips
              those of `train` at random. They are turned as their EXIF orientation says (`upright=False` leaves
              them), and those of more than 8 bits a pixel keep their range.
            - "folder": `root`, a directory with a folder of pictures per class, whose name is the class's. `protocol`
              "holdout" (the default without numbers), "paper" or "keep-train", as of "features"; pictures as of
              "list". Where `root` holds nothing but train/ and test/ (or query/, val/) of such folders, they are the
              split: a val/ beside test/ joins train/, and the database is database/, or train/ where there is none.
            - "features": `path` of an .npz, .safetensors or .pt file with `features` (n, d) and `labels` (or X and
              y, ...; ids, strings or multi-hot rows), or of an .npy file with `labels=` another one. `protocol`
              "holdout" (the default without numbers): a tenth of every class are queries, at most 10,000, the rest
              is the database, of which up to 50,000 rows train. "paper", "keep-train" or "full" as above, with
              `queries_per_class`, `train_per_class` (multi-label: `num_queries`, `num_train`); "full" needs
              `num_train`, the number of leading rows that train. A file may hold its own split: arrays of row
              ids `train`, `query`, `database`, or an array `split` of these words (without `database`, every
              row that is no query). `standardize=True` uses the mean and deviation of the training rows.
        seed: of the split (and of random crops and flips), at least 0.
        validation: the fraction for validation, in [0, 1); 0 leaves `data.validation` empty.
        split_file: a file that `data.save_split` wrote. It alone then decides the rows: `validation`,
            `seed` (but for crops and flips) and the options about the split change nothing.

    Raises:
        TypeError, ValueError: a wrong option, a damaged or foreign file, too few rows for the split, or a
            split file of other data; the message names the argument or the file (and the line).
        FileNotFoundError: a file that is not there.
        ImportError: an optional package is missing; the message says what to install.
    """
    check.one_of(name, "name", tuple(_LOADERS))
    seed = check.positive_int(seed, "seed", minimum=0)
    fraction = splits.check_fraction(validation)
    loader = importlib.import_module(f".{_LOADERS[name]}", __name__).load
    allowed = inspect.signature(loader).parameters
    for option in options:
        if option not in allowed:
            raise TypeError(f"{option}: load_dataset({name!r}) has no such option, only {', '.join(allowed)}")
    for option, parameter in allowed.items():
        if parameter.default is parameter.empty and option not in options:
            raise TypeError(f"{option}: load_dataset({name!r}) needs it")
    table, split = loader(**options)
    table.title = data_title(name, options)
    if split_file is None:
        split_seed = seed
        indices, protocol = split(seed)
        indices = splits.check(indices, len(table.labels))
        indices = splits.take_validation(indices, table.labels.numpy(), fraction, seed)
    else:
        expected = {
            "dataset": table.name,
            "num_rows": len(table.labels),
            "num_classes": table.num_classes,
            "fingerprint": table.fingerprint(),
        }
        indices, header = splits.load(split_file, expected, len(table.labels))
        protocol, split_seed = header["protocol"], header["seed"]
    return RetrievalData.from_table(table, indices, protocol, split_seed, augment_seed=seed)
