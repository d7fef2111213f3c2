"""Forked children of a test: they start at once, where a new Python needs seconds to load PyTorch."""

import contextlib
import os
import signal


def fork(work, write):
    """The id of a child that does `work` and ends; its error, if any, goes to the descriptor `write`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(status)
    return child


def ended(child):
    """The exit status of a child, once it has ended; of one that a signal ended, its number below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(*works):
    """[(exit status, error as text)] of children that do `works` at the same time."""
    pipes = [os.pipe() for _ in works]
    children = [fork(work, write) for work, (_, write) in zip(works, pipes)]
    said = []
    for child, (read, write) in zip(children, pipes):
        os.close(write)
        status = ended(child)
        with open(read, "rb") as end:
            os.set_blocking(read, False)
            said.append((status, (end.read() or b"").decode()))
    return said


@contextlib.contextmanager
def at_work(work):
    """The id of a child that has called the function `ready` which `work` is given; killed at the end."""
    read, write = os.pipe()
    child = fork(lambda: work(lambda: os.write(write, b"ready")), write)
    os.close(write)
    try:
        said = os.read(read, 4000)
        assert said == b"ready", said.decode()
        yield child
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
