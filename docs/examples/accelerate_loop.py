"""Hugging Face's accelerate around a plain loop: `python accelerate_loop.py`, or under torchrun.

Under several processes the objective joins the rows of all of them (docs/distributed.md).
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import nhl_fast as nhl

set_seed(0)
pixels, classes = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes)
train, queries = slice(200, None), slice(0, 200)

net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU())
layer = nhl.NestedHashLayer(256, code_lengths=(8, 16, 32))
loss = nhl.losses.CSQ(num_classes=10, code_lengths=layer.code_lengths, centers="nested")
objective = nhl.NestedObjective(layer, loss)
optimizer = torch.optim.Adam([*net.parameters(), *layer.parameters()], lr=1e-3)
loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True)

accelerator = Accelerator(cpu=True)
net, objective, optimizer, loader = accelerator.prepare(net, objective, optimizer, loader)
for _ in range(8):
    for rows, ids in loader:
        optimizer.zero_grad()
        accelerator.backward(objective(net(rows), ids).total)
        optimizer.step()

with torch.no_grad():
    codes = layer.encode(accelerator.unwrap_model(net)(images))
found = nhl.evaluate_retrieval(
    codes[queries], codes[train], labels[queries], labels[train], lengths=layer.code_lengths, ties="expected"
).mean_average_precision
# random codes: about 0.1
accelerator.print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))
