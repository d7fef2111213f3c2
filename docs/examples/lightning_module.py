"""A Lightning module: the objective is a submodule, its weights and losses are logged, codes come from `predict`."""

import logging

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import nhl_fast as nhl


class NestedHashing(lightning.LightningModule):
    def __init__(self, backbone, width, num_classes, code_lengths=(8, 16, 32)):
        super().__init__()
        layer = nhl.NestedHashLayer(width, code_lengths)
        self.backbone = backbone
        # Under several devices a training step joins the rows of all of them (docs/distributed.md).
        self.objective = nhl.NestedObjective(layer, nhl.losses.CSQ(num_classes, code_lengths, centers="nested"))

    def training_step(self, batch, batch_index):
        images, labels = batch
        result = self.objective(self.backbone(images), labels)
        self.log_dict({f"loss/{b}": v for b, v in zip(self.objective.layer.code_lengths, result.losses)})
        return result.total

    def predict_step(self, batch, batch_index):
        return self.objective.layer.encode(self.backbone(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
lightning.seed_everything(0, verbose=False)
pixels, classes = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes)
train, queries = slice(200, None), slice(0, 200)

model = NestedHashing(torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU()), width=256, num_classes=10)
trainer = lightning.Trainer(
    max_epochs=8, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True))
codes = torch.cat(trainer.predict(model, DataLoader(TensorDataset(images), batch_size=512)))

found = nhl.evaluate_retrieval(
    codes[queries], codes[train], labels[queries], labels[train], lengths=(8, 16, 32), ties="expected"
).mean_average_precision
print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))  # random codes: about 0.1
