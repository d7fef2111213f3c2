"""IDHN: pairs that are similar in part, by how many labels they share."""

from __future__ import annotations

from ..core import check
from . import naive
from .base import NestedLoss
from .form import Form, Penalty


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
