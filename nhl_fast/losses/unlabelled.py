"""Losses that need no labels: neighbours as in given vectors, and views of one thing.

Codes enter them as bits: the sign of an output, passed straight through to its tanh where gradients go.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..core import check
from ..core.known_gradient import known_gradient
from ..core.prefixes import split
from . import naive
from .base import NestedLoss, bit_signs
from .form import Form

# Of cosines: below it float32 knows no two of them apart.
LEAST_TEMPERATURE = 1e-6


def log_neighbors(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """(N, N): log softmax of cosine / temperature of every row over the others; -inf on the diagonal."""
    unit = F.normalize(vectors)
    return naive.off_diagonal(unit @ unit.T / temperature, -torch.inf).log_softmax(1)


@torch.no_grad()
def divergences(v: torch.Tensor, code_lengths, wanted: torch.Tensor, scales: torch.Tensor):
    """(values (m,), deltas (N, sum of the lengths), slopes (m,) in the scales) of `Neighbors`, written out.

    With G = Z Z^T of the signs, length k's value is the mean over rows of KL(exp wanted || softmax(c G)), c =
    scale_k / b_k. Its slope in c G is D = (softmax(c G) - exp wanted) / N, so that dZ = c (D + D^T) Z; the sign is
    passed straight through to tanh u, whose slope is 1 - tanh^2 u. G grows by the bits that are new in a length.

    Args:
        v: expanded outputs.
        wanted: (N, N), see `log_neighbors`.
    """
    share = wanted.exp()
    values, deltas, slopes = [], [], []
    gram, first = v.new_zeros(len(v), len(v)), 0
    for u, b, scale in zip(split(v, code_lengths), code_lengths, scales.to(v.dtype)):
        z = torch.where(u.isnan(), u, bit_signs(u))
        gram = gram + z[:, first:] @ z[:, first:].T
        found = naive.off_diagonal(gram * (scale / b), -torch.inf).log_softmax(1)
        values.append((share * naive.off_diagonal(wanted - found, 0)).sum(1).mean())
        slope = (found.exp() - share) / len(v)
        slopes.append((slope * gram).sum() / b)
        deltas.append((scale / b) * ((slope + slope.T) @ z) * (1 - u.tanh().square()))
        first = b
    return torch.stack(values), torch.cat(deltas, 1), torch.stack(slopes)


class _Unlabelled(NestedLoss):
    """A loss whose targets are no classes; `targets` says what they are."""

    targets: str

    def __init__(self, code_lengths=check.DEFAULT_CODE_LENGTHS):
        super().__init__(1, code_lengths)

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
        self.temperature = check.number(temperature, "temperature", minimum=LEAST_TEMPERATURE)
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
        return naive.neighbors(u, labels, self.log_scales[k].exp().to(u.dtype), temperature=self.temperature)

    def expanded(self, v, labels):  # one product of a length's new bits, and no graph
        scales = self.log_scales.exp()
        wanted = log_neighbors(labels.to(v.dtype), self.temperature)
        values, deltas, slopes = divergences(v.detach(), self.code_lengths, wanted, scales.detach())
        of_scales = known_gradient(scales, values, slopes.to(scales.dtype))
        return known_gradient(v, values, deltas, self.segments) + (of_scales - values)

    def forms(self):
        return (Form("listwise", "divergence", (self.temperature,), scales=self.log_scales.exp()),)

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
        self.temperature = check.number(temperature, "temperature", minimum=LEAST_TEMPERATURE)
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
        return naive.contrastive(u, labels, temperature=self.temperature, bottleneck=self.bottleneck)

    def forms(self):
        scales = self._bits.new_full((len(self.code_lengths),), 1 / self.temperature, dtype=torch.float32)
        return (Form("listwise", "views", (self.bottleneck,), scales=scales),)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, bottleneck={self.bottleneck}"
