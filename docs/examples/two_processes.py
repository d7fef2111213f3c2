"""Evaluation on two CPU processes, a share of the queries each: torchrun --nproc-per-node 2 two_processes.py"""

import torch
import torch.distributed as dist

import nhl_fast as nhl

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same data everywhere; in practice, each process loads its share
codes, labels = nhl.pack_codes(torch.randn(600, 32)), torch.arange(600) % 5
queries, database = slice(0, 100), slice(100, None)
lengths = (8, 16, 32)


def evaluate(rows):
    return nhl.evaluate_retrieval(codes[rows], codes[database], labels[rows], labels[database], lengths=lengths)


mine = evaluate(torch.arange(100)[rank::size]).average_precision  # (lengths, queries of this process)
parts = [None] * size
dist.all_gather_object(parts, mine)
together = torch.cat([torch.as_tensor(part) for part in parts], dim=1).mean(1)
if rank == 0:
    alone = torch.tensor(list(evaluate(torch.arange(100)).mean_average_precision.values()), dtype=together.dtype)
    torch.testing.assert_close(together, alone)
    print("two processes agree with one")
dist.destroy_process_group()
