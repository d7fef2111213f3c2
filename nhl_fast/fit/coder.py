"""`NestedCoder`: vectors to packed nested codes, with scikit-learn's conventions."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch

from ..retrieval.vectors import check_vectors, tile_rows, tiles
from .backbone import Behind
from .layer import DEFAULT_CODE_LENGTHS, fit_layer
from .settings import ROTATION_STEPS, SAMPLE_ROWS, Settings

_CHUNK_BYTES = 64 * 2**20


class NotFittedError(ValueError, AttributeError):
    """A coder that was not fitted yet; the same bases as scikit-learn's error of this name."""


class NestedCoder:
    """Fits a nested hash layer to vectors without labels and turns vectors into packed codes.

    An estimator as scikit-learn's (`fit`, `transform`, `fit_transform`, `get_params`, `set_params`; it works in
    pipelines and `clone`), which it does not need. Parameters are those of `fit_layer`; they are checked by `fit`.

    Attributes (after `fit`):
        layer_: the NestedHashLayer.
        backbone_: what is in front of it, a trained copy of `backbone`, or None.
        n_features_in_: width d of the vectors.
    """

    def __init__(
        self,
        code_lengths=DEFAULT_CODE_LENGTHS,
        method: str = "learned",
        *,
        normalize: bool = True,
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
        progress: bool = True,
    ):
        """normalize: rows are brought to length 1, in `fit` and `transform` alike, as cosines want it."""
        self.code_lengths, self.method, self.normalize = code_lengths, method, normalize
        self.sample_rows, self.rotation_steps, self.steps = sample_rows, rotation_steps, steps
        self.anchors, self.neighbors, self.drawn = anchors, neighbors, drawn
        self.temperature, self.lr, self.backbone, self.seed = temperature, lr, backbone, seed
        self.device, self.progress = device, progress

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict:
        """The parameters by name (`deep` changes nothing: none is an estimator)."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **parameters) -> NestedCoder:
        """Set parameters by name; ValueError for one that there is not."""
        names = self._names()
        for name, value in parameters.items():
            if name not in names:
                raise ValueError(f"{name}: expected one of {', '.join(names)}, got a parameter that there is not")
            setattr(self, name, value)
        return self

    def fit(self, X, y=None) -> NestedCoder:
        """Fit to vectors X (n, d), an array (a memory map, too) or a tensor; y is ignored."""
        vectors, backbone = check_vectors(X, "X"), copy.deepcopy(self.backbone)
        try:
            layer = fit_layer(vectors, **{**self.get_params(), "backbone": backbone})
        except ValueError as error:
            if str(error).startswith("features: "):
                raise ValueError(str(error).replace("features", "X", 1)) from None
            raise
        self.layer_, self.backbone_, self.n_features_in_ = layer, backbone, vectors.shape[1]
        return self

    def transform(self, X) -> Any:
        """Packed codes (n, ceil(L / 8)) uint8 of vectors X (n, d): an array for an array, a tensor for a tensor."""
        return self._each_chunk(X, self._fitted().encode)

    def fit_transform(self, X, y=None) -> Any:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X, y).transform(X)

    def outputs(self, X) -> Any:
        """Raw outputs (n, L) float32, whose signs are the code: for `rescore` and asymmetric recall."""
        return self._each_chunk(X, self._fitted().project)

    def _each_chunk(self, X, encode):
        """`encode` of all rows, chunk by chunk."""
        vectors = check_vectors(X, "X", self.n_features_in_)
        device = next(self.layer_.parameters()).device
        step = tile_rows(4 * (vectors.shape[1] + self.layer_.out_features), _CHUNK_BYTES)
        read = tiles(vectors, "X", torch.float32, device, self.normalize, step)
        codes = torch.cat([encode(rows).cpu() for _, rows in read])
        return codes.numpy() if isinstance(X, np.ndarray) else codes.to(vectors.device)

    def _fitted(self) -> Behind:
        if not hasattr(self, "layer_"):
            raise NotFittedError("NestedCoder: call fit before transform")
        return Behind(self.layer_, self.backbone_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "layer_")

    def __sklearn_tags__(self):
        from sklearn.utils import Tags, TargetTags, TransformerTags  # it is scikit-learn that asks

        return Tags(estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags())

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = [f"{n}={v!r}" for n, v in self.get_params().items() if v is not defaults[n] and v != defaults[n]]
        return f"NestedCoder({', '.join(changed)})"
