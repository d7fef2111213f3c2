"""A run of `nhl-fast fit`: a layer fitted to vectors, measured beside its baselines, with its codes in one folder."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from ..core.environment import continued, environment
from ..core.files import existing_file, read_json, write_json
from ..core.names import FIT_DATA, FIT_METHODS
from ..data.feature_files import read_features
from ..head.layer import NestedHashLayer
from ..retrieval.recall import neighbor_recall
from ..retrieval.vectors import SomeRows, check_vectors, tile_rows, tiles
from ..training.arrays import load_array, save_array, save_csv
from ..training.checkpoint import load_weights, save_weights
from ..training.lock import claim
from ..training.run_folder import RunFolder
from .backbone import Behind, HiddenLayer
from .layer import DEFAULT_CODE_LENGTHS, fit_layer
from .settings import SAMPLE_ROWS, Settings

EMBEDDED = "embeddings.npy"  # in the run folder: the vectors of texts or pictures
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FitConfig:
    """What a fit is made with; see `fit_layer`. `queries` rows are held out, `k` neighbours are looked for.

    hidden: numbers of a `HiddenLayer` that trains along, in front of the layer; None: there is none.
    """

    method: str = "learned"
    code_lengths: tuple[int, ...] = DEFAULT_CODE_LENGTHS
    normalize: bool = True
    queries: int = 2000
    k: int = 10
    baselines: bool = True
    sample_rows: int = SAMPLE_ROWS
    steps: int = Settings.steps
    temperature: float = Settings.temperature
    lr: float = Settings.lr
    seed: int = 0
    hidden: int | None = None
    device: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "code_lengths", check.code_lengths(self.code_lengths))
        check.one_of(self.method, "method", FIT_METHODS)
        check.device(self.device)
        for name in ("queries", "k", "steps"):
            check.positive_int(getattr(self, name), name)
        check.positive_int(self.sample_rows, "sample_rows", minimum=2)
        check.positive_int(self.seed, "seed", minimum=0, maximum=2**31 - 1)
        for name in ("temperature", "lr"):
            check.number(getattr(self, name), name, positive=True)
        if self.hidden is not None:
            check.positive_int(self.hidden, "hidden")
            if self.method != "learned":
                raise ValueError(f"hidden: expected None with method {self.method!r}, which trains nothing")

    def backbone(self, width: int) -> HiddenLayer | None:
        """What is in front of the layer, for vectors of `width` numbers, before it is trained."""
        if self.hidden is None:
            return None
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return HiddenLayer(width, self.hidden)

    def layer(self, features, code_lengths, method: str, **options) -> NestedHashLayer:
        """`fit_layer` with these settings."""
        given = {name: getattr(self, name) for name in ("normalize", "sample_rows", "seed", "device")}
        if method == "learned":
            given |= {name: getattr(self, name) for name in ("steps", "temperature", "lr")}
        return fit_layer(features, code_lengths, method, **given, **options)


def open_vectors(path, name: str = "embeddings") -> torch.Tensor:
    """Vectors (n, d) of an .npy file, mapped, or of an .npz file (by the names that training takes), in memory."""
    path = existing_file(path, name)
    if path.suffix.lower() == ".npz":
        try:
            array = read_features(path)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    else:
        load_array(path, name) if path.stat().st_size < 4096 else None  # a clear error for what is no array
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{name}: {path} is no readable .npy file ({error})") from error
    return check_vectors(as_tensor(array, name), name)


def fingerprint(vectors: torch.Tensor) -> str:
    """What tells these vectors from others: their shape, dtype and 1,000 of their rows."""
    rows = vectors[:: max(1, len(vectors) // 1000)].contiguous()
    digest = hashlib.sha256(f"{tuple(vectors.shape)} {vectors.dtype}".encode())
    digest.update(rows.view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class FitRun:
    """A fitted layer in its folder.

    Attributes:
        folder: its files.
        config: its settings.
        data: where its vectors came from.
        layer: the NestedHashLayer.
        backbone: the HiddenLayer in front of it, or None.
    """

    folder: RunFolder
    config: FitConfig
    data: dict
    layer: NestedHashLayer
    backbone: HiddenLayer | None = None

    @classmethod
    def open(cls, path, device=None) -> FitRun:
        """A finished fit.

        Raises:
            FileNotFoundError, ValueError: there is none, or it has not ended.
        """
        folder = RunFolder(path)
        stored = folder.read_config()
        config = stored_config(folder, stored)
        if not folder.weights().exists():
            raise FileNotFoundError(f"run: {folder.path} has not ended; go on with it: nhl-fast fit --resume")
        width = stored["data"]["width"]
        layer, backbone = NestedHashLayer(width, config.code_lengths), config.backbone(width)
        load_weights(folder.weights(), _saved(layer, backbone))
        layer.to(device or "cpu").eval()
        if backbone is not None:
            backbone.to(device or "cpu").eval()
        return cls(folder, config, stored["data"], layer, backbone)

    def encode(self, vectors, name: str = "vectors") -> torch.Tensor:
        """Packed codes (n, ceil(L/8)) uint8 on the CPU."""
        vectors = check_vectors(vectors, name, self.layer.in_features)
        return torch.cat(list(each_chunk(Behind(self.layer, self.backbone), vectors, name, self.config.normalize)))

    def rows(self, split: str) -> torch.Tensor:
        """The rows in the file of vectors that the codes of a split stand for."""
        query = torch.tensor(read_json(self.folder.split)["query"])
        if split == "query":
            return query
        kept = torch.ones(self.data["rows"], dtype=torch.bool)
        kept[query] = False
        return kept.nonzero().flatten()


def is_fit(path) -> bool:
    """Whether a folder is that of a fit of vectors."""
    try:
        return RunFolder(path).read_config()["data"].get("name") == FIT_DATA
    except (OSError, ValueError, TypeError):
        return False


def stored_config(folder: RunFolder, stored: dict) -> FitConfig:
    """The settings in config.json; ValueError where they are none of a fit."""
    if stored["data"].get("name") != FIT_DATA:
        raise ValueError(f"run: {folder.path} is no fit of vectors")
    try:
        return FitConfig(**stored["config"])
    except TypeError:
        raise ValueError(f"run: {folder.config} is not the settings of a fit") from None


def _saved(layer: NestedHashLayer, backbone: HiddenLayer | None) -> torch.nn.Module:
    """What the file of weights holds: a layer alone as it always was."""
    return layer if backbone is None else Behind(layer, backbone)


def each_chunk(behind: Behind, vectors, name: str, unit: bool, raw: bool = False):
    """Codes (or raw outputs) of all vectors on the CPU, a chunk at a time."""
    device = next(behind.parameters()).device
    step = tile_rows(4 * (vectors.shape[1] + behind.layer.out_features), _CHUNK_BYTES)
    for _, rows in tiles(vectors, name, torch.float32, device, unit, step):
        yield (behind.project(rows) if raw else behind.encode(rows)).cpu()


def fit_run(vectors, out, config: FitConfig, data: dict, *, resume: bool, progress: bool = True) -> dict:
    """Fit, measure, and write the folder; the metrics. `data` says where the vectors (n, d) came from."""
    lengths, n = config.code_lengths, len(vectors)
    queries = min(config.queries, n // 2)
    if config.k > n - queries:
        raise ValueError(f"k: expected at most {n - queries}, the rows that are not held out, got {config.k}")
    data = {"kind": "embeddings", **data, "name": FIT_DATA, "rows": n, "width": vectors.shape[1]}
    described = {"config": asdict(config), "data": data, "data_fingerprint": fingerprint(vectors)}
    with claim(out, resume) as path:
        folder = RunFolder(path)
        stored = folder.read_config() if resume else {}
        if resume:
            _check_same(folder, stored, described)
        environments = continued(stored.get("environments", []), environment(config.device), 1)
        write_json(folder.config, {**described, "environments": environments})
        if data["kind"] != "embeddings" and not (path / EMBEDDED).exists():
            save_array(path / EMBEDDED, vectors)
        ids = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed))[:queries].sort().values
        write_json(folder.split, {"query": ids.tolist()}, indent=None)
        kept = torch.ones(n, dtype=torch.bool)
        kept[ids] = False
        held_out, database = vectors[ids], SomeRows(vectors, kept.nonzero().flatten())
        started = time.perf_counter()
        options, backbone = {"progress": progress}, None
        if config.method == "learned":
            backbone = config.backbone(vectors.shape[1])
            options |= {"checkpoint": path, "resume": folder.checkpoint.exists(), "backbone": backbone}
        layer = config.layer(database, lengths, config.method, **options)
        seconds = time.perf_counter() - started
        save_weights(folder.weights(), _saved(layer, backbone))
        behind = Behind(layer, backbone)
        folder.all_codes.mkdir(exist_ok=True)
        measured = _Measured(held_out, database, config)
        rows = [measured.row(config.method, dict.fromkeys(lengths, behind), folder)]
        rows.append(measured.row(f"{config.method}, raw query outputs", dict.fromkeys(lengths, behind), raw=True))
        if config.baselines:
            rows += _baselines(measured, config, database)
        metrics = {"queries": queries, "database": n - queries, "k": config.k, "seconds": seconds, "recall": rows}
        write_json(folder.metrics, metrics)
        save_csv(folder.metrics_table, [{"method": r["method"], **r["recall"]} for r in rows])
    return metrics


class _Measured:
    """Recall of layers on held-out queries; the true neighbours are found once."""

    def __init__(self, queries: torch.Tensor, database: SomeRows, config: FitConfig):
        self.queries, self.database, self.config = queries, database, config
        self.neighbors = None

    def row(self, method: str, layers: dict[int, Behind], folder: RunFolder | None = None, raw: bool = False) -> dict:
        """{"method", "recall": {bits: ...}}; the codes of the longest layer go to `folder`."""
        found, config = {}, self.config
        encoded: dict[int, tuple] = {}
        for b, layer in layers.items():
            if id(layer) not in encoded:
                encoded = {id(layer): self._codes(layer, raw)}
            queries, database = encoded[id(layer)]
            result = neighbor_recall(
                queries, database, self.queries, self.database, (b,), config.k, (config.k,),
                asymmetric=raw, metric="cosine" if config.normalize else "product", neighbors=self.neighbors,
            )  # fmt: skip
            self.neighbors = result.neighbors
            found[str(b)] = result.recall[b][config.k]
        if folder is not None:
            save_array(folder.codes("query"), queries)
            save_array(folder.codes("database"), database)
        return {"method": method, "recall": found}

    def _codes(self, layer, raw: bool) -> tuple[torch.Tensor, torch.Tensor]:
        unit = self.config.normalize
        queries = torch.cat(list(each_chunk(layer, self.queries, "embeddings", unit, raw)))
        return queries, torch.cat(list(each_chunk(layer, self.database, "embeddings", unit)))


def _baselines(measured: _Measured, config: FitConfig, database) -> list[dict]:
    """Rows of what anybody would take: random projections, PCA as far as it goes, ITQ a length, the vectors."""
    lengths, rows = config.code_lengths, []
    quiet = {"progress": False}
    random = config.layer(database, lengths, "random", **quiet)
    rows.append(measured.row("random", dict.fromkeys(lengths, Behind(random))))
    layers = {}
    for b in lengths:
        try:
            layers[b] = Behind(config.layer(database, (b,), "pca", **quiet))
        except ValueError:  # fewer directions than bits
            break
    if layers:
        rows.append(measured.row("pca", layers))
    turned = {b: Behind(config.layer(database, (b,), "itq", **quiet)) for b in lengths}
    rows.append(measured.row("itq a length", turned))
    rows.append({"method": "float vectors", "recall": {str(b): 1.0 for b in lengths}})
    return [{**row, "recall": {str(b): row["recall"].get(str(b)) for b in lengths}} for row in rows]


def _check_same(folder: RunFolder, stored: dict, described: dict) -> None:
    if stored["data_fingerprint"] != described["data_fingerprint"]:
        raise ValueError(f"run: {folder.path} was fitted to other vectors")
    old = asdict(stored_config(folder, stored))
    changed = [f"{k} {old[k]!r} -> {v!r}" for k, v in described["config"].items() if k != "device" and old[k] != v]
    if changed:
        raise ValueError(f"run: {folder.path} was fitted with other settings ({', '.join(changed)})")


def picture(metrics: dict, path: Path, title: str) -> Path:
    """Recall against bits, a curve a method."""
    from ..pictures.plots import plot_map_vs_bits  # matplotlib's house

    curves = {
        row["method"]: {int(b): v for b, v in row["recall"].items() if v is not None} for row in metrics["recall"]
    }
    lengths = sorted({b for curve in curves.values() for b in curve})
    path.parent.mkdir(exist_ok=True)
    quantity = f"Recall of the nearest {metrics['k']}"
    return plot_map_vs_bits(curves, path, marked_lengths=lengths, title=title, quantity=quantity)
