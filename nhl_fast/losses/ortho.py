"""OrthoHash: one cross-entropy, of the cosines with the classes' hash centres, with a margin."""

from __future__ import annotations

from ..core import check
from . import naive
from .center import CenterLoss
from .form import Form


class OrthoCos(CenterLoss):
    """Cross-entropy of the cosines with the classes' centres, which for a row's own classes count `margin` less.

    p = softmax over the classes c of scale * (cos(u, centre_c) - margin y_c); L_k = -mean over rows of the mean over
    the row's classes of log p; a row without a class counts 0.

    Args:
        centers: as for `CSQ`; None means random ones, each bit a coin.
        margin: what the own classes' cosines count less.
        scale: what cosines are multiplied by, the same at every length.
        seed: of centres that are drawn.

    The published network has a BatchNorm after the hash layer, in front of the loss.
    Source: Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective"
    (OrthoHash), NeurIPS 2021.
    """

    default_centers = "random"

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        centers=None,
        *,
        margin: float = 0.2,
        scale: float = 8.0,
        seed: int = 0,
    ):
        super().__init__(num_classes, code_lengths, centers, seed=seed)
        if self.num_classes < 2:
            raise ValueError(f"num_classes: {type(self).__name__} needs at least 2 classes, got {num_classes}")
        self.margin = check.number(margin, "margin")
        self.scale = check.number(scale, "scale", positive=True)

    def naive(self, u, labels, k):
        return self.plainly(naive.orthocos, u, labels, k)

    def plainly(self, formula, u, labels, k):
        """A loss of `naive` at the k-th length."""
        y, centers = self.multi_hot(labels, u), self.centers[k].to(u.dtype)
        return formula(u, y, centers, margin=self.margin, scale=self.scale)

    def forms(self):
        return (self.form("cosine"),)

    def form(self, function: str) -> Form:
        """That of a function of the softmax body that takes a margin."""
        bits = float(self.scale) ** 2  # logits are the root of that times a cosine
        return Form("softmax", function, (float(self.margin), 1.0), reference_bits=bits, centers=self.center_table)


class OrthoArc(OrthoCos):
    """`OrthoCos` with its margin in the angle: a row's own classes count cos(angle + margin).

    Sines below 0.01 (half a degree) count as 0.01, where the gradient of the angle would have no bound.

    Args:
        centers, scale, seed: as for `OrthoCos`.
        margin: added to the angles to the own classes' centres, in radians.
    """

    def naive(self, u, labels, k):
        return self.plainly(naive.orthoarc, u, labels, k)

    def forms(self):
        return (self.form("angle"),)
