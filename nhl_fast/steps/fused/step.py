"""The head's training step and the losses' values, from the fused operators."""

from __future__ import annotations

import torch
import triton

from ...core import check
from ...core.known_gradient import with_parameters
from ...core.precision import no_autocast
from ...head.layer import refuses_layer
from ...head.request import NOT_FINITE, StepRequest, outputs_form, refuses_options
from ...losses.base import NestedLoss
from . import bodies, distillation, projection, weighting
from .center import project_center
from .operators import direct
from .prepare import checked_by_kernels, reads_labels_alone, store

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_BITS, MAX_LENGTHS = 1024, 16


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were imported)."""
    return not isinstance(weighting.kernels.combine_kernel, triton.JITFunction)


def refuses_tensor(x: torch.Tensor, name: str) -> str | None:
    """Why a tensor cannot go into the kernels, or None."""
    if x.dtype not in DTYPES:
        return f"{name} is {x.dtype}, the kernels take float32, float16 and bfloat16"
    if x.device.type != "cuda" and not (x.device.type == "cpu" and interpreted()):
        return f"{name} is on {x.device}, the kernels run on CUDA devices (on a CPU with TRITON_INTERPRET=1)"
    if check.transformed():
        return f"{name} is within a transform of torch.func"
    return None


def refuses_weight(weight: torch.Tensor, features: torch.Tensor) -> str | None:
    """Why the layer's weight cannot be served beside these features, or None."""
    if weight.device != features.device:
        return f"the layer's weight is on {weight.device}, the features on {features.device}"
    return refuses_tensor(weight, "the layer's weight")


def refuses_lengths(code_lengths) -> str | None:
    """Why these code lengths cannot be served, or None."""
    if code_lengths[-1] > MAX_BITS or len(code_lengths) > MAX_LENGTHS:
        return f"the kernels take at most {MAX_LENGTHS} code lengths of at most {MAX_BITS} bits"
    return None


def refuses_projection(layer, features: torch.Tensor) -> str | None:
    """Why the layer's projection of these features cannot be served, or None."""
    return (
        refuses_layer(layer)
        or refuses_lengths(layer.code_lengths)
        or refuses_tensor(features, "the features' tensor")
        or refuses_weight(layer.hash_layer.weight, features)
    )


def refuses_loss(loss: NestedLoss, u: torch.Tensor, labels) -> str | None:
    """Why a loss of these outputs cannot be served, or None."""
    forms = loss.forms()
    if not forms:
        return f"{type(loss).__name__} has no fused form"
    why = refuses_lengths(loss.code_lengths) or refuses_tensor(u, "the outputs' tensor")
    for form in forms:
        why = why or bodies.refuses(form) or bodies.elsewhere(form, u.device)
    return why


def refuses_step(request: StepRequest) -> str | None:
    """Why a step cannot be served, or None."""
    return (
        refuses_options(request)
        or refuses_lengths(request.code_lengths)
        or refuses_tensor(request.features, "the features' tensor")
        or refuses_weight(request.weight, request.features)
        or refuses_loss(request.loss, outputs_form(request), request.labels)
    )


def check_on_host(tensor: torch.Tensor) -> bool:
    """Whether values are checked before the kernels run: no device-side assertion stops the interpreter."""
    return tensor.device.type == "cpu"


def prepare(loss: NestedLoss, forms, u, labels, index):
    """Forms and labels as the bodies take them; a bank takes the rows in."""
    if not checked_by_kernels(loss, forms):
        labels = loss.prepare(u, labels, index)[1]
        return loss.forms(), labels
    if check_on_host(u):
        loss.check_labels(labels, u.shape[0])
    return forms, store(loss, u, labels, index)


def loss_values(loss: NestedLoss, u: torch.Tensor, labels, index) -> torch.Tensor:
    """(m,) values of a loss as functions of u (N, L)."""
    loss.check_outputs(u)
    plain, lengths = u.detach().float().contiguous(), list(loss.code_lengths)
    forms, labels = prepare(loss, loss.forms(), plain, labels, index)
    values, deltas = bodies.values_and_deltas(forms, plain, labels, lengths)
    found = weighting.with_gradient(u, by_programs(values.detach()), deltas, lengths)
    return with_parameters(found, by_programs(values).sum(0), u) if values.requires_grad else found


def by_programs(values: torch.Tensor) -> torch.Tensor:
    """Values (m,) or partial sums (P, m) as partial sums."""
    return values if values.ndim == 2 else values[None]


def step(request: StepRequest):
    """(total, losses, distill, weights, dots or None) of a request; only the total has a gradient."""
    with no_autocast(request.features):
        return _step(request)


def _step(request: StepRequest):
    features, lengths, fixed = request.features, list(request.code_lengths), request.fixed_weights
    if features.shape[0] == 0:
        raise ValueError(f"features: expected at least one row, got {check.describe(features)}")
    recorded = torch.is_grad_enabled()
    with torch.no_grad():
        u, gram, attached, deltas = outputs_and_loss(request, recorded)
        values = by_programs(attached.detach())
        distill = None
        if request.distill_weight and len(lengths) > 1:
            distill = direct(distillation.distill)(u, lengths, request.distill_weight, deltas)
            distill = by_programs(distill)
    results = weighting.evaluate(
        features, request.weight, request.bias, u, deltas, gram, values, distill, request.distill_weight,
        fixed if fixed is None else fixed.to(u.device), lengths, request.check_finite and request.scaled,
    )  # fmt: skip
    weights, dots, losses, cascade = (t.detach() for t in results[1:5])
    total = results[0]
    if attached.requires_grad:
        total = with_parameters(total, weights @ by_programs(attached).sum(0), request.weight, features)
    return total, losses, cascade, weights, dots if fixed is None else None


def outputs_and_loss(request: StepRequest, recorded: bool):
    """(u, feature Gram matrix or empty, values, deltas); `recorded`: a bank takes the rows in, parameters learn."""
    loss, labels, index, lengths = request.loss, request.labels, request.index, list(request.code_lengths)
    features, weight, bias = (t.detach() for t in (request.features, request.weight, request.bias))
    gram = request.fixed_weights is None and weighting.dots_kernels.uses_gram(*features.shape, lengths)
    finite = request.check_finite and not request.scaled and features.is_cuda
    forms = loss.forms()
    if forms[0].body == "center" and reads_labels_alone(loss, forms):
        like = features.new_empty(features.shape[0], lengths[-1], dtype=torch.float32)
        with torch.set_grad_enabled(recorded):
            _, labels = prepare(loss, forms, like, labels, index)
        # In the projection's own launch.
        problem = bodies.center_problem(forms[0], lengths)
        u, matrix, values, deltas = direct(project_center)(features, weight, bias, labels, *problem, gram, finite)
        check_outputs(request, u)
        bodies.add(values, deltas, forms[1:], u, labels, lengths)
        return u, matrix, values, deltas
    u, matrix = direct(projection.project)(features, weight, bias, gram, finite)
    check_outputs(request, u)
    with torch.set_grad_enabled(recorded):
        forms, labels = prepare(loss, forms, u, labels, index)
        return u, matrix, *bodies.values_and_deltas(forms, u, labels, lengths)


def check_outputs(request: StepRequest, u) -> None:
    """On a CPU (the interpreter); on a CUDA device the projection asserts it."""
    if request.check_finite and check_on_host(u):
        check.values(torch.isfinite(u).all(), NOT_FINITE)
