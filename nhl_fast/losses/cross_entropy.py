"""One cross-entropy over classes: of cosines with hash centres (OrthoHash), of a learned classifier (GreedyHash)."""

from __future__ import annotations

import torch
from torch import nn

from ..core import check
from ..core.known_gradient import known_gradient
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, bit_signs
from .center import CenterLoss
from .form import Form, Penalty


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


@torch.no_grad()
def cross_entropies(v: torch.Tensor, y: torch.Tensor, classifier: torch.Tensor, code_lengths):
    """(values (m,), deltas (N, T), slopes (C, T) in the classifier's weights) of the first term of `GreedyHash`."""
    values, deltas, slopes = [], [], []
    number = y.sum(1, keepdim=True)
    share = 1 / (len(v) * number.clamp(min=1))
    for u, w in zip(split(v, code_lengths), split(classifier, code_lengths)):
        z = torch.where(u.isnan(), u, bit_signs(u))
        log_p = (z @ w.T).log_softmax(1)
        slope = share * (number * log_p.exp() - y)
        values.append(-(share * y * log_p).sum())
        deltas.append(slope @ w), slopes.append(slope.T @ z)
    return torch.stack(values), torch.cat(deltas, 1), torch.cat(slopes, 1)


class GreedyHash(NestedLoss):
    """GreedyHash: cross-entropy of a linear classifier of the bits, whose signs pass gradients straight through.

    With z the bits as +-1 and p the softmax over the classes of W_k z: L_k = -mean over rows of the mean over the
    row's classes of log p, + alpha * mean | |u| - 1 |^3. The gradient in z is taken for that in u. The weights W_k
    (C, b_k), one classifier a length, are learned along, as `loss.parameters()`; there is no bias. A row without a
    class counts 0 in the first term.

    Args:
        alpha: weight of the second term.
        seed: of the weights' start, uniform within +-1 / sqrt(b_k).

    Source: Su et al., "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    @check.memory
    def __init__(self, num_classes, code_lengths=check.DEFAULT_CODE_LENGTHS, *, alpha: float = 0.1, seed: int = 0):
        super().__init__(num_classes, code_lengths)
        if self.num_classes < 2:
            raise ValueError(f"num_classes: GreedyHash needs at least 2 classes, got {num_classes}")
        self.alpha = check.number(alpha, "alpha")
        self.seed = check.positive_int(seed, "seed", minimum=0)
        self.classifier = nn.Parameter(self._start().to(torch.get_default_device()))

    def _start(self) -> torch.Tensor:
        """Weights (C, sum of the lengths), on the CPU."""
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(self.seed)
            drawn = [
                (2 * torch.rand(self.num_classes, b, generator=generator, dtype=torch.float32) - 1) / b**0.5
                for b in self.code_lengths
            ]
            return torch.cat(drawn, dim=1)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.classifier.copy_(self._start())

    def naive(self, u, labels, k):
        weights = split(self.classifier, self.code_lengths)[k].to(u.dtype)
        return naive.greedyhash(u, self.multi_hot(labels, u), weights, alpha=self.alpha)

    def expanded(self, v, labels):  # no graph
        classifier = self.classifier.to(v.dtype)
        y = self.multi_hot(labels, v)
        values, deltas, slopes = cross_entropies(v.detach(), y, classifier.detach(), self.code_lengths)
        learned = known_gradient(classifier, values, slopes, self.segments)
        penalty = self.alpha * self.segment_means((v.abs() - 1).abs().pow(3))
        return known_gradient(v, values, deltas, self.segments) + (learned - values) + penalty

    def forms(self):
        penalty, learned = Penalty("cube", self.alpha), self.classifier
        return (Form("classifier", "cross_entropy", (), penalty, classifier=learned, segments=self.segments),)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}"
