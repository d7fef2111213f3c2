"""A nested layer learned from vectors alone: neighbours in the codes as in the vectors, at every length at once."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..head.layer import NestedHashLayer
from ..head.objective import NestedObjective
from ..losses.unlabelled import Neighbors
from ..retrieval.vectors import nearest_vectors
from ..training.checkpoint import load_state, save_state
from ..training.lock import hold
from .settings import CHECKPOINT, Settings

SCALE_RATE = 5.0  # the learned scales' rate over that of the weights


class Learner:
    """Trains weight and bias from a start, on a sample of rows in memory.

    Args:
        rows: (n, d) float32 sample; directions are compared, so rows are taken at length 1 for their cosines.
        weight, bias: (L, d), (L,) the start.
        code_lengths: the m code lengths.
        settings: see `Settings`.
        seed: of the batches; a step's batch follows from the seed and its number alone.
        backbone: what makes the layer's features of rows, trained along; None: the rows are the features.
    """

    def __init__(self, rows, weight, bias, code_lengths, settings: Settings, seed: int, backbone=None):
        self.rows, self.unit = rows, torch.nn.functional.normalize(rows)
        self.code_lengths, self.settings, self.seed = code_lengths, settings, seed
        with torch.random.fork_rng([]):  # the layer's own start, drawn on the CPU
            layer = NestedHashLayer(weight.shape[1], code_lengths, dtype=torch.float32)
        loss = Neighbors(code_lengths, temperature=settings.temperature)
        self.objective = NestedObjective(layer, loss, distill_weight=0.0, weighting="uniform").to(rows.device)
        self.weight, self.bias, self.log_scales = layer.hash_layer.weight, layer.hash_layer.bias, loss.log_scales
        with torch.no_grad():
            self.weight.copy_(weight), self.bias.copy_(bias)
        self.backbone = backbone
        groups = [
            {"params": [self.weight, self.bias], "rate": 1.0}, {"params": [self.log_scales], "rate": SCALE_RATE},
        ]  # fmt: skip
        if backbone is not None:
            backbone.train()
            groups.append({"params": list(backbone.parameters()), "rate": 1.0})
        self.optimizer = torch.optim.Adam(groups, lr=settings.lr)
        self.step = 0
        self.neighbors: torch.Tensor | None = None
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def find_neighbors(self) -> None:
        """(n, neighbors) int32: the nearest rows of every row."""
        count = min(self.settings.neighbors, len(self.rows) - 1)
        own = torch.arange(len(self.rows), device=self.rows.device)
        self.neighbors = nearest_vectors(self.unit, self.unit, count, metric="product", own=own)[1].int()

    def batch(self, step: int) -> torch.Tensor:
        """The distinct rows of step `step` (from 1): anchors without return a pass, and some neighbours of each."""
        settings, n = self.settings, len(self.rows)
        anchors = min(settings.anchors, n)
        a_pass, place = divmod(step - 1, max(1, n // anchors))
        if self._order[0] != a_pass:
            self._order = a_pass, torch.randperm(n, generator=self._generator(2 * a_pass))
        chosen = self._order[1][place * anchors : (place + 1) * anchors]
        width = self.neighbors.shape[1]
        drawn = torch.rand(len(chosen), width, generator=self._generator(2 * step + 1)).argsort(1)
        near = self.neighbors[chosen].long().cpu().gather(1, drawn[:, : min(settings.drawn, width)])
        return torch.cat([chosen, near.flatten()]).unique().to(self.rows.device)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + stream * 7_919 + 1) % 2**63)

    def take_step(self) -> torch.Tensor:
        """One step of the optimizer; the divergences (m,) of its batch."""
        self.step += 1
        settings, index = self.settings, self.batch(self.step)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            rows = self.rows[index]
            result = self.objective(rows if self.backbone is None else self.backbone(rows), self.unit[index])
            result.total.backward()
        rate = settings.lr * 0.5 * (1 + math.cos(math.pi * (self.step - 1) / settings.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()
        return result.losses

    def state(self, described: dict) -> dict:
        """What a checkpoint holds; `described` says of which fit."""
        return {
            **{"described": described, "step": self.step, "neighbors": self.neighbors},
            **{name: getattr(self, name).detach() for name in ("weight", "bias", "log_scales")},
            **({} if self.backbone is None else {"backbone": self.backbone.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on from what `state` gave."""
        self.step, self.neighbors = state["step"], state["neighbors"].to(self.rows.device)
        for name in ("weight", "bias", "log_scales"):
            getattr(self, name).detach().copy_(state[name])
        if self.backbone is not None:
            self.backbone.load_state_dict(state["backbone"])
        self.optimizer.load_state_dict(state["optimizer"])

    def described(self) -> dict:
        """What must be equal where a fit goes on."""
        digest = hashlib.sha256(self.rows.cpu().numpy()).hexdigest()
        said = {**asdict(self.settings), "seed": self.seed, "code_lengths": list(self.code_lengths), "rows": digest}
        return said if self.backbone is None else {**said, "backbone": _shapes(self.backbone)}


def fit(
    rows, weight, bias, code_lengths, settings: Settings, seed: int, folder: Path | None, resume, every, progress,
    backbone=None,
):  # fmt: skip
    """(weight, bias) after all steps of a `Learner`, which owns `folder` meanwhile; the backbone has changed."""
    learner = Learner(rows, weight, bias, code_lengths, settings, seed, backbone)
    with contextlib.ExitStack() as owned:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            owned.enter_context(hold(folder))
        _take_steps(learner, None if folder is None else folder / CHECKPOINT, resume, every, progress)
    if backbone is not None:
        backbone.eval()
    return learner.weight.detach(), learner.bias.detach()


def _take_steps(learner: Learner, file: Path | None, resume: bool, every: int, progress: bool) -> None:
    """All steps, with a checkpoint in `file` at the start, after every `every` steps and at the end."""
    settings = learner.settings
    described = None if file is None else learner.described()
    if resume:
        state = load_state(file)
        _check_same(state, described, file)
        learner.restore(state)
    else:
        learner.find_neighbors()
        if file is not None:
            save_state(file, learner.state(described))
    shown = None if progress else True
    lines = progress and sys.stderr is not None and not sys.stderr.isatty()
    began = time.monotonic()
    with tqdm(total=settings.steps, initial=learner.step, desc="fitting", disable=shown, leave=False) as bar:
        while learner.step < settings.steps:
            values = learner.take_step()
            bar.update()
            last = learner.step == settings.steps
            if last or learner.step % 100 == 0:
                mean = float(values.mean())
                if not math.isfinite(mean):
                    raise ValueError(f"lr: expected a rate at which the fit does not diverge, got {settings.lr:g}")
                bar.set_postfix(loss=f"{mean:.3f}")
                if lines and (last or learner.step % max(100, settings.steps // 1000 * 100) == 0):
                    seconds = f"{time.monotonic() - began:.1f} s"
                    text = f"step {learner.step}/{settings.steps}: loss {mean:.4f}, {seconds}"
                    print(text, file=sys.stderr, flush=True)
            if file is not None and (last or learner.step % every == 0):
                save_state(file, learner.state(described))


def _check_same(state: dict, described: dict, file: Path) -> None:
    old = state.get("described")
    if isinstance(old, dict) and old.get("backbone") != described.get("backbone"):
        raise ValueError(f"backbone: expected that of {file}, {old.get('backbone')}, got {described.get('backbone')}")
    if not isinstance(old, dict) or old.keys() != described.keys():
        raise ValueError(f"checkpoint: {file} is no state of a fit")
    if old["rows"] != described["rows"]:
        raise ValueError(f"checkpoint: {file} was fitted to other features, or another sample of them")
    changed = [f"{name} {old[name]!r} -> {described[name]!r}" for name in described if old[name] != described[name]]
    if changed:
        raise ValueError(f"checkpoint: {file} was fitted with other settings ({', '.join(changed)})")


def _shapes(module: torch.nn.Module) -> str:
    """What a module's state looks like."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in module.state_dict().items())
