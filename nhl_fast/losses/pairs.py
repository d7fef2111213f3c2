"""Pairwise losses: DSH, DHN and DBDH against the bank of all training items, LCDSH and DCH within the batch."""

from __future__ import annotations

import math

import torch

from ..core import check
from ..core.known_gradient import chunk_rows, known_gradient
from ..core.labels import similarity
from ..core.prefixes import expand, split
from . import naive
from .bank import Bank, BankMixin
from .base import NestedLoss, bit_signs, log_cosh, softplus
from .form import Form, Penalty


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

    @property
    def weighing(self) -> str:
        """How a form weighs the pairs."""
        return "halves" if self.balance else "no"

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

    def forms(self):
        penalty = Penalty("absolute", self.alpha)
        return (Form("pairs", "contrastive", (self.margin,), penalty, weigh=self.weighing, bank=self.bank),)


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

    def forms(self):
        return (self.form(Penalty("log_cosh", self.alpha)),)

    def form(self, penalty: Penalty, clamp: float = math.inf) -> Form:
        """That of the likelihood of the pairs with a penalty."""
        bits = self.reference_bits or 0.0
        return Form("pairs", "likelihood", (), penalty, bits, clamp, weigh=self.weighing, bank=self.bank)


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

    def forms(self):
        return (self.form(Penalty("balance", self.alpha), clamp=1.0 if self.clamp else math.inf),)


class LCDSH(NestedLoss):
    """Locality-constrained deep supervised hashing.

    With theta = clamp(u_i u_j / 2, -50, 50) and s = +-1: L_k = mean log(1 + exp(-s theta))
    + eta * mean (sigmoid(theta) - sigmoid(sign u_i . sign u_j / 2))^2.

    Args:
        eta: weight of the second term.
        clamp: False leaves theta as it is, so that the worst pairs keep their gradient.
        reference_bits: None for inner products as published, whose range grows with the length; a number multiplies
            those of length b_k (theta, and that of the signs) by reference_bits / b_k. Nested outputs cannot suit
            their size to each length: without it the first bits saturate the longer lengths' theta.

    Source: Zhu and Gao, "Locality Constrained Deep Supervised Hashing for Image Retrieval", IJCAI 2017.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        eta: float = 3.0,
        clamp: bool = True,
        reference_bits: float | None = None,
    ):
        super().__init__(num_classes, code_lengths)
        self.reference_bits = check.optional_positive(reference_bits, "reference_bits")
        self.eta, self.clamp = check.number(eta, "eta"), check.flag(clamp, "clamp")

    def naive(self, u, labels, k):
        options = {"eta": self.eta, "clamp": self.clamp, "reference_bits": self.reference_bits}
        return naive.lcdsh(u, similarity(labels, labels), **options)

    def expanded(self, v, labels):  # saves memory: no N x N matrix is kept for backward
        signs = 2 * similarity(labels, labels).to(v.dtype) - 1
        signs_of = split(self.as_bits(bit_signs(v.detach()), self.reference_bits), self.code_lengths)
        v = self.as_bits(v, self.reference_bits)
        known = self.pairs(split(v.detach(), self.code_lengths), signs_of, signs)
        return known_gradient(v, *known, self._segments)

    @torch.no_grad()
    def pairs(self, parts, codes, signs) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (m,), and the gradient of their sum in the expanded outputs."""
        theta = torch.stack([0.5 * u @ u.T for u in parts])
        coded = torch.stack([0.5 * s @ s.T for s in codes])
        free = (theta.abs() <= 50) if self.clamp else None
        theta = theta.clamp(-50, 50) if self.clamp else theta
        margin = -signs * theta
        probability = theta.sigmoid()
        gap = probability - coded.sigmoid()
        values = (softplus(margin) + self.eta * gap.square()).mean((1, 2))
        slope = 2 * self.eta * gap * probability * (1 - probability) - signs * margin.sigmoid()
        slope = (slope if free is None else slope * free) / theta[0].numel()
        # theta is symmetric, and so is its slope: dL/du_i = sum_j (slope_ij + slope_ji) u_j / 2.
        return values, torch.cat([a @ u for a, u in zip(slope, parts)], dim=1)

    def forms(self):
        constants = (self.eta, 50.0 if self.clamp else math.inf)
        return (Form("pairs", "locality", constants, reference_bits=self.reference_bits or 0.0),)


class DCH(NestedLoss):
    """Deep Cauchy hashing: a Cauchy likelihood of a relaxed Hamming distance.

    With d = (b / 2)(1 - min(cos, 0.99)): L_k = mean w [S log(d / gamma) + log(1 + gamma / d)]
    + quantization * mean log(1 + d(|u|, 1) / gamma). w weighs similar and dissimilar pairs by how rare they are
    (1 where one kind is missing); the diagonal is included.

    Args:
        gamma: scale of the Cauchy distribution, in bits.
        quantization: weight of the second term.
        max_cosine: the cap on the cosine, which keeps d away from 0 and kills the gradient of pairs beyond it;
            None lifts it (d is then at least 1e-6 bits).
        reference_bits: None for distances as published, whose range grows with the length while gamma stays; with a
            number b in d is that number at every length, so that one gamma suits all. Only the reference serves it.

    Source: Cao et al., "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR 2018.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        gamma: float = 20.0,
        quantization: float = 0.1,
        max_cosine: float | None = 0.99,
        reference_bits: float | None = None,
    ):
        super().__init__(num_classes, code_lengths)
        self.reference_bits = check.optional_positive(reference_bits, "reference_bits")
        self.gamma = check.number(gamma, "gamma", positive=True)
        self.quantization = check.number(quantization, "quantization")
        if max_cosine is not None and not 0 < check.number(max_cosine, "max_cosine") < 1:
            raise ValueError(f"max_cosine: expected a number between 0 and 1, or None, got {max_cosine}")
        self.max_cosine = max_cosine

    def naive(self, u, labels, k):
        options = {"gamma": self.gamma, "quantization": self.quantization, "max_cosine": self.max_cosine}
        return naive.dch(u, similarity(labels, labels), reference_bits=self.reference_bits, **options)

    def expanded(self, v, labels):  # keeps digits: the logarithms of a similar pair that is close cancel
        similar = similarity(labels, labels)
        number, positives = similar.numel(), similar.sum().to(v.dtype)  # a quotient of integers is float32
        negatives = number - positives
        one_sided = (positives == 0) | (negatives == 0)
        weights = torch.where(similar, number / positives.clamp(min=1), number / negatives.clamp(min=1))
        weights = torch.where(one_sided, torch.ones_like(weights), weights)
        unit = self.unit_rows(v)
        distance = self.distance(torch.stack([r @ r.T for r in split(unit, self.code_lengths)]))
        # S log(d / gamma) + log(1 + gamma / d) = log(1 + d / gamma) - (1 - S) log(d / gamma)
        ratio = distance / self.gamma
        loss = torch.log1p(ratio) - torch.where(similar, 0.0, ratio.log())
        bits = self._bits.to(v.dtype)
        cosine_to_ones = self.segment_sums(unit.abs()).T / bits[:, None].sqrt()
        penalty = torch.log1p(self.distance(cosine_to_ones) / self.gamma).mean(1)
        return (weights * loss).mean((1, 2)) + self.quantization * penalty

    def distance(self, cosine: torch.Tensor) -> torch.Tensor:
        """Relaxed Hamming distance in bits from cosines (m, ...)."""
        bits = self._bits.to(cosine.dtype)
        if self.reference_bits is not None:
            bits = torch.full_like(bits, self.reference_bits)
        half = (bits / 2).view(-1, *[1] * (cosine.ndim - 1))
        if self.max_cosine is None:
            return (half * (1 - cosine)).clamp(min=1e-6)
        return half * (1 - cosine.clamp(max=self.max_cosine))

    def forms(self):
        if self.reference_bits is not None:
            return ()
        cap = math.inf if self.max_cosine is None else self.max_cosine
        return (Form("pairs", "cauchy", (self.gamma, cap), Penalty("cauchy", self.quantization), weigh="rarity"),)
