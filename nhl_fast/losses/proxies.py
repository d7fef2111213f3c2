"""Cosines with learned proxies of the classes, and between rows that share none: HyP2."""

from __future__ import annotations

import torch
from torch import nn

from ..centers.linear_codes import largest_distance
from ..core import check
from . import naive, weighted
from .base import NestedLoss
from .form import Form


class HyP2(NestedLoss):
    """HyP2: cosines with learned proxies of the classes, and of rows of several classes that share none.

    With p_c the proxy of the class c and t the length's threshold: L_k = mean over the rows' own classes of
    1 - cos(u_i, p_c), + mean over the other classes of max(cos(u_i, p_c) - t, 0), + beta * mean over the pairs of
    rows of several classes that have none in common of max(cos(u_i, u_j) - t, 0). A mean of nothing is 0. The
    proxies (C, L), whose prefixes serve each length, are learned along, as `loss.parameters()`.

    Args:
        beta: weight of the third term.
        threshold: cosines up to which what should be apart is left alone: a number, or one a length. None:
            1 - 2 d / b with d the largest minimum distance of a linear code of b bits with a codeword a class
            (`nhl_fast.centers.linear_codes`), for up to 256 classes as in the published code.
        seed: of the proxies' start, normal with variance 2 / C.

    Source: Xu et al., "HyP^2 Loss: Beyond Hypersphere Metric Space for Multi-label Image Retrieval", ACM MM 2022.
    """

    @check.memory
    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        beta: float = 0.5,
        threshold=None,
        seed: int = 0,
    ):
        super().__init__(num_classes, code_lengths)
        if self.num_classes < 2:
            raise ValueError(f"num_classes: HyP2 needs at least 2 classes, got {num_classes}")
        self.beta = check.number(beta, "beta")
        self.seed = check.positive_int(seed, "seed", minimum=0)
        self.thresholds = self._thresholds(threshold)
        self.proxies = nn.Parameter(self._start().to(torch.get_default_device()))

    def _thresholds(self, given) -> tuple[float, ...]:
        """One a length."""
        if given is None:
            return tuple(1 - 2 * largest_distance(b, self.num_classes) / b for b in self.code_lengths)
        several = isinstance(given, (list, tuple))
        if several and len(given) != len(self.code_lengths):
            raise ValueError(
                f"threshold: expected a number, or one for each of the {len(self.code_lengths)} lengths, "
                f"got {len(given)}"
            )
        found = tuple(check.number(x, "threshold", minimum=-1) for x in (given if several else [given]))
        if max(found) > 1:
            raise ValueError(f"threshold: expected cosines, from -1 to 1, got {check.describe(given)}")
        return found if several else found * len(self.code_lengths)

    def _start(self) -> torch.Tensor:
        """Proxies (C, L), on the CPU."""
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(self.seed)
            shape = self.num_classes, self.code_lengths[-1]
            return torch.randn(shape, generator=generator, dtype=torch.float32) * (2 / self.num_classes) ** 0.5

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.proxies.copy_(self._start())

    def naive(self, u, labels, k):
        proxies, y = self.proxies[:, : u.shape[1]].to(u.dtype), self.multi_hot(labels, u)
        return naive.hyp2(u, y, proxies, threshold=self.thresholds[k], beta=self.beta)

    def expanded(self, v, labels):  # does not wait for a device, to see which rows have several classes
        rows = weighted.plain_rows(labels, v.dtype)
        return weighted.expanded(self.forms(), v, rows, self.code_lengths)

    def forms(self):
        given = {"proxies": self.proxies, "segments": self.segments, "among": self.beta}
        return (Form("proxies", "margin", self.thresholds, **given),)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={self.beta}, thresholds={self.thresholds}"
