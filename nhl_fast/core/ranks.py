"""Ranks of a process group (`torch.distributed`): which group is meant, and rows of all ranks joined on each."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from . import check

# Numbers that `added_up` takes from all ranks at a time.
PIECE = 2**22
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def check_group(value, name: str = "process_group"):
    """`value` if it is None, "auto" or a process group; TypeError or ValueError otherwise."""
    if isinstance(value, str):
        return check.one_of(value, name, ("auto",))
    known = value is None or (dist.is_available() and isinstance(value, dist.ProcessGroup))
    if not known:
        raise TypeError(
            f"{name}: expected None, 'auto' or a torch.distributed process group, got {check.describe(value)}"
        )
    return value


def resolve_group(value):
    """The group of several ranks that `check_group`'s value means now, or None; "auto" is the default group."""
    if value is None or not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if isinstance(value, str) else value
    return group if dist.get_world_size(group) > 1 else None


class _Own(torch.autograd.Function):
    """Joined rows as a function of this rank's own, whose gradient comes times the number of ranks."""

    @staticmethod
    def forward(ctx, own, joined, start, ranks):
        ctx.place = start, start + own.shape[0], ranks
        return joined

    @staticmethod
    def backward(ctx, gradient):
        start, stop, ranks = ctx.place
        return gradient[start:stop] * ranks, None, None, None


def join_rows(tensors: Sequence[torch.Tensor | None], group, error: Exception | None = None) -> list:
    """Rows of all ranks, in the order of the ranks, on each of them.

    Args:
        tensors: (N, ...) each, of one N, on one device; N may differ between ranks, and be 0. A gradient of the
            joined rows comes back as this rank's own rows times the number of ranks, since data-parallel training
            takes the mean over the ranks.
        group: of several ranks, all of which must call.
        error: what is wrong with this rank's arguments: raised here, and told to the others, so that none waits.

    Raises:
        RuntimeError: another rank came with an error.
        ValueError: the ranks' tensors have different dtypes or shapes of rows; on every rank.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    device = collective_device(group, tensors[0])
    form = [int(error is not None), 0 if error else len(tensors[0])]
    for t in tensors:
        absent = t is None or error is not None
        form += [-1, 0, 0] if absent else [_DTYPES.index(t.dtype), t.ndim, _row(t)]
    forms = [other.tolist() for other in gather(torch.tensor(form, device=device), group)]
    if error is not None:
        raise error
    for number, other in enumerate(forms):
        if other[0]:
            raise _refused(number)
    for number, other in enumerate(forms):
        if other[2:] != forms[0][2:]:
            raise ValueError(
                f"process_group: expected arguments of one dtype and shape of rows on all ranks, got others on rank "
                f"{number} than on rank 0 ({_told(other)} and {_told(forms[0])})"
            )
    counts = [other[1] for other in forms]
    parts = [_bytes(t) for t in tensors if t is not None]
    widths = [part.shape[1] for part in parts]
    own = torch.zeros(max(counts), sum(widths), dtype=torch.uint8, device=device)
    own[: counts[rank]] = torch.cat(parts, 1)
    everyone = torch.cat([part[:n] for part, n in zip(gather(own, group), counts)])
    columns, joined = iter(everyone.split(widths, 1)), []
    for t in tensors:
        if t is None:
            joined.append(None)
            continue
        rows = next(columns).to(t.device).contiguous().view(-1).view(t.dtype).view(sum(counts), *t.shape[1:])
        start = sum(counts[:rank])
        joined.append(_Own.apply(t, rows, start, ranks) if t.requires_grad else rows)
    return joined


def _refused(rank: int) -> RuntimeError:
    return RuntimeError(f"process_group: rank {rank} got arguments that it refused (its own error says why)")


def gather(own: torch.Tensor, group) -> list[torch.Tensor]:
    """Every rank's tensor, in the order of the ranks; all have one shape and dtype."""
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return everyone


def _row(t: torch.Tensor) -> int:
    return t.shape[1:].numel()


def _told(form: list[int]) -> str:
    parts = [form[i : i + 3] for i in range(2, len(form), 3)]
    return ", ".join("none" if d < 0 else f"{_DTYPES[d]} {n}-d, {size} a row" for d, n, size in parts)


def _bytes(t: torch.Tensor) -> torch.Tensor:
    """(N, bytes of a row) uint8 of (N, ...)."""
    return t.detach().reshape(len(t), _row(t)).contiguous().view(torch.uint8)


def collective_device(group, like: torch.Tensor | None = None) -> torch.device:
    """Where tensors must be for the group's collectives."""
    if "nccl" in dist.get_backend(group):
        own = like is not None and like.device.type == "cuda"
        return like.device if own else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def from_first(function: Callable | None, group):
    """What `function()` gives on the group's first rank, on every rank; only that one calls it, others may have None.

    Where it raises there, it raises RuntimeError on the others.
    """
    told, error = [None], None
    if dist.get_rank(group) == 0:
        try:
            told = [(True, function())]
        except BaseException as problem:  # the others must not wait for this rank
            told, error = [(False, f"{type(problem).__name__}: {problem}")], problem
    dist.broadcast_object_list(told, src=dist.get_global_rank(group, 0), group=group)
    if error is not None:
        raise error
    fine, value = told[0]
    if not fine:
        raise RuntimeError(f"the first rank failed: {value}")
    return value


def broadcast(tensors: Sequence[torch.Tensor], group) -> None:
    """The first rank's values into the others' tensors, in place."""
    source = dist.get_global_rank(group, 0)
    for t in tensors:
        part = t.detach().to(collective_device(group, t)).contiguous()
        part = part.view(torch.uint8) if part.dtype == torch.bool else part
        dist.broadcast(part, source, group=group)
        with torch.no_grad():
            t.copy_(part.view(t.dtype))


@contextlib.contextmanager
def launched(device: str):
    """The ranks that `torchrun` has started (see its environment variables) as the default group, for the block.

    Gives whether there are several. A group that is up already is taken, and left up. NCCL and a card a rank for
    "cuda", else gloo.
    """
    if dist.is_available() and dist.is_initialized():
        yield resolve_group("auto") is not None
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ or not dist.is_available():
        yield False
        return
    # DistributedDataParallel imports it, and its functions would hold, as their defaults, the group of that moment.
    importlib.import_module("torch.distributed.nn.functional")
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield True
    finally:
        dist.destroy_process_group()
        # The group's threads end with its last reference; one that frees a tensor while Python ends would abort.
        gc.collect()


def agree(error: Exception | None, group) -> None:
    """Raise this rank's error, and where another rank has one, say so; without a group, the error alone."""
    if group is not None:
        flag = torch.tensor([error is not None], dtype=torch.uint8, device=collective_device(group))
        failed = [number for number, other in enumerate(gather(flag, group)) if other.item()]
        if failed and error is None:
            raise _refused(failed[0])
    if error is not None:
        raise error


def gathered(own: torch.Tensor, group) -> list[torch.Tensor]:
    """`gather` of a tensor of any device, which the results are on; [own] without a group."""
    if group is None:
        return [own]
    return [other.to(own.device) for other in gather(own.to(collective_device(group, own)).contiguous(), group)]


def added_up(own: torch.Tensor, group) -> torch.Tensor:
    """The sum over the ranks, in their order, of tensors of one shape, a piece at a time; `own` without a group."""
    if group is None:
        return own
    total = own.flatten().clone()
    for part in total.split(PIECE):
        part.copy_(sum(gathered(part, group)))
    return total.view(own.shape)
