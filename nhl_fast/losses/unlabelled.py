"""Losses that need no labels: neighbours as in given vectors, and views of one thing. Reference only, for now.

Codes enter them as bits: the sign of an output, passed straight through to its tanh where gradients go.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..core import check
from .base import NestedLoss, bit_signs


def straight_signs(u: torch.Tensor) -> torch.Tensor:
    """+-1 by the bit rule, with the gradient of tanh u (Bengio et al., arXiv 1308.3432)."""
    soft = u.tanh()
    return soft + (bit_signs(u) - soft).detach()


def neighbor_targets(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """(N, N): softmax of cosine / temperature of every row over the others; the diagonal is 0."""
    unit = F.normalize(vectors)
    return (unit @ unit.T).div_(temperature).fill_diagonal_(-torch.inf).softmax(1)


def _off_diagonal(square: torch.Tensor, value: float) -> torch.Tensor:
    """A square matrix with `value` on its diagonal."""
    return square.masked_fill(torch.eye(len(square), dtype=torch.bool, device=square.device), value)


class _Unlabelled(NestedLoss):
    """A loss whose targets are no classes; `targets` says what they are."""

    targets: str

    def __init__(self, code_lengths=check.DEFAULT_CODE_LENGTHS):
        super().__init__(1, code_lengths)

    def usual_labels(self, labels, like):
        return labels

    def check_outputs(self, u):
        super().check_outputs(u)
        if u.shape[0] < 2:
            raise ValueError(f"u: expected at least two rows, which are compared, got {check.describe(u)}")

    def extra_repr(self) -> str:
        return f"code_lengths={self.code_lengths}"


class Neighbors(_Unlabelled):
    """Codes that have the neighbours of given vectors.

    With z the bits as +-1 and T_i the softmax of cosine(x_i, x_j) / temperature over the other rows j of the batch:
    L_k = mean over i of KL(T_i || softmax_j(s_k <z_i, z_j>_k / b_k)). The scales s_k are learned along: hand
    `loss.parameters()` to the optimizer. As labels it takes the vectors (N, d), floating point: the features
    themselves (`objective(features, features)`), or those of a better model (then it distils).

    A batch should hold neighbours: some anchors, each with a few of its nearest rows (see `nhl_fast.fit.learn`).

    Args:
        code_lengths: the m code lengths in bits.
        temperature: of the vectors' softmax; a small one asks for the nearest alone.
    """

    targets = "vectors"

    def __init__(self, code_lengths=check.DEFAULT_CODE_LENGTHS, *, temperature: float = 0.05):
        super().__init__(code_lengths)
        self.temperature = check.number(temperature, "temperature", positive=True)
        self.log_scales = nn.Parameter(self._start())

    def _start(self) -> torch.Tensor:
        """log sqrt(b_k): inner products of random codes then vary as much at every length."""
        return torch.tensor(self.code_lengths, dtype=torch.float32, device=torch.get_default_device()).sqrt().log()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.log_scales.copy_(self._start())

    def check_labels(self, labels, num_rows: int):
        check.tensor(labels, "labels", floating=True)
        if labels.ndim != 2 or len(labels) != num_rows or labels.shape[1] == 0:
            raise ValueError(
                f"labels: expected vectors of shape ({num_rows}, d), whose neighbours the codes are to have, "
                f"got {check.describe(labels)}"
            )
        return check.finite(labels.detach() if labels.dtype == torch.float64 else labels.detach().float(), "labels")

    def naive(self, u, labels, k):
        z = straight_signs(u)
        found = _off_diagonal(self.log_scales[k].exp().to(u.dtype) / u.shape[1] * (z @ z.T), -torch.inf)
        target = neighbor_targets(labels, self.temperature).to(u.dtype)
        surprise = torch.special.entr(target) + target * _off_diagonal(found.log_softmax(1), 0)
        return -surprise.sum(1).mean()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"


class Contrastive(_Unlabelled):
    """InfoNCE between the codes of views of one thing, as two crops of a picture, or a picture and its text.

    With z the bits as +-1: L_k = mean over the rows i that have another view p of
    -log(exp(<z_i, z_p>_k / (b_k temperature)) / sum over j != i of exp(<z_i, z_j>_k / (b_k temperature)))
    + bottleneck * KL(Bernoulli(sigmoid u_i) || Bernoulli(sigmoid u_p)), summed over the bits; several views p count
    their mean. The p in the second term are constants. As labels it takes integer ids (N,): rows of equal id are
    views of one another.

    Args:
        code_lengths: the m code lengths in bits.
        temperature: of the softmax over cosines of codes.
        bottleneck: weight of the second term; 0 leaves it out.

    Source: Qiu et al., "Unsupervised Hashing with Contrastive Information Bottleneck" (CIBHash), IJCAI 2021.
    """

    targets = "views"

    def __init__(
        self, code_lengths=check.DEFAULT_CODE_LENGTHS, *, temperature: float = 0.3, bottleneck: float = 0.001
    ):
        super().__init__(code_lengths)
        self.temperature = check.number(temperature, "temperature", positive=True)
        self.bottleneck = check.number(bottleneck, "bottleneck")

    def check_labels(self, labels, num_rows: int):
        check.tensor(labels, "labels")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(
                f"labels: expected integer ids, equal for views of one thing, got {check.describe(labels)}"
            )
        if labels.shape != (num_rows,):
            raise ValueError(f"labels: expected ids of shape ({num_rows},), got {check.describe(labels)}")
        return labels.long()

    def naive(self, u, labels, k):
        z = straight_signs(u)
        logits = _off_diagonal(z @ z.T / (u.shape[1] * self.temperature), -torch.inf)
        pairs = -_off_diagonal(logits.log_softmax(1), 0)
        if self.bottleneck:
            p, other = u.sigmoid(), u.detach()
            yes = (p * F.logsigmoid(u)).sum(1, keepdim=True) - p @ F.logsigmoid(other).T
            no = ((1 - p) * F.logsigmoid(-u)).sum(1, keepdim=True) - (1 - p) @ F.logsigmoid(-other).T
            pairs = pairs + self.bottleneck * (yes + no)
        views = _off_diagonal(labels[:, None] == labels[None], False).to(u.dtype)
        count = views.sum(1)
        rows = (pairs * views).sum(1) / count.clamp(min=1)
        return rows.sum() / (count > 0).sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, bottleneck={self.bottleneck}"
