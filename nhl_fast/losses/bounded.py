"""Pairs of a batch whose outputs are bounded first: HashNet, by a tanh that sharpens in training, and IDHN."""

from __future__ import annotations

import math

import torch

from ..core import check
from ..core.labels import similarity
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, softplus
from .form import Form, Penalty
from .pairs import rarity_weights


class HashNet(NestedLoss):
    """HashNet: the weighted likelihood of pairs of tanh outputs, whose tanh sharpens in the course of training.

    With h = tanh(beta u) and theta = (reference_bits / b) h_i h_j / 2: L_k = mean w [softplus(theta) - S theta].
    w weighs similar and dissimilar pairs by how rare they are (1 where one kind is missing); the pairs are those
    of the batch, each row with itself included. Where rows have several classes, w does not say how many two share.

    Args:
        beta: sharpness of tanh in the first epoch.
        continuation: beta grows by sqrt(1 + epoch // continuation), epochs counted from 0 (see `set_epoch`); None:
            beta stays.
        reference_bits: what inner products count as: 20 is the paper's alpha = 10 / b.

    Source: Cao et al., "HashNet: Deep Learning to Hash by Continuation", ICCV 2017.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        beta: float = 1.0,
        continuation: int | None = 20,
        reference_bits: float = 20.0,
    ):
        super().__init__(num_classes, code_lengths)
        self.beta = check.number(beta, "beta", positive=True)
        if continuation is not None:
            continuation = check.positive_int(continuation, "continuation")
        self.continuation, self.epoch = continuation, 0
        self.reference_bits = check.number(reference_bits, "reference_bits", positive=True)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch it is (counted from 0)."""
        self.epoch = check.positive_int(epoch, "epoch", minimum=0)

    @property
    def sharpness(self) -> float:
        """What outputs are multiplied by in this epoch, before tanh."""
        stage = 0 if self.continuation is None else self.epoch // self.continuation
        return self.beta * math.sqrt(1 + stage)

    def naive(self, u, labels, k):
        similar = similarity(labels, labels)
        return naive.hashnet(u, similar, beta=self.sharpness, reference_bits=self.reference_bits)

    def expanded(self, v, labels):  # does not wait for a device, to see whether both kinds of pairs are there
        similar = similarity(labels, labels)
        h = self.as_bits((self.sharpness * v).tanh(), self.reference_bits)
        theta = torch.stack([rows @ rows.T / 2 for rows in split(h, self.code_lengths)])
        pairs = softplus(torch.where(similar, -theta, theta))
        return (rarity_weights(similar, v.dtype) * pairs).mean((1, 2))

    def forms(self):
        bits, squash = float(self.reference_bits), float(self.sharpness)
        return (Form("pairs", "likelihood", reference_bits=bits, weigh="rarity", squash=squash),)


class IDHN(NestedLoss):
    """Improved deep hashing network: pairs similar by the cosine of their label sets, which may be between 0 and 1.

    With h = u / (1 + |u|), x_ij = h_i h_j / b and S the cosine of two rows of labels: L_k = mean over the pairs of
    softplus(sharpness x) - S sharpness x where S is 0 or 1, else of gamma b ((x + 1) / 2 - S)^2,
    + alpha * mean | |h| - 1 |. The pairs are those of the batch, each row with itself included; S below 0.01 counts
    as 0, above 0.99 as 1. With one class a row the second case does not occur.

    Args:
        sharpness: what mean products of bits are multiplied by in the likelihood (5 in the paper's code).
        gamma: weight of the squared error.
        alpha: weight of the penalty on the outputs.

    Source: Zhang et al., "Improved Deep Hashing with Soft Pairwise Similarity for Multi-label Image Retrieval", IEEE
    Transactions on Multimedia 22(2), 2020.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        sharpness: float = 5.0,
        gamma: float = 0.1,
        alpha: float = 0.1,
    ):
        super().__init__(num_classes, code_lengths)
        self.sharpness = check.number(sharpness, "sharpness", positive=True)
        self.gamma, self.alpha = check.number(gamma, "gamma"), check.number(alpha, "alpha")

    def label_options(self, *, ignore_index=None, class_weights=None, soft=True):
        """As in every loss, but that labels are rows of weights in any case, label sets and ids among them."""
        if not check.flag(soft, "soft"):
            raise ValueError("soft: the similarity of IDHN is always graded, got False")
        return super().label_options(ignore_index=ignore_index, class_weights=class_weights, soft=True)

    def naive(self, u, labels, k):
        options = {"sharpness": self.sharpness, "gamma": self.gamma, "alpha": self.alpha}
        return naive.idhn(u, self.multi_hot(labels, u), **options)

    def forms(self):
        constants = (float(self.sharpness), float(self.gamma))
        return (
            Form("pairs", "graded", constants, Penalty("absolute", self.alpha), squash=1.0, bound="softsign"),
        )  # fmt: skip
