"""Names that a user may choose from. No PyTorch here: the command line knows them before it is loaded."""

CENTERS = ("nested", "aligned", "hadamard", "balanced", "random")
BACKBONES = ("mlp", "conv", "identity", "resnet18", "resnet50", "vit_b_16")
TEACHERS = ("next", "longest", "longer")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")
AMP = ("bf16", "fp16")
DATASETS = ("digits", "cifar10", "list", "features")
PROTOCOLS = ("paper", "keep-train", "full", "holdout")
FIT_METHODS = ("learned", "itq", "pca", "random")
FIT_DATA = "vectors"  # the name of data in the config.json of a fit: what tells it from a training run
SPLITS = ("query", "database", "train", "validation")
