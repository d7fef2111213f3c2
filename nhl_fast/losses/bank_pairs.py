"""Pairwise losses of the batch against the bank of all training items: DSH, DHN and DBDH."""

from __future__ import annotations

import torch

from ..core import check
from ..core.known_gradient import chunk_rows, known_gradient
from ..core.prefixes import expand, split
from . import naive
from .bank import Bank, BankMixin
from .base import NestedLoss, log_cosh, softplus


@torch.no_grad()
def inner_pairs(pair, u, others, written):
    """sum over (i, j) of written_j * f(<u_i, U_j>) and its gradient in u; `pair(theta, tile)` gives f and f'."""
    value, grad = u.new_zeros(()), torch.zeros_like(u)
    step = chunk_rows(u.shape[0], u.device, others.shape[0])
    for start in range(0, others.shape[0], step):
        tile = slice(start, start + step)
        loss, slope = pair(u @ others[tile].T, tile)
        value += (loss @ written[tile]).sum()
        grad.addmm_(slope, others[tile])  # a row never written is zero and adds nothing
    return value, grad


@torch.no_grad()
def distance_pairs(pair, u, others, written):
    """sum over (i, j) of written_j * f(||u_i - U_j||^2, tile) and its gradient in u, likewise."""
    value, grad = u.new_zeros(()), torch.zeros_like(u)
    own, theirs = u.square().sum(1, keepdim=True), others.square().sum(1)
    step = chunk_rows(u.shape[0], u.device, others.shape[0])
    for start in range(0, others.shape[0], step):
        tile = slice(start, start + step)
        distance = torch.addmm(theirs[tile], u, others[tile].T, alpha=-2).add_(own)
        loss, slope = pair(distance, tile)
        value += (loss @ written[tile]).sum()
        grad.addmm_(slope, others[tile], alpha=-2)
        grad += 2 * (slope @ written[tile])[:, None] * u
    return value, grad


class BankPairLoss(BankMixin, NestedLoss):
    """Mean over the pairs (batch row, written bank row) of a pair loss, plus a penalty on the outputs."""

    def __init__(
        self, num_classes, code_lengths=check.DEFAULT_CODE_LENGTHS, *, num_train: int, balance: bool = False
    ):
        super().__init__(num_classes, code_lengths)
        self.bank = Bank(num_train, self.num_classes, self.code_lengths)
        self.balance = check.flag(balance, "balance")

    def expanded(self, v, labels):  # saves memory: no matrix of pairs with the bank is kept for backward
        others, written, count = self.bank_terms(v.dtype)
        similar = self.bank.similarity(labels)
        shares = self.pair_weights(similar, written) if self.balance else None
        pairs = self.pair_sums(v, others, similar, written, shares) / (v.shape[0] * count)
        return pairs + self.penalty(v)

    def pair_weights(self, similar, written) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of similar and of dissimilar pairs by which both kinds weigh half; 1 where one kind is missing."""
        number = (written != 0).sum() * similar.shape[0]
        positives = (similar & (written != 0)).sum()
        negatives = number - positives
        both = (positives > 0) & (negatives > 0)
        shares = (number.to(written.dtype) / (2 * n.clamp(min=1)) for n in (positives, negatives))
        return tuple(torch.where(both, share, 1.0) for share in shares)

    def pair_sums(self, v, others, similar, written, shares) -> torch.Tensor:
        """(m,) sums of the pair loss over all pairs with a written bank row; `shares` are `pair_weights` or None."""
        raise NotImplementedError

    def penalty(self, v) -> torch.Tensor:
        """(m,) penalties on the outputs."""
        raise NotImplementedError

    def attach(self, v, known) -> torch.Tensor:
        """(m,) values of (value, gradient) pairs, one a length, as a function of `v`."""
        values, grads = zip(*known)
        return known_gradient(v, torch.stack(values), torch.cat(grads, dim=1), self._segments)


class DSH(BankPairLoss):
    """Deep supervised hashing: a contrastive loss on squared distances, against the bank.

    With d = ||u_i - U_j||^2: L_k = mean [S d / 2 + (1 - S) max(margin * b - d, 0) / 2] + alpha * mean | |u| - 1 |.

    Args:
        num_train: number of training items (rows of the bank).
        margin: margin for dissimilar pairs, in units of the code length.
        alpha: weight of the penalty.
        balance: weigh similar and dissimilar pairs so that each kind is half of the mean (as in HashNet, Cao et al.,
            ICCV 2017). Without it the many dissimilar pairs of a data set with few classes' worth of positives push
            all outputs away from the bank's mean, which lags behind, and training may collapse.

    Source: Liu et al., "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        num_train: int,
        margin: float = 2.0,
        alpha: float = 0.1,
        balance: bool = False,
    ):
        super().__init__(num_classes, code_lengths, num_train=num_train, balance=balance)
        self.margin, self.alpha = check.number(margin, "margin"), check.number(alpha, "alpha")

    def naive(self, u, labels, k):
        options = {"margin": self.margin, "alpha": self.alpha, "balance": self.balance}
        return naive.dsh(u, *self.stored(u, labels), **options)

    def pair_sums(self, v, others, similar, written, shares):
        known = []
        for u, b in zip(split(v.detach(), self.code_lengths), self.code_lengths):

            def pair(distance, tile, threshold=self.margin * b):
                near = similar[:, tile]
                short = (threshold - distance).clamp_(min=0)
                slope = torch.where(near, 1.0, -(short > 0).to(distance.dtype))
                loss = torch.where(near, distance, short)
                if shares is None:
                    return loss, slope
                weights = torch.where(near, *shares)
                return loss * weights, slope * weights

            known.append(distance_pairs(pair, u, others[:, :b], written))
        return self.attach(v, known) / 2

    def penalty(self, v):
        return self.alpha * self.segment_means((v.abs() - 1).abs())


class DHN(BankPairLoss):
    """Deep hashing network: the likelihood of pairwise similarities, against the bank.

    With theta = u_i U_j / 2: L_k = mean [softplus(theta) - S theta] + alpha * mean log cosh(|u| - 1).

    Args:
        num_train: number of training items (rows of the bank).
        alpha: weight of the penalty.
        reference_bits: None for inner products as published; a number multiplies those of length b_k by
            reference_bits / b_k, see `LCDSH`.
        balance: as for `DSH`.

    Source: Zhu et al., "Deep Hashing Network for Efficient Similarity Retrieval", AAAI 2016.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        num_train: int,
        alpha: float = 0.1,
        reference_bits: float | None = None,
        balance: bool = False,
    ):
        super().__init__(num_classes, code_lengths, num_train=num_train, balance=balance)
        self.alpha = check.number(alpha, "alpha")
        self.reference_bits = check.optional_positive(reference_bits, "reference_bits")

    def naive(self, u, labels, k):
        options = {"alpha": self.alpha, "reference_bits": self.reference_bits, "balance": self.balance}
        return naive.dhn(u, *self.stored(u, labels), **options)

    def pair_sums(self, v, others, similar, written, shares):
        def pair(theta, tile):
            loss, slope = softplus(theta), theta.sigmoid()
            if shares is None:
                return loss, slope
            weights = torch.where(similar[:, tile], *shares)
            return loss * weights, slope * weights

        # Scaled twice by the square root, once for the outputs and once for the bank's, which stays as it is.
        half = 0.5 * self.as_bits(self.as_bits(v, self.reference_bits), self.reference_bits)
        known = [
            inner_pairs(pair, u, others[:, :b], written)
            for u, b in zip(split(half.detach(), self.code_lengths), self.code_lengths)
        ]
        # sum_ij S_ij theta_ij for all lengths: the similar rows' outputs are summed first, once.
        attraction = expand(similar.to(v.dtype) @ others, self.code_lengths)
        attracted = self.segment_sums((half * attraction).sum(0))
        return self.attach(half, known) - (attracted if shares is None else shares[0] * attracted)

    def penalty(self, v):
        return self.alpha * self.segment_means(log_cosh(v.abs() - 1))


class DBDH(DHN):
    """Deep balanced discrete hashing: DHN's likelihood on clamped outputs, with a balance term.

    Outputs and bank are clamped to [-1, 1]: L_k = mean [softplus(theta) - S theta]
    + alpha * mean over rows of (mean over bits of u)^2.

    Args:
        num_train: number of training items (rows of the bank).
        alpha: weight of the balance term.
        clamp: False leaves the outputs as they are, so that those beyond +-1 keep their gradient.
        reference_bits, balance: as for `DHN`.

    Source: Zheng et al., "Deep balanced discrete hashing for image retrieval", Neurocomputing 2020.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        num_train: int,
        alpha: float = 0.1,
        clamp: bool = True,
        reference_bits: float | None = None,
        balance: bool = False,
    ):
        super().__init__(
            num_classes,
            code_lengths,
            num_train=num_train,
            alpha=alpha,
            reference_bits=reference_bits,
            balance=balance,
        )
        self.clamp = check.flag(clamp, "clamp")

    def naive(self, u, labels, k):
        options = {"alpha": self.alpha, "reference_bits": self.reference_bits, "balance": self.balance}
        return naive.dbdh(u, *self.stored(u, labels), clamp=self.clamp, **options)

    def expanded(self, v, labels):
        return super().expanded(v.clamp(-1, 1) if self.clamp else v, labels)

    def pair_sums(self, v, others, similar, written, shares):
        return super().pair_sums(v, others.clamp(-1, 1) if self.clamp else others, similar, written, shares)

    def penalty(self, v):
        row_means = self.segment_sums(v) / self._bits.to(v.dtype)
        return self.alpha * row_means.square().mean(0)
