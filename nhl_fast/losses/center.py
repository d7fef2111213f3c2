"""Losses that pull each output towards its class's hash centre, bit by bit: CSQ and DPN."""

from __future__ import annotations

import torch

from ..centers.make import named_centers, tie_centers
from ..core import check
from ..core.prefixes import expand, split
from . import naive
from .base import NestedLoss, no_autocast, quantization_penalty, softplus
from .form import Form, row_centers


class CenterLoss(NestedLoss):
    """A loss with one hash centre a class and length.

    Attributes:
        centers: list of m tensors (C, b_k) of +-1.
        tie_centers: list of m tensors (b_k,) of +-1, which break ties in the sum of several centres.
    """

    default_centers = "hadamard"

    def __init__(self, num_classes, code_lengths=check.DEFAULT_CODE_LENGTHS, centers=None, *, seed: int = 0):
        super().__init__(num_classes, code_lengths)
        kind = self.default_centers if centers is None else centers
        nested = not isinstance(kind, (list, tuple)) and (not isinstance(kind, str) or kind == "nested")
        device = torch.get_default_device()
        with torch.device("cpu"):
            built = torch.cat(named_centers("centers", self.num_classes, self.code_lengths, kind, seed), dim=1)
            ties = torch.cat(tie_centers(self.code_lengths, seed=seed, nested=nested))
        self.register_buffer("_centers", built.to(device))
        self.register_buffer("_tie_centers", ties.to(device))
        # What a loss on the meta device comes back with.
        self._built = (built, ties) if device.type == "meta" else None

    def _apply(self, fn, recurse=True):
        was = (self._centers, self._tie_centers)
        super()._apply(fn, recurse)
        for name, old in zip(("_centers", "_tie_centers"), was):
            new = getattr(self, name)
            if new.itemsize < 4 <= old.itemsize:  # in half precision, sums of centres and outputs would lose digits
                setattr(self, name, (new if old.is_meta else old).to(new.device, old.dtype))
        return self

    def reset_parameters(self) -> None:
        if self._built is not None:
            for buffer, value in zip((self._centers, self._tie_centers), self._built):
                buffer.copy_(value)

    @property
    def centers(self) -> list[torch.Tensor]:
        return list(split(self._centers, self.code_lengths))

    @property
    def tie_centers(self) -> list[torch.Tensor]:
        return list(self._tie_centers.split(self.code_lengths))

    @tie_centers.setter
    def tie_centers(self, ties) -> None:
        fits = isinstance(ties, (list, tuple)) and len(ties) == len(self.code_lengths)
        fits = fits and all(
            isinstance(t, torch.Tensor) and tuple(t.shape) == (b,) and bool((t.abs() == 1).all())
            for t, b in zip(ties, self.code_lengths)
        )
        if not fits:
            raise ValueError(f"tie_centers: expected +-1 vectors of lengths {self.code_lengths}, got {ties!r}"[:300])
        self._tie_centers = torch.cat([t.to(self._tie_centers) for t in ties])

    @property
    def center_table(self) -> torch.Tensor:
        """(C, sum of the lengths): the centres of all lengths side by side."""
        return self._buffers["_centers"]  # read at every step: `self._centers` takes four times as long

    @property
    def tie_table(self) -> torch.Tensor:
        """(sum of the lengths,): the tie centres of all lengths."""
        return self._buffers["_tie_centers"]

    def targets(self, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Expanded centre of each row, see `row_centers`."""
        return row_centers(labels, self._centers.to(like.dtype), self._tie_centers.to(like.dtype))

    def target(self, labels: torch.Tensor, like: torch.Tensor, k: int) -> torch.Tensor:
        """(N, b_k): the columns of `targets` that belong to the k-th length (from 0)."""
        return row_centers(labels, self.centers[k].to(like.dtype), self.tie_centers[k].to(like.dtype))


class CSQ(CenterLoss):
    """Central similarity quantization: binary cross-entropy of tanh(u) with the class's hash centre.

    L_k = mean BCE((tanh u + 1) / 2, (c + 1) / 2) + quantization * mean (|tanh u| - 1)^2. The cross-entropy is
    computed as softplus(-2 u c), which is equal and keeps its gradient where tanh saturates.

    Args:
        centers: None or "hadamard", "nested" (prefix-consistent), "balanced", "random", a list of (C, b_k)
            tensors of +-1, or one (C, L) tensor whose prefixes serve.
        quantization: weight of the quantization term.
        seed: of centres that are drawn.

    Source: Yuan et al., "Central Similarity Quantization", CVPR 2020.
    """

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        centers=None,
        *,
        quantization: float = 1e-4,
        seed: int = 0,
    ):
        super().__init__(num_classes, code_lengths, centers, seed=seed)
        self.quantization = check.number(quantization, "quantization")

    def naive(self, u, labels, k):
        return naive.csq(u, self.target(labels, u, k), quantization=self.quantization)

    def expanded(self, v, labels):  # keeps digits: (tanh u + 1) / 2 rounds to 0 and 1, where it has no gradient
        entropy = softplus(-2 * v * self.targets(labels, v))
        return self.segment_means(entropy + self.quantization * quantization_penalty(v.tanh()))

    def forms(self):
        return (Form("center", "csq", (self.quantization,), centers=self.center_table, ties=self.tie_table),)


class DPN(CenterLoss):
    """Deep polarized network: a hinge that pushes every output beyond a margin on its centre's side.

    L_k = mean max(margin - u c, 0).

    Args:
        centers: as for `CSQ`; None means random balanced centres.
        margin: the polarization margin.
        ternary: outputs closer to 0 than the margin count as 0, the others as their sign, with the gradient
            passed straight through (the ternary variant, DPN-T).

    `adapt_centers` is the adaptive variant (DPN-A).
    Source: Fan et al., "Deep Polarized Network for Supervised Learning of Accurate Binary Hashing Codes", IJCAI 2020.
    """

    default_centers = "balanced"

    def __init__(
        self,
        num_classes,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        centers=None,
        *,
        margin: float = 1.0,
        ternary: bool = False,
        seed: int = 0,
    ):
        super().__init__(num_classes, code_lengths, centers, seed=seed)
        self.margin, self.ternary = check.number(margin, "margin"), check.flag(ternary, "ternary")

    def naive(self, u, labels, k):
        return naive.dpn(u, self.target(labels, u, k), margin=self.margin, ternary=self.ternary)

    def forms(self):
        function = "dpn_ternary" if self.ternary else "dpn"
        return (Form("center", function, (self.margin,), centers=self.center_table, ties=self.tie_table),)

    @torch.no_grad()
    def adapt_centers(self, u: torch.Tensor, labels: torch.Tensor) -> None:
        """Set every class's centre to the signs of its items' mean outputs; u (n, L) over the training set.

        A bit whose mean is 0, and a class with no item, keep what they have.
        """
        self.check_outputs(u)
        check.present(u, "u")
        labels = check.present(self.check_labels(labels, u.shape[0]), "labels")
        weights = self.multi_hot(labels, self._centers)
        with no_autocast(u):
            total = weights.T @ expand(u.to(self._centers), self.code_lengths)
        self._centers = torch.where(total == 0, self._centers, total.sign())
