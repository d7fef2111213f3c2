"""Which options go with which data set, and messages in the words of the command line. No PyTorch here."""

from __future__ import annotations

import argparse
import os
import re

from ..core.files import as_path
from ..core.names import DATASETS

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


def dataset(text: str) -> str:
    """The name of a data set, or the path of a folder or file that is there."""
    if text in DATASETS or os.path.exists(os.path.expanduser(text)):
        return text
    raise argparse.ArgumentTypeError(
        f"no such folder or file, invalid choice: {text!r} (choose from {', '.join(map(repr, DATASETS))})"
    )


def found(spec: dict) -> dict:
    """The options with the kind of data in the place of a path, and where they lie."""
    name = spec.get("name")
    if name is None or name in DATASETS:
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
    """A message that begins with an argument's name, with the option in its place."""
    found = re.match(r"([a-z_]+)(?=[:=])", text)
    return flag(found[1]) + text[found.end() :] if found and found[1] in options and found[1] != "seed" else text
