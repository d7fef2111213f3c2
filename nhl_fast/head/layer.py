"""The nested hash layer: one linear map whose first b_1, b_2, ... outputs are all codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..core import check
from ..core.arrays import as_tensor
from ..core.operation import Operation
from ..core.precision import no_autocast
from ..retrieval.codes import pack_outputs
from .bihalf import halved

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NestedHashLayer(nn.Module):
    """Linear hash layer whose outputs are nested codes: every code is a prefix of the longer ones.

    Args:
        in_features: width d of the features.
        code_lengths: the m code lengths in bits, strictly increasing; the longest, L, is the layer's width. One
            integer is one length.
        bihalf: None for plain outputs. A number makes the layer's outputs +-1 in training (training mode, while
            gradients are recorded), each bit +1 in half of the batch's rows, and is the weight gamma of what draws
            the outputs there (6 in the paper's code); see `nhl_fast.head.bihalf.halved`. Served by the reference.

    The weight (L, d) starts as N(0, 0.01), the bias (L,) as 0. The parameters are named `hash_layer.weight` and
    `hash_layer.bias`, so that weights saved by the authors' layer load as they are; of their MoCo_RML_head's,
    `hash_layer_q.*` load and the momentum copy `hash_layer_k.*` is left out.

    `hash_layer` may be replaced (a LoRA wrapper, a quantized layer), have no bias, or carry hooks, parametrizations
    and pruning masks: anything but a plain `nn.Linear` is called as the module that it is, by the reference.

    Source: He et al., "Nested Hash Layer", arXiv 2412.08922.
    """

    bihalf: float | None = None

    @check.memory
    def __init__(
        self,
        in_features: int,
        code_lengths=check.DEFAULT_CODE_LENGTHS,
        *,
        bihalf: float | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.bihalf = None if bihalf is None else check.number(bihalf, "bihalf")
        self.in_features = check.positive_int(in_features, "in_features")
        self.code_lengths = check.code_lengths(code_lengths)
        device, dtype = check.device(device), check.floating_dtype(dtype)
        self.hash_layer = nn.Linear(self.in_features, self.code_lengths[-1], device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew and set the bias to 0, as at the beginning (after `to_empty`, say)."""
        nn.init.normal_(self.hash_layer.weight, std=0.01)
        if self.hash_layer.bias is not None:
            nn.init.zeros_(self.hash_layer.bias)

    @property
    def out_features(self) -> int:
        """The longest code length, L."""
        return self.code_lengths[-1]

    def check_features(self, x, name: str = "x") -> None:
        """Raise unless `x` holds features (N, d)."""
        check.tensor(x, name, floating=True)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"{name}: expected features of shape (N, {self.in_features}), got {check.describe(x)}")

    def project(self, x: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """Raw outputs (N, L) of features (N, d): float32, or float64 where the features or weights are.

        Half-precision features and autocast regions are accumulated and returned in float32: the losses and the
        sign of a small output depend on it.

        backend: "auto", "reference" or "triton". "auto" takes the kernel for CUDA tensors where no gradient is
        recorded; with one, PyTorch's own product, which can be differentiated twice.
        """
        self.check_features(x)
        return PROJECT(x, self, backend=backend)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The m prefixes (N, b_k) of the raw outputs, as views of one (N, L) tensor.

        As with nn.Linear, features may be (..., d), tokens (N, T, d) or one row (d,), and outputs are (..., b_k).
        """
        usual = not isinstance(x, torch.Tensor) or x.ndim in (0, 2) or x.shape[-1] != self.in_features
        if usual:
            u = self.project(x)
        else:
            rows = check.tensor(x, "x", floating=True).reshape(-1, self.in_features)
            u = self.project(rows).reshape(*x.shape[:-1], self.out_features)
        u = self.as_trained(u)
        return tuple(u[..., :b] for b in self.code_lengths)

    @property
    def halves(self) -> bool:
        """Whether outputs of now are halved over the batch: `bihalf`, in training."""
        return self.bihalf is not None and self.training and torch.is_grad_enabled()

    def as_trained(self, u: torch.Tensor) -> torch.Tensor:
        """Raw outputs (..., L) as the loss sees them."""
        return halved(u.flatten(0, -2), self.bihalf).view_as(u) if self.halves and u.ndim > 1 else u

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """The reference's raw outputs (N, L) of checked features, through the layer's own projection and hooks."""
        if not _hooked(self):
            return self.as_trained(
                self.project(x, "reference") if _own_projection(self) else PROJECT.reference(x, self)
            )
        prefixes = self(x)
        u = prefixes[-1] if isinstance(prefixes, tuple) and prefixes else prefixes
        if not isinstance(u, torch.Tensor) or u.shape != (len(x), self.out_features):
            raise ValueError(f"layer: expected its hooks to leave {len(self.code_lengths)} prefixes of outputs")
        return u

    @check.memory
    @torch.no_grad()
    def encode(self, x, backend: str = "auto") -> torch.Tensor:
        """Packed codes (N, ceil(L/8)) uint8 of features (N, d); bit = output > 0, most significant bit first.

        x: a tensor, or an array.
        backend: "auto", "reference" or "triton" (one pass over the features; "auto" takes it for CUDA tensors).
        """
        x = as_tensor(x, "x")
        self.check_features(x)
        return ENCODE(x, self, backend=backend)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # The authors' MoCo_RML_head: q is the layer that is trained, k its momentum copy.
        ours, trained, copy = (f"{prefix}hash_layer{which}." for which in ("", "_q", "_k"))
        if f"{trained}weight" in state_dict and f"{ours}weight" not in state_dict:
            for key in [key for key in state_dict if key.startswith((trained, copy))]:
                value = state_dict.pop(key)
                if key.startswith(trained):
                    state_dict[ours + key.removeprefix(trained)] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __prepare_scriptable__(self):
        check.refuse_script(self)

    def extra_repr(self) -> str:
        bihalf = "" if self.bihalf is None else f", bihalf={self.bihalf}"
        return f"in_features={self.in_features}, code_lengths={self.code_lengths}{bihalf}"


def _project(x: torch.Tensor, layer: NestedHashLayer) -> torch.Tensor:
    linear = layer.hash_layer
    if not_plain(linear):
        return _called(x, layer)
    dtype = torch.promote_types(torch.promote_types(x.dtype, linear.weight.dtype), torch.float32)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    with no_autocast(x):
        return F.linear(x.to(dtype), linear.weight.to(dtype), bias)


def _called(x: torch.Tensor, layer: NestedHashLayer) -> torch.Tensor:
    """Raw outputs of a `hash_layer` that is no plain Linear, in its own dtype, then at least float32."""
    linear, shape = layer.hash_layer, (len(x), layer.out_features)
    tensors = (*linear.parameters(), *linear.buffers())
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    with no_autocast(x):
        u = linear(x.to(own))
    if not isinstance(u, torch.Tensor) or u.shape != shape:
        raise ValueError(f"hash_layer: expected it to give outputs of shape {shape}, got {check.describe(u)}")
    return u if u.dtype == torch.float64 else u.float()


def _encode(x: torch.Tensor, layer: NestedHashLayer) -> torch.Tensor:
    return pack_outputs(layer.outputs(x))


PROJECT = Operation("NestedHashLayer.project", _project)
ENCODE = Operation("NestedHashLayer.encode", _encode)


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: hooks, or a `forward` of its own (accelerate)."""
    own = vars(module)
    return "forward" in own or any(own.get(hooks) for hooks in _HOOKS)


def not_plain(linear: nn.Module) -> str | None:
    """Why the weight and bias of a `hash_layer` do not say all that it does, or None."""
    if type(linear) is not nn.Linear:
        return f"hash_layer is a {type(linear).__name__}, not a plain Linear"
    return "hash_layer has hooks" if _hooked(linear) else None


def _own_projection(layer: NestedHashLayer) -> bool:
    return type(layer).project is not NestedHashLayer.project or "project" in vars(layer)


def refuses_layer(layer: NestedHashLayer) -> str | None:
    """Why a compiled projection cannot stand in for this layer's, or None."""
    if _own_projection(layer):
        return f"{type(layer).__name__} has its own projection"
    if _hooked(layer):
        return "the layer has hooks"
    linear = layer.hash_layer
    return not_plain(linear) or ("the layer has no bias" if linear.bias is None else None)
