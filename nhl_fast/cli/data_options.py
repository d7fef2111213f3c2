"""Which options go with which data set, and messages in the words of the command line. No PyTorch here."""

from __future__ import annotations

import argparse
import os
import re

from ..core import names
from ..core.files import as_path

_NUMBERS = ("queries_per_class", "train_per_class")
TAKEN = {
    "digits": ("queries_per_class", "as_images"),
    "cifar10": ("root", "protocol", *_NUMBERS, "image_size"),
    "list": ("root", "image_size", "augment"),
    "folder": ("root", "protocol", *_NUMBERS, "image_size", "augment"),
    "features": ("path", "labels", "protocol", *_NUMBERS, "num_queries", "num_train", "standardize"),
}
NEEDED = {"cifar10": ("root", "the folder of its files"), "list": ("root", "the folder of its lists")}
NEEDED |= {"folder": ("root", "the folder of the classes' folders")}
NEEDED |= {"features": ("path", "an .npz, .npy, .safetensors or .pt file")}
_COMMON = ("name", "seed", "validation")
OPTIONS = ("root", "path", "labels", "protocol", *_NUMBERS, "num_queries", "num_train", "image_size")
FLAGS = ("as_images", "standardize", "augment")
PROTOCOLS_HELP = (
    "how rows are split. holdout: a tenth of every class as queries, the rest is searched and trains (the default of "
    "features and folders without numbers); paper: 100 queries and 500 training rows a class, the rest is searched; "
    "keep-train: the same with the training rows in the database; full: the leading rows train and are searched"
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that loads data."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=dataset,
        metavar="NAME",
        help=f"which data set: {', '.join(names.DATASETS)} (default: digits); or where yours lies: a folder of "
        "pictures per class or of list files, a file of features and labels",
    )
    group.add_argument(
        "--root", metavar="DIR", help="folder of cifar10's or list's files, or of a folder of pictures per class"
    )
    group.add_argument("--path", metavar="FILE", help="file of features and labels: .npz, .safetensors, .pt or .npy")
    group.add_argument("--labels", metavar="FILE", help="file of the labels, where that of the features holds none")
    group.add_argument("--protocol", choices=names.PROTOCOLS, metavar="NAME", help=PROTOCOLS_HELP)
    group.add_argument(
        "--queries-per-class", type=int, metavar="N", help="of paper and keep-train (default 100; digits 20)"
    )
    group.add_argument("--train-per-class", type=int, metavar="N", help="of paper and keep-train (default 500)")
    group.add_argument("--num-queries", type=int, metavar="N", help="multi-label data: number of queries")
    group.add_argument(
        "--num-train", type=int, metavar="N", help="full: leading rows that train; multi-label data: training rows"
    )
    group.add_argument(
        "--image-size", type=int, metavar="N", help="side of the pictures (default: cifar10 32, list and folder 224)"
    )
    group.add_argument(
        "--as-images", action="store_true", default=None, help="digits as 1 x 8 x 8 images, for --backbone conv"
    )
    group.add_argument(
        "--standardize", action="store_true", default=None, help="features: mean 0 and deviation 1 on training rows"
    )
    group.add_argument(
        "--augment", action="store_true", default=None, help="list, folder: random crops and flips of training images"
    )
    group.add_argument("--split-seed", type=int, metavar="N", help="seed of the split (default 0)")
    group.add_argument(
        "--validation", type=float, metavar="X", help="share of training rows kept for validation (default 0.1)"
    )


def places(args) -> dict:
    """Where the data lies, as absolute paths."""
    values = {name: getattr(args, name, None) for name in ("root", "path", "labels")}
    return {n: str(as_path(v, f"--{n}").resolve()) for n, v in values.items() if v is not None}


def given(args) -> dict:
    """What was given of what `load_dataset` takes."""
    values = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    values |= {name: True for name in FLAGS if getattr(args, name)}
    values |= places(args)
    for name, dest in (("name", "data"), ("seed", "split_seed"), ("validation", "validation")):
        if getattr(args, dest) is not None:
            values[name] = getattr(args, dest)
    return found(values)


def dataset(text: str) -> str:
    """The name of a data set, or the path of a folder or file that is there."""
    if text in names.DATASETS or os.path.exists(os.path.expanduser(text)):
        return text
    raise argparse.ArgumentTypeError(
        f"no such folder or file, invalid choice: {text!r} (choose from {', '.join(map(repr, names.DATASETS))})"
    )


def found(spec: dict) -> dict:
    """The options with the kind of data in the place of a path, and where they lie."""
    name = spec.get("name")
    if name is None or name in names.DATASETS:
        return spec
    path = as_path(name, "--data").resolve()
    place = "root" if path.is_dir() else "path"
    if place in spec:
        raise ValueError(f"--{place}: --data {name} says where the data lie, got {spec[place]}")
    kind = "features" if place == "path" else "list" if (path / "train.txt").is_file() else "folder"
    return {**spec, "name": kind, place: str(path)}


def flag(name: str) -> str:
    """The option of an argument: `num_train` is --num-train, `k` is -k."""
    if len(name) == 1:
        return f"-{name}"
    return "--" + {"code_lengths": "lengths", "loss_options": "loss-option"}.get(name, name).replace("_", "-")


def refuse_impossible(spec: dict) -> None:
    """ValueError for an option that the data set does not have, or lacks, before anything is read."""
    name = spec["name"]
    for option in spec:
        if option not in (*_COMMON, *TAKEN[name]):
            ways = [data for data, taken in TAKEN.items() if option in taken]
            raise ValueError(
                f"{flag(option)}: --data {name} takes {', '.join(map(flag, TAKEN[name]))}, not {flag(option)}, "
                f"which goes with --data {' or '.join(ways)}"
            )
    if name == "features" and "path" in spec and as_path(spec["path"]).is_dir():
        raise ValueError(
            f"--path: expected a file, got the folder {spec['path']}; a folder of pictures goes with --data"
        )
    if name in NEEDED and NEEDED[name][0] not in spec:
        needed, what = NEEDED[name]
        raise ValueError(f"{flag(needed)}: --data {name} needs it, {what}")


def in_flags(text: str, options) -> str:
    """A message that begins with an argument's name, with the option in its place; `options`: those there are."""
    found = re.match(r"([a-z_]+)(?=[:=])", text)
    return flag(found[1]) + text[found.end() :] if found and found[1] in options and found[1] != "seed" else text
