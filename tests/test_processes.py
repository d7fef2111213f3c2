"""Forked children compute as their parent does, and signals are served during a long native call."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.core import fork
from nhl_fast.native import cpu_status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
needs_library = pytest.mark.skipif(not cpu_status()[0], reason="needs the C++ library")


def run(script: str, *arguments: str, timeout: float = 300) -> str:
    """The output of a script in a process of its own, with two threads; a hang fails the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


WORK = """
import hashlib, os, sys, torch
import nhl_fast as nhl
torch.set_num_threads(2)

def digest(*tensors):
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()

def work(backend):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8000, 64, generator=generator)
    codes = nhl.pack_codes(x)
    labels = torch.arange(len(codes)) % 10
    queries = codes[:40]
    found = nhl.search(queries, codes, 300, backend=backend)
    index = nhl.NestedIndex(64)
    index.add(codes)
    kept = index.search(queries, 10, length=32, backend=backend)
    near = nhl.radius_search(queries, codes, 20, backend=backend)
    result = nhl.evaluate_retrieval(queries, codes, labels[:40], labels, (8, 64), backend=backend)
    layer = nhl.NestedHashLayer(64, (8, 32))
    with torch.no_grad():
        layer.hash_layer.weight.copy_(x[:32])
    objective = nhl.NestedObjective(layer, nhl.losses.CSQ(10, (8, 32)))
    objective(x[:1000], labels[:1000]).total.backward()
    step = layer.hash_layer.weight.grad
    return digest(codes, *found, *kept, *near, result.average_precision, layer.encode(x), step)
"""


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_library)])
def test_fork_after_threads_were_used(backend):
    script = (
        WORK
        + """
expected = work(sys.argv[1])
assert torch.get_num_threads() == 2
for generation in range(2):  # the second child is forked by a parent that has started threads anew
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()  # a child that used no thread may have children, too
        text = f"{work(sys.argv[1])} {torch.get_num_threads()}\\n"
        os.write(write, text.encode())
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode() == f"{expected} 2\\n" * 2
    assert work(sys.argv[1]) == expected
"""
    )
    run(script, backend)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_library)])
def test_fork_with_a_runtime_that_keeps_its_threads(backend):
    """OpenMP before 5.0, imitated: the child goes on with one thread and the same results."""
    script = (
        WORK
        + """
from nhl_fast.core import fork
fork._pause = lambda: None
expected = work(sys.argv[1])
child = os.fork()
if child == 0:
    os._exit(not (work(sys.argv[1]) == expected and torch.get_num_threads() == 1))
assert os.waitpid(child, 0)[1] == 0
assert torch.get_num_threads() == 2
"""
    )
    run(script, backend)


def test_pool():
    script = (
        WORK
        + """
import multiprocessing
if __name__ == "__main__":
    expected = work("auto")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, ["auto"] * 3) == [expected] * 3
"""
    )
    run(script)


def search_and_change(index, codes, results):
    index.add(codes)
    index.remove([0])
    results.put((len(index), index.search(codes[:2], 1)[1].tolist()))


def test_index_whose_lock_was_held_at_the_fork():
    index, codes = nhl.NestedIndex(16), torch.arange(0, 20, dtype=torch.uint8).view(10, 2)
    index.add(codes)
    held, done = threading.Event(), threading.Event()

    def write():
        with index._writing:
            held.set()
            done.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    held.wait()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=search_and_change, args=(index, codes, results))
    child.start()
    try:
        assert results.get(timeout=20) == (19, [[10], [1]])
    finally:
        child.kill()
        done.set()
        writer.join()
        child.join()
    index.add(codes)  # the parent's own lock works on
    assert len(index) == 20


def test_a_lock_excludes():
    lock, inside = fork.Lock(), []

    def enter():
        with lock:
            inside.append(1)
            time.sleep(0.01)
            assert len(inside) == 1
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside


# ---------------------------------------------------------------------------------------------------- signals


class Alarm(Exception):
    pass


def ring(*_):
    raise Alarm("the handler's own")


def long_calls():
    """Calls of the C++ library that take seconds, each called with its size."""
    rng = np.random.default_rng(0)

    def rows(n):
        return rng.integers(0, 256, (n, 16), dtype=np.uint8)

    items, queries = rows(300_000), rows(20_000)
    labels, own = torch.arange(len(items)) % 10, torch.arange(len(queries)) % 10
    deep = rows(64)
    u = torch.randn(4000, 128)
    loss = nhl.losses.DTSH(2, (64, 128))
    return {
        "search": lambda: nhl.search(np.repeat(queries, 20, 0), items, 10, backend="cpp"),
        "radius": lambda: nhl.radius_search(np.repeat(queries, 20, 0), items, 30, backend="cpp"),
        "evaluate": lambda: nhl.evaluate_retrieval(queries, items, own, labels, (8, 64, 128), backend="cpp"),
        "histograms": lambda: nhl.evaluate_retrieval(
            queries[:3000], items, own[:3000], labels, tuple(range(1, 129)), ties="expected", backend="cpp"
        ),
        "index": lambda: filled(items).search(np.repeat(deep, 5000, 0), 10, backend="cpp"),
        "loss": lambda: loss(u, torch.arange(len(u)) % 2, backend="cpp"),
    }


def filled(items):
    index = nhl.NestedIndex(128)
    index.add(items)
    return index


@needs_library
@pytest.mark.parametrize("name", list(long_calls()))
def test_a_signal_is_served_during_a_long_call(name):
    call, before = long_calls()[name], signal.signal(signal.SIGALRM, ring)
    took = None
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.perf_counter()
        with pytest.raises(Alarm, match="the handler's own"):
            call()
        took = time.perf_counter() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0.3 <= took < 1.3
    # Nothing of it is left behind.
    codes = np.arange(32, dtype=np.uint8)[:, None]
    assert nhl.search(codes, codes, 1, backend="cpp")[1].flatten().tolist() == list(range(32))


@needs_library
def test_a_handler_that_returns_changes_nothing():
    rang = []
    items = np.random.default_rng(0).integers(0, 256, (200_000, 16), dtype=np.uint8)
    queries = np.repeat(items[:2000], 3, 0)
    expected = nhl.search(queries, items, 10)
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(nhl.search(queries[:3], items, 2)[1].tolist()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.05)
        while len(rang) < 3:
            found = nhl.search(queries, items, 10)
            assert all(map(torch.equal, found, expected))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(r == expected[1][:3, :2].tolist() for r in rang)


@needs_library
def test_other_threads_are_not_disturbed():
    """A call on a thread other than the main one goes on while the main thread serves the signal."""
    items = np.random.default_rng(0).integers(0, 256, (300_000, 16), dtype=np.uint8)
    queries, results = np.repeat(items[:2000], 4, 0), []
    thread = threading.Thread(target=lambda: results.append(nhl.search(queries, items, 10)))
    before = signal.signal(signal.SIGALRM, ring)
    try:
        thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Alarm):
            time.sleep(20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        thread.join()
    assert results[0][1].shape == (8000, 10)


@needs_library
def test_ctrl_c_in_a_process_of_its_own():
    script = """
import os, signal, threading, time
import numpy as np
import nhl_fast as nhl
items = np.random.default_rng(0).integers(0, 256, (300_000, 16), dtype=np.uint8)
sent = []
def send():
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.3, send).start()
try:
    nhl.search(np.repeat(items[:40_000], 10, 0), items, 10, backend="cpp")
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
"""
    assert float(run(script)) < 1
