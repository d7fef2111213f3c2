"""Functions in several processes that form a process group; nothing here waits for ever."""

import datetime
import multiprocessing
import os
import pickle
import queue
import tempfile
import time
import traceback

import torch

SECONDS = 240


def _rank(function, rank, count, file, results, args, backend):
    torch.set_num_threads(1)
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        torch.distributed.init_process_group(
            backend,
            init_method=f"file://{file}",
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=SECONDS),
        )
        results.put((rank, True, pickle.dumps(function(rank, count, *args))))
        torch.distributed.destroy_process_group()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


def in_ranks(count: int, function, *args, backend: str = "gloo") -> list:
    """[function(rank, count, *args)] of `count` ranks, each a process of one thread; what it gives is pickled.

    backend: "nccl" gives each rank the card of its number.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "store")
        workers = [
            context.Process(target=_rank, args=(function, i, count, file, results, args, backend), daemon=True)
            for i in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            found, end = {}, time.monotonic() + SECONDS
            while len(found) < count:
                try:
                    rank, fine, value = results.get(timeout=max(0.1, end - time.monotonic()))
                except queue.Empty:
                    raise AssertionError(f"ranks: only {sorted(found)} came back in {SECONDS} s") from None
                assert fine, f"rank {rank}: {value}"
                found[rank] = pickle.loads(value)
        finally:
            for worker in workers:
                worker.join(10)
                if worker.is_alive():
                    worker.kill()
    return [found[rank] for rank in range(count)]
