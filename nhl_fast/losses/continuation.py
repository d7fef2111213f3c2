"""HashNet: outputs that tanh bounds, ever more sharply in the course of training."""

from __future__ import annotations

import math

import torch

from ..core import check
from ..core.labels import similarity
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, softplus
from .form import Form
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
