"""A training step of the head as CUDA graphs: a replay in place of the launches that small batches wait for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core import check
from ..core.known_gradient import once
from ..core.labels import to_multi_hot
from ..core.precision import scaled_training
from ..losses.bank import Bank
from .objective import NestedObjective, ObjectiveResult
from .step import STEP


def make_graphed(
    objective: NestedObjective,
    features: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor | None = None,
    *,
    num_warmup_iters: int = 3,
) -> GraphedObjective:
    """An objective as CUDA graphs, called like the objective; in the manner of `torch.cuda.make_graphed_callables`.

    The samples (features, labels and, for losses with a bank, index) say shapes, dtypes and whether the features
    need a gradient; their values do not matter, and what the warm-up writes into a bank is taken back. On a CPU
    there is nothing to capture and the result calls the objective.

    Args:
        objective: whose forward, losses, distillation, weights, bank update and gradients are captured.
        features, labels, index: what a call takes.
        num_warmup_iters: eager steps before the capture; they compile the kernels.
    """
    if not isinstance(objective, NestedObjective):
        raise TypeError(f"objective: expected a NestedObjective, got {check.describe(objective)}")
    objective.layer.check_features(features, "features")
    check.tensor(labels, "labels")
    if index is not None:
        check.tensor(index, "index")
    check.positive_int(num_warmup_iters, "num_warmup_iters")
    graphed = GraphedObjective(objective)
    if features.device.type == "cuda":
        if objective.group() is not None:
            raise ValueError("objective: its step with several ranks is no CUDA graph; call it as it is")
        if learns := _learned(objective.loss):
            raise ValueError(
                f"objective: its loss learns {', '.join(learns)}, which no replay gives gradients; call it as it is"
            )
        graphed.capture(features, labels, index, num_warmup_iters)
    return graphed


def replayable(objective: NestedObjective, features: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether a training loop may replay these calls: the kernels serve them, and nothing changes on the host.

    A loss that is told the epoch changes there; one that has parameters to learn gets its gradients from the
    objective alone.
    """
    if features.device.type != "cuda" or hasattr(objective.loss, "set_epoch") or objective.group() is not None:
        return False
    return not _learned(objective.loss) and served_by(objective, features, labels) == "triton"


def served_by(objective: NestedObjective, features: torch.Tensor, labels: torch.Tensor) -> str:
    """The backend that serves a call of the objective."""
    request = objective.request(features, labels)
    return STEP.pick(objective.backend, features.device, (request,)).backend


class GraphedObjective:
    """See `make_graphed`. A call replays the graphs where it fits them, and else runs the objective itself.

    It fits if its tensors have the samples' shapes and dtypes (the last, smaller batch of an epoch does not), and
    the modules' settings (training mode, `label_options` and the like), autocast and the need of a features' gradient
    are those of the capture. `replays` counts the calls that did.

    The layer's parameters and the loss's buffers are read and written where they are: optimizers and
    `load_state_dict` work in place and may be used as always; a tensor that was replaced (`objective.to(...)`) is an
    error. A call's results are its own. Its `backward` must come before the next call. `inputs` are the tensors that
    the graphs read: a call with these, filled in place, spares the copies.
    """

    def __init__(self, objective: NestedObjective):
        self.objective = objective
        self.replays = 0
        self._form = None

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None):
        if self._form is None or not self._fits(features, labels, index):
            return self.objective(features, labels, index)
        if self._addresses() != self._captured:
            raise RuntimeError(
                "a parameter or buffer of the objective was replaced since its capture: capture it anew"
            )
        results = []
        linear = self.objective.layer.hash_layer
        given = [t for t in (features, labels, index) if t is not None]
        total = _Replay.apply(features, linear.weight, linear.bias, self._graphs, given, results)
        self.replays += 1
        return self._unpacked(results[0], total)

    def capture(self, features, labels, index, num_warmup_iters: int) -> None:
        """Capture the graphs at these samples."""
        linear = self.objective.layer.hash_layer
        self.inputs = [t.detach().clone() for t in (features, labels, index) if t is not None]
        self.inputs[0].requires_grad_(features.requires_grad)
        sources = (self.inputs[0], linear.weight, linear.bias)
        wanted = [t for t in sources if t.requires_grad]
        scale = torch.ones((), device=features.device)
        self._shapes, live = [], {}

        def forward():
            with torch.enable_grad():
                result = self.objective(*self.inputs)
            live["total"] = result.total
            parts = [t for t in result if t is not None]
            self._shapes = [None if t is None else t.shape for t in result]
            return [torch.cat([t.detach().reshape(-1) for t in parts])]

        def backward():
            if not wanted:
                return []
            return torch.autograd.grad(live["total"], wanted, scale, retain_graph=True)

        with torch.enable_grad(), _kept(self.objective.loss):
            capture = _Capture(features.device)
            capture.warm_up(lambda: (forward(), backward()), num_warmup_iters)
            (packed,), replay_forward = capture(forward)
            gradients, replay_backward = capture(backward)
        found = dict(zip(map(id, wanted), gradients))
        gradients = [found.get(id(t)) for t in sources]
        self._graphs = _Graphs(self.inputs, packed, scale, gradients, replay_forward, replay_backward)
        self._form, self._told = self._form_of(features, labels, index), _Settings(self.objective)
        self._captured = self._addresses()

    def _form_of(self, features, labels, index):
        tensors = [None if t is None else (t.shape, t.dtype, t.device) for t in (features, labels, index)]
        autocast = torch.is_autocast_enabled(features.device.type)
        return (*tensors, autocast, scaled_training(features))

    def _fits(self, features, labels, index) -> bool:
        for tensor in (features, labels, *(() if index is None else (index,))):
            if not isinstance(tensor, torch.Tensor):
                return False  # the objective says what is wrong
        wants = torch.is_grad_enabled() and features.requires_grad and not self.inputs[0].requires_grad
        return not wants and self._form_of(features, labels, index) == self._form and self._told.hold(self.objective)

    def _addresses(self) -> list[int]:
        return [t.data_ptr() for t in (*self.objective.parameters(), *_state(self.objective).values())]

    def _unpacked(self, packed, total) -> ObjectiveResult:
        sizes = [0 if shape is None else shape.numel() for shape in self._shapes]
        parts = [None if s is None else t.view(s) for s, t in zip(self._shapes, packed.split(sizes))]
        return ObjectiveResult(total, *parts[1:])


class _Graphs:
    """The captured graphs of a step, the tensors that they read and write, and the number of the newest call.

    `gradients` are those of features, weight and bias where they are wanted, else None, for a gradient `scale` of
    the total.
    """

    def __init__(self, inputs, packed, scale, gradients, replay_forward, replay_backward):
        self.inputs, self.packed, self.scale, self.gradients = inputs, packed, scale, gradients
        self.replay_forward, self.replay_backward = replay_forward, replay_backward
        self.newest = 0

    def forward(self, given: list[torch.Tensor]) -> torch.Tensor:
        """A new call with these inputs: a copy of its packed results."""
        for static, tensor in zip(self.inputs, given):
            if tensor is not static:
                static.detach().copy_(tensor)
        self.replay_forward()
        self.newest += 1
        return self.packed.clone()

    def backward(self, scale: torch.Tensor, wanted) -> list[torch.Tensor | None]:
        """Copies of the newest call's gradients, where they are wanted.

        What becomes a parameter's .grad may be added to, and the next replay writes here again.
        """
        self.scale.copy_(scale)
        self.replay_backward()
        return [t.clone() if t is not None and need else None for t, need in zip(self.gradients, wanted)]


class _Replay(torch.autograd.Function):
    """The total of a graphed call, as a function of features, weight and bias."""

    @staticmethod
    def forward(ctx, features, weight, bias, graphs, given, results):
        results.append(graphs.forward(given))
        ctx.graphs, ctx.call = graphs, graphs.newest
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, weight, bias)
        return results[0][0].clone()

    @staticmethod
    def backward(ctx, scale):
        graphs = ctx.graphs
        if ctx.call != graphs.newest:
            raise RuntimeError("a graphed objective's backward must come before its next call, which came first")
        if scale is None:
            return (None,) * 6
        with torch.no_grad():
            found = graphs.backward(scale, ctx.needs_input_grad)
        return *(once(gradient, *ctx.saved_tensors, scale) for gradient in found), None, None, None


class _Capture:
    """Captures functions, one after the other, into CUDA graphs that share their memory."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), None

    def warm_up(self, function: Callable, times: int) -> None:
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(times):
                    function()
            torch.cuda.current_stream().wait_stream(self.stream)

    def __call__(self, function: Callable):
        """(what the function returns, a function that computes it again in place)."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                outputs = function()
            self.pool = graph.pool()
        return outputs, graph.replay


def _learned(loss: torch.nn.Module) -> list[str]:
    """Names of what a loss learns itself."""
    return [name for name, parameter in loss.named_parameters() if parameter.requires_grad]


class _Settings:
    """What a module and its parts were told: their attributes that are numbers, flags, texts, or tuples of these."""

    def __init__(self, module: torch.nn.Module):
        self.parts = tuple(module.modules())
        self._told = [(vars(part), *item) for part in self.parts for item in vars(part).items() if _plain(item[1])]

    def hold(self, module: torch.nn.Module) -> bool:
        """Whether the module is told the same now; asked at every replay: what was told is looked up, not found."""
        if tuple(module.modules()) != self.parts:
            return False
        for attributes, name, value in self._told:
            now = attributes.get(name)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        return True


def _plain(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers, and what banks hold, by name."""
    held = ((name, part) for name, part in module.named_modules() if isinstance(part, Bank))
    stored = {f"{name}.{key}": t for name, bank in held for key, t in bank.tensors().items()}
    return {**dict(module.named_buffers()), **stored}


class _kept:
    """Context that leaves a module's buffers as they were (multi-hot, where ids met multi-hot labels in it)."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.before = {name: tensor.clone() for name, tensor in _state(module).items()}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with torch.no_grad():
            for name, tensor in _state(self.module).items():
                before = self.before[name]
                if before.ndim == 1 and tensor.ndim == 2:
                    before = to_multi_hot(before, tensor.shape[1], tensor.dtype)
                tensor.copy_(before)
