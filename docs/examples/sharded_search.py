"""Search and metrics of a database that no rank holds whole.

torchrun --nproc-per-node 2 docs/examples/sharded_search.py
"""

import torch
import torch.distributed as dist

from nhl_fast.retrieval.shards import evaluate_shards, search_shards

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

generator = torch.Generator().manual_seed(0)  # stands for your codes: the queries are the same on every rank
queries = torch.randint(0, 256, (5, 16), dtype=torch.uint8, generator=generator)
query_labels = torch.randint(0, 10, (5,), generator=generator)
generator.manual_seed(1 + rank)  # and each rank has a part of the database
codes = torch.randint(0, 256, (1000 + rank, 16), dtype=torch.uint8, generator=generator)
labels = torch.randint(0, 10, (len(codes),), generator=generator)

distances, ids = search_shards(queries, [codes], k=10, length=64, process_group="auto")
result = evaluate_shards(queries, query_labels, [(codes, labels)], lengths=(32, 64, 128), process_group="auto")
if rank == 0:
    print(f"{ranks} ranks, {result.num_database} items; the nearest of query 0: {ids[0].tolist()}")
    print(result)
dist.destroy_process_group()
