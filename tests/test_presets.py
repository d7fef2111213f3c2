"""Settings to start from: what each has, and what is the loss's own."""

from nhl_fast.training.config import TrainConfig


def test_the_papers():
    paper = TrainConfig.preset("paper")
    assert (paper.lr, paper.weight_decay, paper.batch_size, paper.backbone) == (1e-5, 1e-5, 64, "resnet50")


def test_tuned():
    tuned = TrainConfig.preset("tuned", loss="dsh", code_lengths=(8, 24), loss_options={"alpha": 0.3}, epochs=2)
    assert (tuned.weighting, tuned.epochs, tuned.loss_options) == ((1.0, 2.0), 2, {"balance": True, "alpha": 0.3})
    assert TrainConfig.preset("tuned", loss="dch").weighting == "dominance"


def test_wide():
    wide = TrainConfig.preset("wide", loss="dtsh", code_lengths=(8, 24, 25))
    assert (wide.hidden, wide.weighting, wide.loss_options) == ((2048,), (1.0, 2.0, 4.0), {"reference_bits": 32})
    weights = {
        loss: TrainConfig.preset("wide", loss=loss, code_lengths=(8, 24, 25)).weighting for loss in ("dsh", "mdsh")
    }
    assert weights == {"dsh": (4.0, 2.0, 1.0), "mdsh": (1.0, 1.0, 1.0)}
    assert TrainConfig.preset("wide", loss="dbdh").hidden == (1024,)
    for loss in ("dsh", "lcdsh", "mdsh"):  # better as published there
        published = TrainConfig.preset("wide", loss=loss, code_lengths=(8, 24))
        assert (published.loss_options, published.dropout, published.hidden) == ({}, 0.5, (2048,))
        assert TrainConfig.preset("tuned", loss=loss).loss_options
    dch = TrainConfig.preset("wide", loss="dch", code_lengths=(8, 24))
    assert (dch.weighting, dch.loss_options) == ((1.0, 2.0), {"reference_bits": 16})
    epochs = {loss: TrainConfig.preset("wide", loss=loss).epochs for loss in ("csq", "dhn", "dtsh", "dch", "mdsh")}
    assert epochs == {"csq": 40, "dhn": 40, "dtsh": 80, "dch": 80, "mdsh": 80}
    dhn = TrainConfig.preset("wide", loss="dhn").loss_options
    assert dhn == TrainConfig.preset("tuned", loss="dhn").loss_options == {"balance": True, "reference_bits": 16}
    assert TrainConfig.preset("wide", loss="dch", epochs=7).epochs == 7
    assert TrainConfig.preset("wide", code_lengths=8).weighting == TrainConfig().weighting
