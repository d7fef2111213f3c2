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

# The same for about a hundred classes, where it differs; no options: the published ones are better there.
WIDE: dict[str, dict] = {
    **{loss: {**TUNED.get(loss, {}), "epochs": 40} for loss in ("csq", "dpn", "dhn", "dpsh", "shcir")},
    "dtsh": {**TUNED["dtsh"], "epochs": 80},
    "dch": {"epochs": 80, "loss_options": {"reference_bits": 16}},
    "dsh": {},
    "lcdsh": {},
    "mdsh": {"epochs": 80},
}
