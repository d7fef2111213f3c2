"""A scalar whose gradient is computed together with it, so that nothing large is kept for backward."""

from __future__ import annotations

import inspect

import torch

from . import check

ONCE = (
    "create_graph=True: this gradient of nhl_fast was computed together with its value and cannot be differentiated "
    "again (no Hessian, gradient penalty or MAML through it). Twice differentiable are NestedHashLayer's outputs "
    "(backend='reference') and every loss's naive(u, labels, k), its plain formula"
)


def _bound(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """`apply` binds its arguments by forward's signature, which would be taken apart anew at every call."""
    function.forward.__signature__ = inspect.signature(function.forward)
    return function


@_bound
class _Once(torch.autograd.Function):
    """A gradient, tied to what it was taken with respect to: differentiating it raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, source):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(ONCE)


def once(gradient: torch.Tensor | None, *sources: torch.Tensor) -> torch.Tensor | None:
    """`gradient` as it leaves a backward pass, where it depends on `sources` in ways that no graph records.

    Under create_graph=True it would otherwise pass for a constant.
    """
    if gradient is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient
    for source in sources:
        if source.requires_grad:
            gradient = _Once.apply(gradient, source)
    return gradient


@_bound
class _OnceThrough(torch.autograd.Function):
    """`value`, whose own graph lacks `source`: its gradients may be taken, but not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value, source):
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, gradient):
        return once(gradient, *ctx.saved_tensors), None


def once_through(value: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`value`, computed from a detached `source`, as something that can be differentiated once."""
    return _OnceThrough.apply(value, source) if source.requires_grad else value


def with_parameters(result: torch.Tensor, of_parameters: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """`result`, with the gradients of an equal sum in the loss's own parameters; both depend on `sources`."""
    if not of_parameters.requires_grad:
        return result
    for source in sources:
        of_parameters = once_through(of_parameters, source)
    return result + (of_parameters - of_parameters.detach())


@_bound
class _KnownGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, value, grad, columns):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *inputs[2:])

    @staticmethod
    def backward(ctx, grad_value):
        x, grad, columns = ctx.saved_tensors
        if columns is not None:
            grad_value = columns.to(grad_value.dtype) @ grad_value
        elif grad_value.ndim:
            grad_value = grad_value.view(-1, *[1] * (grad.ndim - 1))
        return once(grad_value * grad, x), None, None, None


def known_gradient(
    x: torch.Tensor, value: torch.Tensor, grad: torch.Tensor, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """The 0-d `value`, as a function of `x` with gradient `grad` (of x's shape). Differentiable once.

    With `value` (m,) and `x` (m, ...): m values, each a function of one entry of x. With `value` (m,), `x` (N, T)
    and `columns` (T, m) of zeros and ones: each value is a function of its own columns.
    """
    return _KnownGradient.apply(x, value, grad, columns)


def per_length_gradients(function, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, gradient of their sum at v); a column belongs to one length, so this is each length's own gradient."""
    if torch.compiler.is_compiling() or check.transformed():

        def total(x):
            # Traced, an autograd.Function right on the input of func.grad would lose its gradient (torch 2.13).
            values = function(x.view_as(x))
            return values.sum(), values

        grad, values = torch.func.grad(total, has_aux=True)(v)
        return values, grad
    v = v.detach().requires_grad_()
    values = function(v)
    if not values.requires_grad:
        return values, torch.zeros_like(v)
    (grad,) = torch.autograd.grad(values.sum(), v, retain_graph=True, allow_unused=True)
    return values, torch.zeros_like(v) if grad is None else grad


def chunk_rows(row_elements: int, device: torch.device, total: int) -> int:
    """How many rows of `row_elements` a chunk takes: what stays in a CPU's L2 cache, or 256 MiB on a GPU."""
    if torch.compiler.is_compiling():
        return max(total, 1)
    budget = 1 << 17 if device.type == "cpu" else 1 << 26
    return max(1, budget // max(row_elements, 1))
