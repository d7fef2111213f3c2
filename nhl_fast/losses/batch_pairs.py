"""Pairwise losses within the batch: LCDSH and DCH."""

from __future__ import annotations

import torch

from ..core import check
from ..core.known_gradient import known_gradient
from ..core.labels import similarity
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, bit_signs, softplus


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
    ):
        super().__init__(num_classes, code_lengths)
        self.gamma = check.number(gamma, "gamma", positive=True)
        self.quantization = check.number(quantization, "quantization")
        if max_cosine is not None and not 0 < check.number(max_cosine, "max_cosine") < 1:
            raise ValueError(f"max_cosine: expected a number between 0 and 1, or None, got {max_cosine}")
        self.max_cosine = max_cosine

    def naive(self, u, labels, k):
        options = {"gamma": self.gamma, "quantization": self.quantization, "max_cosine": self.max_cosine}
        return naive.dch(u, similarity(labels, labels), **options)

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
        half = (self._bits.to(cosine.dtype) / 2).view(-1, *[1] * (cosine.ndim - 1))
        if self.max_cosine is None:
            return (half * (1 - cosine)).clamp(min=1e-6)
        return half * (1 - cosine.clamp(max=self.max_cosine))
