"""The training settings that did best for a loss (docs/experiments.md), by its name; a new loss does without."""

TUNED: dict[str, dict] = {
    "dsh": {"dropout": 0.2, "loss_options": {"balance": True, "alpha": 0.0}},
    "dhn": {"loss_options": {"balance": True, "reference_bits": 16}},
    "dpsh": {"loss_options": {"balance": True}},
    "dbdh": {"loss_options": {"balance": True, "reference_bits": 16}},
    "dtsh": {"loss_options": {"reference_bits": 32}},
    "lcdsh": {"loss_options": {"reference_bits": 256}},
    "dch": {"weighting": "dominance"},
    "mdsh": {"loss_options": {"reference_bits": 16}},
    "shcir": {"loss_options": {"reference_bits": 8}},
}

# The same for about a hundred classes, where it differs; no options: the published ones are better there. "growth" is
# what a length's weight is to the next shorter one's; 2 where it is not given.
WIDE: dict[str, dict] = {
    **{loss: {**TUNED.get(loss, {}), "epochs": 40} for loss in ("csq", "dpn", "dhn", "dpsh", "shcir")},
    "dtsh": {**TUNED["dtsh"], "epochs": 80},
    "dch": {"epochs": 80, "loss_options": {"reference_bits": 16}},
    "dsh": {"epochs": 80, "growth": 0.5},
    "dbdh": {**TUNED["dbdh"], "epochs": 80, "hidden": (1024,)},  # in a wider layer it did not train
    "lcdsh": {"epochs": 80},
    "mdsh": {"epochs": 80, "growth": 1.0},
}
