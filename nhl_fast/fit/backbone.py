"""Networks in front of a layer that is fitted without labels, which train along with it."""

from __future__ import annotations

import torch
from torch import nn

from ..core import check
from ..head.layer import NestedHashLayer

_CHUNK_ROWS = 4096
_SHARE = 0.2


class HiddenLayer(nn.Module):
    """Rows x (n, d) to x + 0.2 |x| / sqrt(d) out(relu(norm(inner(x)))): a hidden layer beside the rows; BatchNorm.

    `out` starts at zero, so that a fit starts from the closed form of the rows, which decides how good it gets; its
    outputs count in units of a row's own numbers, without which the optimizer's first steps would drown the rows.

    Args:
        width: numbers d of a row.
        hidden: numbers of the hidden layer.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        width, hidden = check.positive_int(width, "width"), check.positive_int(hidden, "hidden")
        self.inner, self.norm = nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden)
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.norm(dim=1, keepdim=True) * (_SHARE / x.shape[1] ** 0.5)
        return x + size * self.out(self.norm(self.inner(x)).relu())


class Behind(nn.Module):
    """A layer behind a backbone, or behind none: rows to codes and outputs.

    Args:
        layer: a NestedHashLayer.
        backbone: what makes its inputs of rows, or None: the rows are its inputs.
    """

    def __init__(self, layer: NestedHashLayer, backbone: nn.Module | None = None):
        super().__init__()
        self.layer, self.backbone = layer, backbone

    @torch.no_grad()
    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Packed codes (n, ceil(L / 8)) uint8 of rows (n, d)."""
        return self.layer.encode(self._inputs(rows))

    @torch.no_grad()
    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Raw outputs (n, L) of rows (n, d)."""
        return self.layer.project(self._inputs(rows))

    def _inputs(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.backbone is None else self.backbone(rows)


def check_backbone(value, method: str) -> nn.Module | None:
    """`backbone=` of a fit by `method`."""
    if value is None:
        return None
    if not isinstance(value, nn.Module):
        raise TypeError(f"backbone: expected a torch.nn.Module, got {check.describe(value)}")
    if method != "learned":
        raise ValueError(f"backbone: expected None with method {method!r}, which trains nothing, got a module")
    return value


@torch.no_grad()
def outputs_of(backbone: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """What the backbone, left in evaluation mode, makes of rows: (n, w) float32, finite."""
    backbone.eval()
    parts = []
    for part in rows.split(_CHUNK_ROWS):
        found = backbone(part)
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(part) or not found.shape[1]:
            raise ValueError(f"backbone: expected it to give ({len(part)}, w) numbers, got {check.describe(found)}")
        if not found.is_floating_point():
            raise ValueError(f"backbone: expected it to give floating-point numbers, got {check.describe(found)}")
        parts.append(found.float())
    return check.finite(torch.cat(parts), "backbone: its outputs")
