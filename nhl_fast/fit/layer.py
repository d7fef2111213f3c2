"""`fit_layer`: a nested hash layer for vectors without labels."""

from __future__ import annotations

import torch

from ..core import check
from ..core.names import FIT_METHODS
from ..head.layer import NestedHashLayer
from . import closed
from .backbone import check_backbone, outputs_of
from .rows import check_features, moments, sample
from .settings import ROTATION_STEPS, SAMPLE_ROWS, Settings, check_checkpoint, resolve_device

DEFAULT_CODE_LENGTHS = (8, 16, 32, 64, 128, 256)
_CLOSED_SAMPLE = 20_000  # rows that a rotation is found on


@check.memory
@torch.no_grad()
def fit_layer(
    features,
    code_lengths=DEFAULT_CODE_LENGTHS,
    method: str = "learned",
    *,
    normalize: bool = False,
    sample_rows: int = SAMPLE_ROWS,
    rotation_steps: int = ROTATION_STEPS,
    steps: int = Settings.steps,
    anchors: int = Settings.anchors,
    neighbors: int = Settings.neighbors,
    drawn: int = Settings.drawn,
    temperature: float = Settings.temperature,
    lr: float = Settings.lr,
    backbone: torch.nn.Module | None = None,
    seed: int = 0,
    device=None,
    checkpoint=None,
    resume: bool = False,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> NestedHashLayer:
    """Fit a nested hash layer to vectors that have no labels.

    Args:
        features: (n, d) vectors of any floating dtype or int8, tensor or NumPy array. A memory map is read once, in
            chunks, for its mean and covariance; a sample of its rows is held.
        code_lengths: the m code lengths in bits, strictly increasing; they may exceed d.
        method: "learned" (from "itq", trained so that codes of every length have the vectors' neighbours), "itq"
            (nested by blocks), "pca" (the sign of the leading components, at most as many bits as directions in which
            the rows vary) or "random" (Gaussian projections). All put the threshold at the mean.
        normalize: bring rows to length 1 as they are read, as cosines want it. The layer is linear and takes rows as
            they come: give it rows of length 1 then (`NestedCoder` does so itself).
        sample_rows: rows held in memory; they train, and 20,000 of them fit rotations.
        rotation_steps: alternations of ITQ.
        steps, anchors, neighbors, drawn, temperature, lr: of "learned", see `nhl_fast.fit.settings.Settings`.
        backbone: a module that trains along with "learned", in front of the layer: it takes rows (n, d) float32 and
            gives (n, w), whose codes learn the neighbours of the rows themselves. It changes in place and is left in
            evaluation mode, on the device; the layer takes `backbone(features)`.
        seed: equal seeds give equal layers on the same device with the same number of threads.
        device: where to compute, "cpu" or "cuda"; None: where the features are. The layer is there, too.
        checkpoint: folder where "learned" keeps its state every `checkpoint_every` steps, made where it is absent.
        resume: go on from the checkpoint; the result is that of an unbroken fit.
        progress: show a bar on a terminal, elsewhere some ten lines (on stderr).

    Returns:
        NestedHashLayer, float32, in evaluation mode; `encode(features)` gives packed codes.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it, or features are not finite or all the same.
        FileExistsError, FileNotFoundError: the checkpoint folder and `resume` do not fit.
    """
    features = check_features(features)
    lengths = check.code_lengths(code_lengths)
    check.one_of(method, "method", FIT_METHODS)
    count = check.positive_int(sample_rows, "sample_rows", minimum=2)
    check.flag(normalize, "normalize")
    check.positive_int(rotation_steps, "rotation_steps")
    backbone = check_backbone(backbone, method)
    settings = Settings(steps, anchors, neighbors, drawn, temperature, lr)
    seed = check.positive_int(seed, "seed", minimum=0, maximum=2**31 - 1)
    device = resolve_device(device, features)
    folder = check_checkpoint(checkpoint, resume)
    check.positive_int(checkpoint_every, "checkpoint_every")
    check.flag(progress, "progress")
    if folder is not None and method != "learned":
        raise ValueError(f"checkpoint: expected None with method {method!r}, which has no steps, got {str(folder)!r}")

    generator = torch.Generator().manual_seed(seed)
    if backbone is None:
        found, rows = moments(features, device, normalize), None
    else:
        rows = sample(features, count, generator, device, normalize)
        inner = outputs_of(backbone.to(device), rows)
        found = moments(inner, device)
    parts = closed.components(found)
    if method == "random":
        return _layer(closed.random_weight(features.shape[1], lengths[-1], generator), found, lengths, device)
    if method == "pca":
        return _layer(closed.pca_weight(parts, lengths[-1]), found, lengths, device)
    if rows is None:
        rows = inner = sample(features, count, generator, device, normalize)
    if resume:  # the start is the checkpoint's
        weight, bias = inner.new_zeros(lengths[-1], inner.shape[1]), inner.new_zeros(lengths[-1])
    else:
        centred = inner[torch.randperm(len(inner), generator=generator)[:_CLOSED_SAMPLE].to(device)]
        centred = centred - found.mean.to(device, torch.float32)
        weight = closed.itq_weight(parts, centred, lengths, rotation_steps, generator)
        if method == "itq":
            return _layer(weight, found, lengths, device)
        spread = ((weight.double() @ found.covariance) * weight).sum(1).sqrt()
        weight = weight / spread[:, None]
        bias = -(weight @ found.mean)
    from .learn import fit  # what it needs (tqdm, safetensors) is loaded where something is learned

    start = weight.float(), bias.float()
    weight, bias = fit(rows, *start, lengths, settings, seed, folder, resume, checkpoint_every, progress, backbone)
    return _filled(weight, bias, lengths, device)


def _layer(weight: torch.Tensor, found, lengths, device) -> NestedHashLayer:
    """The layer whose outputs are `weight` (L, d) times the centred features."""
    return _filled(weight, -(weight.double() @ found.mean), lengths, device)


def _filled(weight, bias, lengths, device) -> NestedHashLayer:
    with torch.random.fork_rng([]):  # the layer's own start, drawn on the CPU
        layer = NestedHashLayer(weight.shape[1], lengths, dtype=torch.float32)
    layer.hash_layer.weight.copy_(weight)
    layer.hash_layer.bias.copy_(bias)
    return layer.to(device).eval()
