"""Losses on a softmax over the classes' hash centres: MDSH and SHCIR."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..core import check
from ..core.known_gradient import known_gradient
from ..core.prefixes import split
from . import naive
from .bank import Bank, BankMixin
from .base import quantization_penalty, softplus
from .center import CenterLoss
from .form import Form, Penalty

# Logits lie within +-sqrt(b): to here exp(-2 sqrt(b)) is a normal float32.
MAX_NARROW_BITS = 1800


@torch.no_grad()
def softmax_likelihood(logits, y, negative_weight, wide: bool = True):
    """Sums (m,) of -[y log p + negative_weight (1 - y) log(1 - p)], p = softmax(logits (m, N, C)), and the gradient.

    Finite where p rounds to 0 or 1: only the largest p can come near 1, and for it 1 - p is taken as the sum of
    the other classes' p.
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    top = p.argmax(-1, keepdim=True)
    others_p = p.scatter(-1, top, 0.0)
    if wide:  # logits so far apart that the others' p may vanish in float32
        rest = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    else:
        rest = others_p.sum(-1, keepdim=True).log()
    log_rest = torch.log1p(-others_p).scatter(-1, top, rest)
    absent = negative_weight * (1 - y)
    value = -(y * log_p + absent * log_rest).sum((1, 2))
    slope = absent * (log_p - log_rest).exp() - y
    # For the largest p, slope - p * sum(slope) would cancel; its own part of it is taken from 1 - p instead.
    others = slope.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    p_top, y_top, absent_top = p.gather(-1, top), y.expand_as(p).gather(-1, top), absent.expand_as(p).gather(-1, top)
    own = absent_top * p_top - y_top * rest.exp()
    grad = slope - p * slope.sum(-1, keepdim=True)
    return value, grad.scatter(-1, top, own - p_top * others)


class CenterSoftmaxLoss(CenterLoss):
    """p = softmax over the classes of sqrt(b) cos(u, centre), plus a quantization term."""

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        centers=None,
        *,
        quantization: float = 1e-4,
        reference_bits: float | None = None,
        seed: int = 0,
    ):
        super().__init__(num_classes, code_lengths, centers, seed=seed)
        self.reference_bits = check.optional_positive(reference_bits, "reference_bits")
        if self.num_classes < 2:
            raise ValueError(f"num_classes: {type(self).__name__} needs at least 2 classes, got {num_classes}")
        self.quantization = check.number(quantization, "quantization")

    def plainly(self, formula, u, labels, k):
        """A loss of `naive` at the k-th length."""
        options = {"quantization": self.quantization, "reference_bits": self.reference_bits}
        return formula(u, self.multi_hot(labels, u), self.centers[k].to(u.dtype), **options)

    def likelihood(self, v: torch.Tensor, labels: torch.Tensor, negative_weight: float) -> torch.Tensor:
        """(m,) sums over rows and classes of -[y log p + negative_weight (1 - y) log(1 - p)]."""
        y = self.multi_hot(labels, v)
        return known_gradient(v, *self.pull(v.detach(), y, negative_weight), self._segments)

    @torch.no_grad()
    def pull(self, v, y, negative_weight) -> tuple[torch.Tensor, torch.Tensor]:
        """`likelihood`, and the gradient of its sum in the expanded outputs."""
        # The centres are +-1, of norm sqrt(b): sqrt(b) cos(u, c) is the product of c with the unit vector.
        centers = split(self._centers.to(v.dtype), self.code_lengths)
        inverse = self.inverse_norms(v)
        unit = v * inverse
        logits = torch.stack([u @ c.T for u, c in zip(split(unit, self.code_lengths), centers)])
        reach, scale = self.code_lengths[-1], None
        if self.reference_bits is not None:
            scale = (self.reference_bits / self._bits.to(v.dtype)).sqrt()[:, None, None]
            logits, reach = logits * scale, self.reference_bits
        values, slopes = softmax_likelihood(logits, y, negative_weight, wide=reach > MAX_NARROW_BITS)
        slopes = slopes if scale is None else slopes * scale
        grad = torch.cat([a @ c for a, c in zip(slopes, centers)], dim=1)
        segments = self._segments.to(v.dtype)
        along = ((grad * unit) @ segments) @ segments.T
        return values, inverse * (grad - along * unit)

    def penalty(self, v: torch.Tensor) -> torch.Tensor:
        return self.quantization * self.segment_means(quantization_penalty(v))

    def form(self, negative_weight: float, share: float, one_hot: bool = False) -> Form:
        """That of share * `likelihood` / N + `penalty`."""
        return Form(
            "softmax",
            "likelihood",
            (negative_weight, share),
            Penalty("square", self.quantization),
            reference_bits=self.reference_bits or 0.0,
            centers=self.center_table,
            one_hot=one_hot,
        )


class MDSH(BankMixin, CenterSoftmaxLoss):
    """Momentum deep supervised hashing with hash centres.

    L_k = -mean over N x C of [y log p + (1 - y) log(1 - p)] + quantization * mean (|u| - 1)^2. From epoch
    `pair_from_epoch` on, if `num_train` is given, the momentum-bank pair term is added:
    sum S log(1 + exp((1 - cos(u, U)) / 2)) / sum S, over the written rows U of `bank`.

    Args:
        centers, quantization, seed: as for `CSQ`.
        reference_bits: None for sqrt(b) cos(u, centre); a number puts its square root in the place of sqrt(b), so
            that the softmax is as sharp at every length.
        num_train: number of training items; None leaves the pair term out.
        external_bank: True where the training loop writes `bank` before each step, with the outputs of a momentum
            encoder (decay 0.9; the trainer does so). By default the bank takes in the batch's own detached outputs,
            as those of the other losses do.
        pair_from_epoch: first epoch (counted from 0, see `set_epoch`) with the pair term.

    Source: "MDSH", the momentum variant used in the experiments of arXiv 2412.08922.
    """

    momentum_bank = True

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        centers=None,
        *,
        num_train: int | None = None,
        external_bank: bool = False,
        pair_from_epoch: int = 0,
        quantization: float = 1e-4,
        reference_bits: float | None = None,
        seed: int = 0,
    ):
        super().__init__(
            num_classes,
            code_lengths,
            centers,
            quantization=quantization,
            reference_bits=reference_bits,
            seed=seed,
        )
        self.pair_from_epoch = check.positive_int(pair_from_epoch, "pair_from_epoch", minimum=0)
        self.epoch = 0
        self.external_bank = check.flag(external_bank, "external_bank")
        self.bank = None if num_train is None else Bank(num_train, self.num_classes, self.code_lengths)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch it is (counted from 0)."""
        self.epoch = check.positive_int(epoch, "epoch", minimum=0)

    @property
    def pair_term_active(self) -> bool:
        return self.bank is not None and self.epoch >= self.pair_from_epoch

    def naive(self, u, labels, k):
        value = self.plainly(naive.mdsh, u, labels, k)
        return value + naive.mdsh_pairs(u, *self.stored(u, labels)) if self.pair_term_active else value

    def expanded(self, v, labels):  # keeps digits: p and 1 - p round to 1
        values = self.likelihood(v, labels, 1.0) / (v.shape[0] * self.num_classes) + self.penalty(v)
        return values + self.pair_term(v, labels) if self.pair_term_active else values

    def forms(self):
        likelihood = self.form(1.0, 1 / self.num_classes)
        if not self.pair_term_active:
            return (likelihood,)
        return likelihood, Form("pairs", "attraction", over="similar", bank=self.bank)

    def pair_term(self, v: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(m,) attraction to the momentum outputs of similar items; 0 where there is none yet."""
        similar = self.bank.similarity(labels).to(v.dtype)
        others, sums = self.bank.u.to(v.dtype), []
        for u, b in zip(split(v, self.code_lengths), self.code_lengths):
            cosine = F.normalize(u, dim=1) @ F.normalize(others[:, :b], dim=1).T
            sums.append((similar * softplus((1 - cosine) / 2)).sum())
        return torch.stack(sums) / similar.sum().clamp(min=1)


class SHCIR(CenterSoftmaxLoss):
    """Supervised hashing with centres, a softmax with a term for the wrong classes; single-label only.

    L_k = -mean over rows of [log p_pos + 1 / (C - 1) sum over the other classes of log(1 - p)]
    + quantization * mean (|u| - 1)^2.

    Args:
        centers, quantization, seed: as for `CSQ`.
        reference_bits: as for `MDSH`.

    Raises:
        ValueError: a row of multi-hot labels has not exactly one class.

    Source: the loss "SHCIR" of the experiments of arXiv 2412.08922.
    """

    single_label = True

    def naive(self, u, labels, k):
        return self.plainly(naive.shcir, u, labels, k)

    def expanded(self, v, labels):  # keeps digits, as MDSH's
        return self.likelihood(v, labels, 1 / (self.num_classes - 1)) / v.shape[0] + self.penalty(v)

    def forms(self):
        return (self.form(1 / (self.num_classes - 1), 1.0, one_hot=True),)
