"""Triplet likelihood: DTSH. All positives against all negatives of every anchor, in bounded memory."""

from __future__ import annotations

import math

import torch

from ..core import check
from ..core.known_gradient import chunk_rows, known_gradient
from ..core.labels import similarity
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, bit_signs, softplus
from .form import Form, Penalty


@torch.no_grad()
def triplet_mean(theta, positive, negative, margin, low, high):
    """Mean over anchors of the mean over (positive, negative) of softplus(-t), and its gradient in theta.

    theta (N, N) holds u_i u_j; t = clamp(theta_ip - theta_in - margin, low, high); positive and negative are
    (N, N) of zeros and ones. An anchor without a positive or without a negative does not count.
    """
    counts = positive.sum(1) * negative.sum(1)
    usable = (counts > 0).to(theta.dtype)
    scale = (usable / counts.clamp(min=1) / usable.sum().clamp(min=1))[:, None]
    value, grad, n = theta.new_zeros(()), torch.empty_like(theta), theta.shape[0]
    step = chunk_rows(n * n, theta.device, n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        p, q = positive[rows] * scale[rows], negative[rows]
        flipped = theta[rows, None, :] - (theta[rows, :, None] - margin)  # -t: positives by negatives
        loss, slope = softplus(flipped.clamp(-high, -low)), flipped.clamp(-high, -low).sigmoid_()
        if low != -torch.inf:
            slope *= (flipped >= -high) & (flipped <= -low)
        value += (p * torch.bmm(loss, q[:, :, None]).squeeze(2)).sum()
        grad[rows] = q * torch.bmm(p[:, None, :], slope).squeeze(1)
        grad[rows] -= p * torch.bmm(slope, q[:, :, None]).squeeze(2)
    return value, grad


class DTSH(NestedLoss):
    """Deep triplet-supervised hashing.

    For anchor i, positive p and negative n: t = clamp(u_i u_p - u_i u_n - margin, -100, 50);
    L_k = mean over anchors with both kinds of (mean over (p, n) of softplus(-t))
    + quantization * mean (u - sign u)^2. An anchor counts among its own positives.

    Args:
        margin: alpha of the paper.
        quantization: weight of the second term.
        clamp: False leaves t as it is, so that the worst triplets keep their gradient.
        reference_bits: None for inner products as published; a number multiplies those of length b_k by
            reference_bits / b_k, so that their range does not grow with the length.

    Source: Wang, Shi and Kitani, "Deep Supervised Hashing with Triplet Labels", ACCV 2016.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        margin: float = 5.0,
        quantization: float = 1.0,
        clamp: bool = True,
        reference_bits: float | None = None,
    ):
        super().__init__(num_classes, code_lengths)
        self.reference_bits = check.optional_positive(reference_bits, "reference_bits")
        self.margin, self.quantization = check.number(margin, "margin"), check.number(quantization, "quantization")
        self.clamp = check.flag(clamp, "clamp")

    @property
    def bounds(self) -> tuple[float, float]:
        """What t is clamped to."""
        return (-100.0, 50.0) if self.clamp else (-math.inf, math.inf)

    def naive(self, u, labels, k):
        options = {"margin": self.margin, "quantization": self.quantization, "clamp": self.clamp}
        return naive.dtsh(u, similarity(labels, labels), reference_bits=self.reference_bits, **options)

    def expanded(self, v, labels):  # saves memory: no triplets are kept for backward
        similar = similarity(labels, labels)
        low, high = self.bounds
        positive, negative = similar.to(v.dtype), (~similar).to(v.dtype)
        scaled = self.as_bits(v, self.reference_bits)
        thetas = torch.stack([u @ u.T for u in split(scaled, self.code_lengths)])
        known = [triplet_mean(theta, positive, negative, self.margin, low, high) for theta in thetas.detach()]
        values = known_gradient(thetas, *map(torch.stack, zip(*known)))
        return values + self.quantization * self.segment_means((v - bit_signs(v).detach()).square())

    def forms(self):
        penalty = Penalty("sign", self.quantization)
        constants = (self.margin, *self.bounds)
        return (Form("triplets", "logistic", constants, penalty, reference_bits=self.reference_bits or 0.0),)
