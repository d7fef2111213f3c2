"""The nested hash layer: one linear map whose first b_1, b_2, ... outputs are all codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from . import _check
from .backend import use_triton
from .codes import pack_codes


class NestedHashLayer(nn.Module):
    """Linear hash layer whose outputs are nested codes: every code is a prefix of the longer ones.

    Args:
        in_features: width d of the features.
        code_lengths: the m code lengths in bits, strictly increasing; the longest, L, is the layer's width.

    The weight (L, d) starts as N(0, 0.01), the bias (L,) as 0. The parameters are named `hash_layer.weight` and
    `hash_layer.bias`, so that weights saved by the authors' layer load as they are.

    Source: He et al., "Nested Hash Layer", arXiv 2412.08922.
    """

    def __init__(self, in_features: int, code_lengths=_check.DEFAULT_CODE_LENGTHS, *, device=None, dtype=None):
        super().__init__()
        self.in_features = _check.positive_int(in_features, "in_features")
        self.code_lengths = _check.code_lengths(code_lengths)
        self.hash_layer = nn.Linear(self.in_features, self.code_lengths[-1], device=device, dtype=dtype)
        nn.init.normal_(self.hash_layer.weight, std=0.01)
        nn.init.zeros_(self.hash_layer.bias)

    @property
    def out_features(self) -> int:
        """The longest code length, L."""
        return self.code_lengths[-1]

    def check_features(self, x) -> None:
        """Raise unless `x` holds features (N, d)."""
        _check.tensor(x, "x", floating=True)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x: expected features of shape (N, {self.in_features}), got {_check.describe(x)}")

    def project(self, x: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """Raw outputs (N, L) of features (N, d): float32, or float64 where the features or weights are.

        Half-precision features and autocast regions are accumulated and returned in float32: the losses and the
        sign of a small output depend on it.

        backend: "auto", "reference" or "triton". "auto" takes the kernel for CUDA tensors where no gradient is
        recorded; with one, PyTorch's own product, which can be differentiated twice.
        """
        self.check_features(x)
        recorded = torch.is_grad_enabled() and (x.requires_grad or self.hash_layer.weight.requires_grad)
        if (backend != "auto" or not recorded) and self._fused(backend, "NestedHashLayer.project", x):
            return torch.ops.nhl_fast.project(x, self.hash_layer.weight, self.hash_layer.bias, False)[0]
        weight, bias = self.hash_layer.weight, self.hash_layer.bias
        dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The m prefixes (N, b_k) of the raw outputs, as views of one (N, L) tensor."""
        u = self.project(x)
        return tuple(u[:, :b] for b in self.code_lengths)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """Packed codes (N, ceil(L/8)) uint8 of features (N, d); bit = output > 0, most significant bit first.

        backend: "auto", "reference" or "triton" (one pass over the features; "auto" takes it for CUDA tensors).
        """
        self.check_features(x)
        if self._fused(backend, "NestedHashLayer.encode", x):
            return torch.ops.nhl_fast.encode(x, self.hash_layer.weight, self.hash_layer.bias)
        return pack_codes(self.project(x, "reference"))

    def _fused(self, backend: str, operation: str, x: torch.Tensor) -> bool:
        def refuses():
            from .fused import step

            return step.refuses_projection(self, x)

        return use_triton(backend, operation, x.device, refuses)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, code_lengths={self.code_lengths}"


def refuses_layer(layer: NestedHashLayer) -> str | None:
    """Why a compiled projection cannot stand in for this layer's, or None."""
    if type(layer).project is not NestedHashLayer.project:
        return f"{type(layer).__name__} has its own projection"
    return "the layer has no bias" if layer.hash_layer.bias is None else None
