"""Names that a user may choose from. No PyTorch here: the command line knows them before it is loaded."""

import os

CENTERS = ("nested", "aligned", "hadamard", "balanced", "random")
BACKBONES = ("mlp", "conv", "identity", "resnet18", "resnet50", "vit_b_16")
TEACHERS = ("next", "longest", "longer")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")
AMP = ("bf16", "fp16")
DATASETS = ("digits", "cifar10", "list", "folder", "features")
PROTOCOLS = ("paper", "keep-train", "full", "holdout")
FIT_METHODS = ("learned", "itq", "pca", "random")
FIT_DATA = "vectors"  # the name of data in the config.json of a fit: what tells it from a training run
PROJECTIONS = ("tsne", "umap")
MEANS_OVER = ("all", "relevant")  # queries: all, or those with a relevant item
SPLITS = ("query", "database", "train", "validation")


def data_title(name: str, options) -> str:
    """What titles call a data set: the file or folder that it was read from, else its name."""
    place = options.get({"features": "path", "list": "root"}.get(name, ""))
    if place is None:
        return name
    last = os.path.basename(os.path.normpath(str(place)))
    last = os.path.splitext(last)[0] if name == "features" else last
    return last if last.strip(".") else name
