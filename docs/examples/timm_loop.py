"""A timm backbone, a nested layer and a plain PyTorch loop on scikit-learn's digits.

The backbone is one of timm's smallest, with random weights; `pretrained=True` and a name from `timm.list_models()`
give a real one, whose inputs `timm.data.create_transform` prepares.
"""

import timm
import torch
from sklearn.datasets import load_digits

import nhl_fast as nhl

torch.manual_seed(0)
data = load_digits()
images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]  # (1797, 1, 8, 8)
images = torch.nn.functional.interpolate(images, size=32)
labels = torch.tensor(data.target)
order = torch.randperm(len(images))
queries, train = order[:200], order[200:]

backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0, in_chans=1)
layer = nhl.NestedHashLayer(backbone.num_features, code_lengths=(8, 16, 32))
loss = nhl.losses.CSQ(num_classes=10, code_lengths=layer.code_lengths, centers="nested")
objective = nhl.NestedObjective(layer, loss)
optimizer = torch.optim.Adam([*backbone.parameters(), *layer.parameters()], lr=3e-3)
for _ in range(5):
    for rows in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        objective(backbone(images[rows]), labels[rows]).total.backward()
        optimizer.step()

backbone.eval()
with torch.no_grad():
    codes = layer.encode(backbone(images))
found = nhl.evaluate_retrieval(
    codes[queries], codes[train], labels[queries], labels[train], lengths=layer.code_lengths, ties="expected"
).mean_average_precision
print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))  # random codes: about 0.1
