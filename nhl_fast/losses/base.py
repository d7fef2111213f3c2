"""What all nested losses share: one value a length, from outputs whose prefixes are the codes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..core import check
from ..core.labels import as_labels, check_labels, to_multi_hot
from ..core.operation import Operation
from ..core.precision import no_autocast
from ..core.prefixes import expand, segment_matrix, split
from . import weighted
from .bank import Bank
from .form import Form


class NestedLoss(nn.Module):
    """A loss with one value a code length.

    Subclasses define `naive(u, labels, k)`, one length's value, plainly. That is enough to train; where it takes too
    much memory or loses digits, they override `expanded`, which gives all lengths' values. `forms()` says what the
    compiled steps must know to serve them. See docs/add-a-loss.md.

    Args:
        num_classes: number of classes C.
        code_lengths: the m code lengths in bits, strictly increasing, or one as an integer.
    """

    momentum_bank = False  # True: its bank is meant for the outputs of a momentum encoder, where there is one
    single_label = False  # True: rows of labels with one class each, as ids or one-hot

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "forms" not in vars(cls):  # a subclass may change any part of what its parent's forms describe
            cls.forms = NestedLoss.forms

    def forms(self) -> tuple[Form, ...]:
        """The forms whose sum the loss is; (): no compiled step serves it. They are not inherited."""
        return ()

    @check.memory
    def __init__(self, num_classes: int, code_lengths=check.DEFAULT_CODE_LENGTHS):
        super().__init__()
        self.num_classes = check.positive_int(num_classes, "num_classes")
        self.code_lengths = check.code_lengths(code_lengths)
        self._label_options, self._given_class_weights = None, None
        for name, value in self._constants().items():
            self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def _constants(self) -> dict[str, torch.Tensor]:
        """The buffers that no state dict holds, on the CPU: they follow from the code lengths."""
        with torch.device("cpu"):
            found = {"_segments": segment_matrix(self.code_lengths), "_bits": torch.tensor(self.code_lengths)}
        given = self._given_class_weights
        return found if given is None else {**found, "_class_weights": given}

    def reset_parameters(self) -> None:
        """Set the loss's own persistent buffers as at the beginning (after `to_empty`, say); here there are none."""

    def _apply(self, fn, recurse=True):
        was_meta = any(buffer.is_meta for buffer in self.buffers())
        super()._apply(fn, recurse)
        # `to_empty` leaves memory as it finds it.
        for name, value in self._constants().items():
            old = getattr(self, name)
            # Half precision would lose digits of class weights.
            setattr(self, name, value.to(old.device, old.dtype if old.itemsize >= 4 else value.dtype))
        if was_meta and not any(buffer.is_meta for buffer in self.buffers()):
            for module in self.modules():
                if isinstance(module, (NestedLoss, Bank)):
                    module.reset_parameters()
        return self

    def label_options(self, *, ignore_index: int | None = None, class_weights=None, soft: bool = False):
        """Say how labels count, for all calls to come; the loss itself comes back.

        Every mean over rows becomes a mean by their weights, of the penalties, too; one over pairs weighs a pair with
        the product of its rows' weights, one over triplets with that of all three. docs/labels.md has the formulas.

        Args:
            ignore_index: the id of rows that do not count (as in `torch.nn.CrossEntropyLoss`), and the number that
                their rows of labels hold alone; a bank takes them for rows never written.
            class_weights: (C,) numbers of at least 0. A row has its class's, one of several classes their mean.
            soft: labels are rows (N, C) of weights between 0 and 1. A pair's similarity is the cosine of its rows; a
                bit's centre is the mean of the classes' centres by their weights; in a softmax they are y.

        Raises:
            ValueError: the loss has no forms, or takes no classes.
        """
        if why := weighted.refuses(self.forms(), type(self).__name__):
            raise ValueError(f"label_options: {why}")
        options, given = weighted.check_options(self.num_classes, ignore_index, class_weights, soft)
        self._label_options = options if any(x not in (None, False) for x in options) else None
        self._given_class_weights = given
        given = None if given is None else given.to(self._bits.device)
        self.register_buffer("_class_weights", given, persistent=False)
        if isinstance(bank := getattr(self, "bank", None), Bank):
            bank.take_weights(soft)
        return self

    @check.memory
    def forward(
        self,
        u: torch.Tensor,
        labels: torch.Tensor,
        index: torch.Tensor | None = None,
        *settings,
        backend: str = "auto",
    ) -> torch.Tensor:
        """Loss of every code length.

        Args:
            u: raw outputs (N, L), floating point, or the tuple of prefixes that the layer gives; half precision is
                computed in float32.
            labels: class ids (N,) or multi-hot rows (N, C); lists, arrays, a column and whole floats pass for ids.
            index: (N,) positions of the rows in the training set; losses with a bank need it in training steps (in
                training mode, while gradients are recorded), which alone change the bank.
            settings: refused; what other code bases hand over here is given when the loss is made.
            backend: "auto", "reference", "triton" (the fused kernels; "auto" takes them for CUDA tensors) or "cpp"
                ("auto" takes it for CPU tensors); the last two can be differentiated once.

        Returns:
            (m,) values, one a length.
        """
        if settings:
            raise _settings(f"{len(settings)} more arguments, {check.describe(settings[0])} first")
        u, labels, index = self.arguments(u, labels, index)
        return LOSS(self, u, labels, index, backend=backend, device=u.device)

    def arguments(self, u, labels, index):
        """What a loop hands over, as tensors: u whole, labels in their usual form, the index beside u."""
        if isinstance(u, (tuple, list)) and u and isinstance(u[-1], torch.Tensor):
            widths = tuple(p.shape[-1] if isinstance(p, torch.Tensor) and p.ndim else None for p in u)
            if widths != self.code_lengths:
                raise ValueError(
                    f"u: expected (N, L) outputs, or the layer's prefixes of {self.code_lengths} columns, "
                    f"got {widths}"
                )
            u = u[-1]
        check.tensor(u, "u")
        if isinstance(index, dict) or hasattr(index, "__dataclass_fields__"):
            raise _settings(check.describe(index))
        return u, self.usual_labels(labels, u), beside(index, u)

    def usual_labels(self, labels, like: torch.Tensor):
        """Labels as loops give them, in the form that `check_labels` takes."""
        return as_labels(labels, like, self.num_classes)

    def prepare(self, u, labels, index) -> tuple[torch.Tensor, torch.Tensor]:
        """Checked outputs (float32 or float64) and labels; the bank, if there is one, takes them in."""
        self.check_outputs(u)
        labels = self.check_labels(labels, u.shape[0])
        if labels.device != u.device:
            raise ValueError(f"labels: expected them on {u.device} like u, got {labels.device}")
        u = u if u.dtype == torch.float64 else u.float()
        options = self._label_options
        if options is not None:
            weights = self._class_weights if options.weighted else None
            labels = weighted.label_rows(labels, self.num_classes, options, weights, u.dtype)
        return u, labels

    def check_outputs(self, u) -> None:
        """Raise unless `u` is (N, L), floating point, with at least one row."""
        check.tensor(u, "u", ndim=2, floating=True)
        if u.shape[1] != self.code_lengths[-1]:
            raise ValueError(f"u: expected {self.code_lengths[-1]} columns, got {check.describe(u)}")
        if u.shape[0] == 0:
            raise ValueError(f"u: expected at least one row, got {check.describe(u)}")

    def check_labels(self, labels, num_rows: int) -> torch.Tensor:
        """Labels as ids or multi-hot rows, or a clear error; subclasses may narrow it."""
        options, ignored = self._label_options, None
        if options is None:
            labels = check_labels(labels, num_rows, self.num_classes)
        else:
            labels = weighted.check_options_labels(labels, num_rows, self.num_classes, options)
        if labels.ndim == 1 or not self.single_label or (options is not None and options.soft):
            return labels
        if options is not None:
            ignored = weighted.ignored_rows(labels, options.ignore_index)
        alone = labels.long().sum(1) == 1
        ok = (alone if ignored is None else alone | ignored).all()
        name = type(self).__name__
        check.values(ok, f"labels: {name} is defined for single-label data, got a row without exactly one class")
        ids = labels.long().argmax(1)
        return ids if ignored is None else ids.masked_fill(ignored, options.ignore_index)

    @property
    def counts_labels(self) -> bool:
        """Whether `label_options` say how labels count."""
        return self._label_options is not None

    def takes_rows(self) -> bool:
        """Whether this call is a training step, whose rows a bank takes in; here there is none."""
        return False

    @property
    def segments(self) -> torch.Tensor:
        """(sum of the lengths, m) of 0 and 1: which columns of expanded outputs are each length's."""
        return self._segments

    def evaluated(self, v: torch.Tensor, labels) -> torch.Tensor:
        """`expanded`, or where `label_options` say how labels count, what the forms say of them."""
        if isinstance(labels, weighted.LabelRows):
            return weighted.expanded(self.forms(), v, labels, self.code_lengths)
        return self.expanded(v, labels)

    def expanded(self, v: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The m values for expanded outputs `v` (N, sum of the lengths), see `nhl_fast.core.prefixes`."""
        return torch.stack([self._value(u, labels, k) for k, u in enumerate(split(v, self.code_lengths))])

    def _value(self, u: torch.Tensor, labels, k: int) -> torch.Tensor:
        """What `naive` gives of a length; TypeError or ValueError where that is no value."""
        value = self.naive(u, labels, k)
        if not isinstance(value, torch.Tensor) or value.ndim:
            kind = ValueError if isinstance(value, torch.Tensor) else TypeError
            raise kind(
                f"{type(self).__name__}.naive: expected a tensor without dimensions for {self.code_lengths[k]} bits, "
                f"a mean or a sum, got {check.describe(value)}"
            )
        return value

    def naive(self, u: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
        """The 0-d value of the k-th length (from 0) for its outputs `u` (N, b_k), as published; by autograd alone."""
        raise NotImplementedError(f"{type(self).__name__} defines neither naive nor expanded")

    def segment_sums(self, columns: torch.Tensor) -> torch.Tensor:
        """(..., sum of the lengths) -> (..., m): sums over the columns of each length."""
        return columns @ self._segments.to(columns.dtype)

    def segment_means(self, v: torch.Tensor) -> torch.Tensor:
        """(N, sum of the lengths) -> (m,): means over the rows and the columns of each length."""
        return self.segment_sums(v.mean(0)) / self._bits.to(v.dtype)

    def unit_rows(self, v: torch.Tensor) -> torch.Tensor:
        """Every length's rows at norm 1 (expanded, like v); a zero row stays zero, with no gradient."""
        return v * self.inverse_norms(v)

    def inverse_norms(self, v: torch.Tensor) -> torch.Tensor:
        """1 / norm of every length's rows, repeated over its columns (expanded, like v); 0 for a zero row."""
        segments = self._segments.to(v.dtype)
        squares = v.square() @ segments
        return torch.where(squares > 1e-24, squares, torch.inf).rsqrt() @ segments.T

    def as_bits(self, v: torch.Tensor, reference_bits: float | None) -> torch.Tensor:
        """Expanded outputs, scaled so that a length's inner products are those of `reference_bits` bits."""
        if reference_bits is None:
            return v
        return v * ((reference_bits / self._bits.to(v.dtype)).sqrt() @ self._segments.to(v.dtype).T)

    def multi_hot(self, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Labels as multi-hot rows (N, C) in the dtype of `like`."""
        return to_multi_hot(labels, self.num_classes, like.dtype)

    def __prepare_scriptable__(self):
        check.refuse_script(self)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, code_lengths={self.code_lengths}"


def _settings(got: str) -> TypeError:
    return TypeError(
        f"index: expected each row's position in the training set, and nothing after it, got {got}: call "
        "loss(u, labels, index); settings are given when the loss is made"
    )


def beside(index, like: torch.Tensor):
    """An index on the device of `like`: loaders leave it on the CPU; lists and arrays of integers as tensors."""
    if isinstance(index, (list, np.ndarray)):
        try:
            numbers = np.asarray(index)
        except (TypeError, ValueError, OverflowError):  # rows of several lengths
            return index
        if numbers.dtype.kind in "iu":
            with torch.device("cpu"):
                index = torch.as_tensor(numbers.astype(np.int64))
    if not isinstance(index, torch.Tensor) or index.device == like.device:
        return index
    return (index if like.is_meta else check.present(index, "index")).to(like.device)


def _values(loss: NestedLoss, u: torch.Tensor, labels, index) -> torch.Tensor:
    u, labels = loss.prepare(u, labels, index)
    with no_autocast(u):
        return loss.evaluated(expand(u, loss.code_lengths), labels)


LOSS = Operation("NestedLoss", _values, called=lambda loss, *_: type(loss).__name__)


def quantization_penalty(values: torch.Tensor) -> torch.Tensor:
    """(|x| - 1)^2, elementwise: how far outputs are from +-1."""
    return (values.abs() - 1).square()


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp x), in float64, too: PyTorch's default takes x for it beyond 20, which is 2e-9 off."""
    return torch.nn.functional.softplus(x, threshold=40)


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """log cosh x without overflow."""
    magnitude = x.abs()
    return magnitude + softplus(-2 * magnitude) - 0.6931471805599453


def bit_signs(u: torch.Tensor) -> torch.Tensor:
    """+-1 by the bit rule (+1 where u > 0): a zero output is the bit 0, not a third symbol."""
    return (u > 0).to(u.dtype) * 2 - 1
