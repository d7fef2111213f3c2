"""Which options go with which data set, and messages in the words of the command line. No PyTorch here."""

from __future__ import annotations

import re

_NUMBERS = ("queries_per_class", "train_per_class")
TAKEN = {
    "digits": ("queries_per_class", "as_images"),
    "cifar10": ("root", "protocol", *_NUMBERS, "image_size"),
    "list": ("root", "image_size", "augment"),
    "features": ("path", "labels", "protocol", *_NUMBERS, "num_queries", "num_train", "standardize"),
}
NEEDED = {"cifar10": ("root", "the folder of its files"), "list": ("root", "the folder of its lists")}
NEEDED |= {"features": ("path", "an .npz, .npy, .safetensors or .pt file")}
_COMMON = ("name", "seed", "validation")


def flag(name: str) -> str:
    """The option of an argument: `num_train` is --num-train."""
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
    if name in NEEDED and NEEDED[name][0] not in spec:
        needed, what = NEEDED[name]
        raise ValueError(f"{flag(needed)}: --data {name} needs it, {what}")


def in_flags(text: str, options) -> str:
    """A message that begins with an argument's name, with the option in its place."""
    found = re.match(r"([a-z_]+)(?=[:=])", text)
    return flag(found[1]) + text[found.end() :] if found and found[1] in options and found[1] != "seed" else text
