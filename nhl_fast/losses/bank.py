"""The bank: the last outputs of every training item. Nesting makes one bank serve every length."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import nn

from ..core import check, ranks
from ..core.labels import check_form, check_labels, similarity, to_multi_hot


class Bank(nn.Module):
    """Last outputs (num_train, L) and labels of every training item, with a mark for rows never written.

    Its tensors are in the state dict, but are no buffers: DistributedDataParallel would copy rank 0's to all ranks
    before every step. With more than one rank `update` refuses, but where the rows are those of all ranks, as
    `NestedObjective` joins them. They stay float32 (or float64) where a module around them becomes half precision.

    Labels take the form of the first update, ids or multi-hot rows; when the two are mixed, ids become one-hot
    rows. Duplicate rows in one update: which of them stays is not defined on a GPU.
    """

    @check.memory
    def __init__(self, num_train: int, num_classes: int, code_lengths: tuple[int, ...]):
        super().__init__()
        self.num_train = check.positive_int(num_train, "num_train")
        self.num_classes = check.positive_int(num_classes, "num_classes")
        code_lengths = check.code_lengths(code_lengths)
        self.u = torch.zeros(num_train, code_lengths[-1])
        self.labels = torch.zeros(num_train, dtype=torch.int64)
        self.written = torch.zeros(num_train, dtype=torch.bool)
        self.soft = False  # whether labels are rows of weights
        self.joined = False  # whether rows come from all ranks at once

    @torch.no_grad()
    def update(self, index: torch.Tensor, u: torch.Tensor, labels: torch.Tensor, counted=None) -> None:
        """Store outputs `u` (N, L) and `labels` (ids (N,) or multi-hot (N, C)) in rows `index` (N,).

        counted (N,) bool: rows that are not are marked as never written.
        """
        check.tensor(u, "u", ndim=2, floating=True)
        if self.soft:
            check_form(labels, u.shape[0], self.num_classes)
        else:
            labels = check_labels(labels, u.shape[0], self.num_classes)
        self.check_index(index, u.shape[0])
        index = check.present(index, "index").to(self.u.device)
        if u.shape[1] != self.u.shape[1]:
            raise ValueError(f"u: expected {self.u.shape[1]} columns, got {check.describe(u)}")
        if self.u.dtype != u.dtype and u.dtype == torch.float64:
            self.u = self.u.double()
        if labels.ndim == 2 and self.labels.ndim == 1:
            self.labels = to_multi_hot(self.labels, self.num_classes, torch.bool)
        if self.labels.ndim == 2:
            labels = to_multi_hot(labels, self.num_classes, self.labels.dtype)
        refuse_ranks(self)
        self.u[index] = u.detach().to(self.u.dtype)
        self.labels[index] = labels
        if counted is not None:
            self.written.index_copy_(0, index.long(), counted)
        else:
            self.written.index_fill_(0, index.long(), True)  # an indexed assignment would copy True to the device

    def take_weights(self, soft: bool) -> None:
        """Hold rows of weights as labels (`soft`), or ids and multi-hot rows again; what was written stays."""
        if soft and not self.soft:
            self.labels = to_multi_hot(self.labels, self.num_classes, torch.float32)
        elif self.soft and not soft:
            raise ValueError("soft: the bank holds rows of weights; make the loss anew")
        self.soft = soft

    def check_index(self, index, num_rows: int, values: bool = True) -> None:
        """Raise unless `index` holds `num_rows` valid row numbers (without `values`: any integers)."""
        check.tensor(index, "index", ndim=1)
        if index.dtype not in (torch.int64, torch.int32) or index.shape[0] != num_rows:
            raise ValueError(f"index: expected {num_rows} integers, got {check.describe(index)}")
        if values and num_rows:
            check.values(
                (index.min() >= 0) & (index.max() < self.num_train),
                f"index: expected rows from 0 to {self.num_train - 1} (num_train - 1), got one out of range",
            )

    def similarity(self, labels: torch.Tensor) -> torch.Tensor:
        """S (N, num_train), bool; rows never written are similar to nothing."""
        return similarity(labels, self.labels) & self.written

    def reset_parameters(self) -> None:
        """An empty bank, as at the beginning (after `to_empty`, say)."""
        for tensor in self.tensors().values():
            tensor.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the bank holds: u, labels, written."""
        return {"u": self.u, "labels": self.labels, "written": self.written}

    @torch.no_grad()
    def share(self, group) -> None:
        """The bank of the group's first rank, on all of its ranks."""
        multi_hot = torch.tensor([self.labels.ndim == 2, self.u.dtype == torch.float64], dtype=torch.uint8)
        ranks.broadcast([multi_hot], group)
        if multi_hot[0] and self.labels.ndim == 1:
            self.labels = to_multi_hot(self.labels, self.num_classes, torch.bool)
        elif not multi_hot[0] and self.labels.ndim == 2:
            self.labels = torch.zeros_like(self.written, dtype=torch.int64)
        self.u = self.u.double() if multi_hot[1] else self.u.float()
        ranks.broadcast(list(self.tensors().values()), group)

    def _apply(self, fn, recurse=True):
        for name, old in self.tensors().items():
            new = fn(old)
            half = new.is_floating_point() and new.itemsize < 4
            setattr(self, name, old.to(new.device) if half else new)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor.detach() for name, tensor in self.tensors().items()})

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        given = {name: state_dict[prefix + name] for name in self.tensors() if prefix + name in state_dict}
        rest = {k: v for k, v in state_dict.items() if k not in {prefix + name for name in given}}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing, unexpected, errors)
        missing += [prefix + name for name in self.tensors() if name not in given and strict]
        if self._set_aside(given, prefix):
            return
        labels, outputs = given.get("labels"), given.get("u")
        if labels is not None and labels.ndim == 2 and labels.is_floating_point() != self.soft:
            errors.append(f"{prefix}labels: rows of weights (`label_options`) and label sets are not each other")
            return
        if labels is not None and labels.ndim == 1 and self.soft:
            given["labels"] = labels = to_multi_hot(labels, self.num_classes, self.labels.dtype)
        if labels is not None and labels.ndim != self.labels.ndim:
            self.labels = torch.zeros_like(labels, device=self.labels.device)
        if outputs is not None and outputs.dtype == torch.float64:
            self.u = self.u.double()
        for name, value in given.items():
            own = getattr(self, name)
            if value.shape != own.shape:
                errors.append(
                    f"size mismatch for {prefix}{name}: copying a param with shape {value.shape} from checkpoint, "
                    f"the shape in current model is {own.shape}."
                )
            elif local_metadata.get("assign_to_params_buffers", False):
                setattr(self, name, value)
            else:
                with torch.no_grad():
                    own.copy_(value)

    def _set_aside(self, given: dict[str, torch.Tensor], prefix: str) -> bool:
        """Whether a checkpoint's bank is of another training set: it is left out, and this one starts empty."""
        outputs = given.get("u")
        if outputs is None or outputs.ndim != 2 or outputs.shape[1] != self.u.shape[1]:
            return False
        if len(outputs) == self.num_train or any(len(value) != len(outputs) for value in given.values()):
            return False
        warnings.warn(
            f"{prefix}u: the checkpoint's bank is of {len(outputs)} training items, this one of {self.num_train}: it "
            "is left out, and the bank starts empty",
            stacklevel=2,
        )
        self.reset_parameters()
        return True

    def extra_repr(self) -> str:
        return f"num_train={self.num_train}, longest={self.u.shape[1]}"


def refuse_ranks(bank: Bank) -> None:
    """Raise where a process group of more than one rank is up, and the bank's rows come from this rank alone."""
    group = None if bank.joined else ranks.resolve_group("auto")
    if group is not None:
        raise RuntimeError(
            f"bank: a process group of {torch.distributed.get_world_size(group)} ranks is up: each rank would write "
            "its own rows; train losses with a bank in one process, or through NestedObjective with "
            'process_group="auto", which joins the ranks\' rows'
        )


def banks(module: nn.Module) -> list[Bank]:
    """The banks in a module."""
    return [part for part in module.modules() if isinstance(part, Bank)]


@contextlib.contextmanager
def joined_rows(module: nn.Module):
    """Context in which the rows that the module's banks take in are those of all ranks."""
    inside = banks(module)
    for bank in inside:
        bank.joined = True
    try:
        yield
    finally:
        for bank in inside:
            bank.joined = False


class BankMixin:
    """For losses that compare a batch with the bank: updates it in training steps, before the loss reads it.

    A training step is a call in training mode while gradients are recorded: rows that are evaluated under
    `torch.no_grad()` change nothing, whether or not `eval()` was called.
    """

    external_bank = False  # True: the training loop writes the bank itself, before each step

    def prepare(self, u, labels, index):
        u, labels = super().prepare(u, labels, index)
        if self.takes_rows():
            if index is None:
                raise ValueError(
                    f"index: {type(self).__name__} keeps a bank of all training items and needs each row's position "
                    "in the training set while training (pass index; eval() or torch.no_grad() only reads the bank)"
                )
            if isinstance(labels, torch.Tensor):
                self.bank.update(index, u, labels)
            else:  # with options
                self.bank.update(index, u, labels.labels, labels.counted)
        return u, labels

    def takes_rows(self) -> bool:
        """Whether this call is a training step, whose rows the bank takes in."""
        return self.training and torch.is_grad_enabled() and self.bank is not None and not self.external_bank

    def stored(self, u: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First columns (M, b) of the bank's written rows, like those of u (N, b), and S (N, M)."""
        written = self.bank.written
        return self.bank.u[written, : u.shape[1]].to(u.dtype), similarity(labels, self.bank.labels[written])

    def bank_terms(self, u_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bank outputs (M, L), mask of written rows (M,) and their number (at least 1), in the given dtype."""
        written = self.bank.written.to(u_dtype)
        return self.bank.u.to(u_dtype), written, written.sum().clamp(min=1)
