"""Training on two CPU processes: torchrun --nproc-per-node 2 two_processes_train.py

The objective joins the rows of all ranks, so that a step of 2 x 32 rows is one of 64 on one process.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import nhl_fast as nhl

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # equal data and equal first weights on every rank
labels = torch.arange(1200) % 6
rows = 1.5 * torch.randn(6, 32)[labels] + torch.randn(1200, 32)
train, queries = slice(200, None), slice(0, 200)

net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
layer = nhl.NestedHashLayer(64, code_lengths=(8, 16, 32))
loss = nhl.losses.DSH(num_classes=6, code_lengths=layer.code_lengths, num_train=1000)
objective = nhl.NestedObjective(layer, loss)  # process_group="auto": all ranks
optimizer = torch.optim.Adam([*net.parameters(), *layer.parameters()], lr=1e-3)

wrapped = DistributedDataParallel(net)
data = TensorDataset(rows[train], labels[train], torch.arange(1000))
sampler = DistributedSampler(data)
for epoch in range(8):
    sampler.set_epoch(epoch)
    for x, y, index in DataLoader(data, batch_size=64 // ranks, sampler=sampler):
        optimizer.zero_grad()
        objective(wrapped(x), y, index).total.backward()
        optimizer.step()

weights = [torch.empty_like(layer.hash_layer.weight) for _ in range(ranks)]
dist.all_gather(weights, layer.hash_layer.weight.detach())
assert all(torch.equal(weight, weights[0]) for weight in weights)
codes = layer.encode(net(rows))
if rank == 0:
    found = nhl.evaluate_retrieval(
        codes[queries], codes[train], labels[queries], labels[train], lengths=layer.code_lengths, ties="expected"
    ).mean_average_precision
    print(f"{ranks} ranks, equal weights")
    print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))  # random codes: about 0.17
dist.destroy_process_group()
