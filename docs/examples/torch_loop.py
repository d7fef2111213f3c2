"""A plain PyTorch loop: a small net and a nested layer on scikit-learn's digits, evaluated at every length."""

import torch
from sklearn.datasets import load_digits

import nhl_fast as nhl

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes)
order = torch.randperm(len(images))
queries, train = order[:200], order[200:]

net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU())
layer = nhl.NestedHashLayer(256, code_lengths=(8, 16, 32))
loss = nhl.losses.CSQ(num_classes=10, code_lengths=layer.code_lengths, centers="nested")
objective = nhl.NestedObjective(layer, loss)
optimizer = torch.optim.Adam([*net.parameters(), *layer.parameters()], lr=1e-3)
for _ in range(8):
    for rows in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        objective(net(images[rows]), labels[rows]).total.backward()
        optimizer.step()

codes = layer.encode(net(images))
found = nhl.evaluate_retrieval(
    codes[queries], codes[train], labels[queries], labels[train], lengths=layer.code_lengths, ties="expected"
).mean_average_precision
print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))  # random codes: about 0.1
