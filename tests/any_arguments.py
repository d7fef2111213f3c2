"""Every public call with good arguments, and values that no argument, or not this one, expects."""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import itertools
import pathlib

import numpy as np
import torch
from torch import nn

import nhl_fast as nhl
from nhl_fast.data import load_dataset
from nhl_fast.training.config import TrainConfig
from nhl_fast.training.trainer import train

LENGTHS = (8, 16)
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (12, 2), dtype=np.uint8)
LABELS = torch.arange(12) % 3
OUTPUTS = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))


class Broken:
    """Raises whatever it is asked."""

    def _fail(self, *_):
        raise RuntimeError("the caller's own class")

    __len__ = __iter__ = __index__ = __float__ = __array__ = __repr__ = __str__ = __bool__ = __eq__ = _fail
    __hash__ = object.__hash__


class Lying:
    """Says that it is a matrix."""

    shape, dtype, ndim, device = (3, 4), "uint8", 2, "cpu"


def values() -> dict[str, object]:
    """Wrong types, sizes, ranges and extreme numbers by name."""
    bare = [
        None, True, False, 0, 1, -1, 2, 7, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**31),
        -(2**63), -(2**63) - 1, 10**400, -(10**5000), 0.5, -0.5, 1.0, -0.0, 1e-320, 1e300, -1e300, float("nan"),
        float("inf"), -float("inf"), 1j, "", "auto", "reference", "x" * 300, "8", "\0", "\ud800", b"", b"8",
        bytearray(8),
        [], [1], [8, 16], [16, 8], [8, 8], [2**63], [10**400], [-1], [0.5], ["a"], [None], [[1, 2], [3]], [True],
        (3, 2),
        (), {}, {"a": 1}, {8: 16}, set(), {1}, frozenset({8, 16}), object(), object, len, Broken(), Lying(), Ellipsis,
        NotImplemented, slice(3), range(0), range(1, 5), range(1, 2**62), itertools.count(1), iter([8, 16]),
        map(int, "12"),
        pathlib.Path("no/such"), fractions.Fraction(1, 3), decimal.Decimal("0.5"), datetime.date(2026, 1, 1),
        np.int64(3), np.uint8(8), np.float32(2), np.bool_(True), np.datetime64("2026-01-01"), np.array(3),
        np.array(0.5),
        np.array([1, 2]), np.array([8, 16]), np.array([], np.int64), np.zeros((0, 2), np.uint8), np.zeros((3, 0),
        np.uint8),
        np.zeros((12, 2), np.uint8), np.ones((12, 16)), np.full((12, 16), np.nan), np.ones((12, 16), np.float16),
        np.ones((12, 16), np.longdouble), np.ones((12, 16), complex), np.ones((12, 16), object), np.full((12, 16),
        "a"),
        np.ones((12, 2), np.uint64), np.ones((12, 2), ">i4"), np.ones((2, 2, 2), np.uint8), np.ones(12, bool),
        np.arange(12), np.arange(12) - 1, np.arange(12, dtype=np.uint64) + 2**63, np.ma.ones((12, 2), np.uint8),
        np.zeros(3, [("a", np.uint8)]), np.recarray(3, [("a", np.uint8)]),
        torch.tensor(3), torch.tensor(0.5), torch.tensor(2**63 - 1), torch.tensor([1, 2]), torch.empty(0),
        torch.zeros(0, 2, dtype=torch.uint8), torch.zeros(0, 16), torch.zeros(12, 0), torch.zeros(12),
        torch.zeros(12, 16),
        torch.full((12, 16), torch.nan), torch.full((12, 16), torch.inf), torch.full((12, 16), 3e38), torch.ones(12,
        2),
        torch.ones(12, 16, dtype=torch.bool), torch.ones(12, 16, dtype=torch.complex64), torch.zeros(12, 2,
        dtype=torch.uint8),
        torch.zeros(12, 16).half(), torch.zeros(12, 16).bfloat16(), torch.zeros(12, 16).double(), torch.zeros(3, 3),
        torch.zeros(12, dtype=torch.int32), torch.full((12,), 2**62), torch.full((12,), -1), torch.arange(12),
        torch.full((12,), 99), torch.zeros(12, 3), torch.full((12, 3), 0.5), torch.zeros(2, 2, 2), torch.zeros(1, 1),
        torch.zeros(12, 16, device="meta"), torch.zeros(12, 2, dtype=torch.uint8, device="meta"),
        torch.zeros(12, dtype=torch.int64, device="meta"), torch.zeros(12, 16).to_sparse(),
        torch.zeros(12, 2, dtype=torch.uint8).to_sparse(), torch.arange(12).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(12, 16), 1.0, 0, torch.qint8), torch.zeros(12, 16, requires_grad=True),
        torch.zeros(12, 16, dtype=torch.float8_e4m3fn), torch.zeros(12, 2, dtype=torch.uint16),
        torch.device("cpu"), torch.float32, torch.int8, nn.Linear(2, 2), nn.Linear, nhl.NestedIndex(8),
        nhl.losses.CSQ(2, (4,)),
    ]  # fmt: skip
    recursive: list = []
    recursive.append(recursive)
    return {f"{i} {type(value).__name__}": value for i, value in enumerate([*bare, recursive])}


VALUES = values()


def filled():
    index = nhl.NestedIndex(16)
    index.add(CODES)
    return index


def with_vectors():
    index = nhl.NestedIndex(16)
    index.add(CODES, vectors=np.ones((len(CODES), 3), np.float32))
    return index


def layer():
    return nhl.NestedHashLayer(4, LENGTHS)


def objective(**options):
    return nhl.NestedObjective(layer(), nhl.losses.CSQ(3, LENGTHS), **options)


@functools.cache
def result():
    return nhl.evaluate_retrieval(CODES, CODES, LABELS, LABELS, LENGTHS, ndcg=3)


FEATURES = torch.ones(12, 4)
ROWS = torch.arange(12)


def calls(folder) -> dict[str, tuple]:
    """(function, good keyword arguments) of every public call."""
    search = {"queries": CODES, "k": 3, "length": 8, "allow": None, "beyond": "cut", "output": "numpy"}
    search.update(backend="reference")
    path = pathlib.Path(folder) / "index.nhl"
    run = pathlib.Path(folder) / "run"
    np.savez(run.with_suffix(".npz"), features=np.eye(30, 4), labels=np.arange(30) % 3)
    data = load_dataset("features", path=run.with_suffix(".npz"))
    train(data, TrainConfig(code_lengths=LENGTHS, hidden=(4,), epochs=1), run, progress=False)
    filled().save(path)
    similarity = np.eye(3)
    out = {
        "pack_codes": (nhl.pack_codes, {"x": OUTPUTS}),
        "as_codes": (nhl.as_codes, {"values": CODES}),
        "unpack_codes": (nhl.unpack_codes, {"packed": CODES, "length": 16}),
        "hamming_distances": (
            nhl.hamming_distances,
            {"queries": CODES, "database": CODES, "lengths": LENGTHS, "output": "tensor", "chunk_bytes": 1000,
             "backend": "auto"},
        ),
        "search": (
            nhl.search,
            {"queries": CODES, "database": CODES, "k": 3, "length": 8, "allow": None, "beyond": "raise",
             "output": "tensor", "chunk_bytes": 1000, "backend": "auto", "metric": "cosine"},
        ),
        "search in stages": (
            nhl.search,
            {"queries": CODES, "database": CODES, "k": 3, "length": 16, "allow": None, "funnel": ((8, 5),),
             "rescore": OUTPUTS, "metric": "cosine", "beyond": "raise", "output": "tensor", "chunk_bytes": 1000,
             "backend": "auto"},
        ),
        "radius_search": (
            nhl.radius_search,
            {"queries": CODES, "database": CODES, "radius": 3, "length": 8, "allow": None, "output": "tensor",
             "chunk_bytes": 1000, "backend": "auto"},
        ),
        "near_duplicates": (
            nhl.near_duplicates,
            {"codes": CODES, "radius": 3, "length": 8, "output": "tensor", "chunk_bytes": 1000, "backend": "auto"},
        ),
        "near_duplicate_blocks": (
            nhl.near_duplicate_blocks,
            {"codes": CODES, "radius": 3, "length": 8, "chunk_bytes": 1000, "backend": "auto"},
        ),
        "evaluate_retrieval": (
            nhl.evaluate_retrieval,
            {"q_codes": CODES, "db_codes": CODES, "q_labels": LABELS, "db_labels": LABELS, "lengths": LENGTHS,
             "topk": 5, "ties": "id", "denominator": "retrieved", "ndcg": (2, 5), "mean_over": "relevant",
             "chunk_bytes": 10_000, "backend": "auto"},
        ),
        "neighbor_recall": (
            nhl.neighbor_recall,
            {"q_codes": CODES, "db_codes": CODES, "q_features": OUTPUTS, "db_features": OUTPUTS, "lengths": LENGTHS,
             "k": 3, "candidates": (3, 5), "asymmetric": False, "metric": "cosine", "ties": "id", "neighbors": None,
             "chunk_bytes": 1000, "backend": "auto"},
        ),
        "neighbor_recall asymmetric": (
            nhl.neighbor_recall,
            {"q_codes": OUTPUTS, "db_codes": CODES, "lengths": LENGTHS, "candidates": (3, 5), "asymmetric": True,
             "k": 3, "neighbors": LABELS[:, None].expand(-1, 3)},
        ),
        "NeighborRecall": (lambda **options: nhl.neighbor_recall(CODES, CODES, OUTPUTS, OUTPUTS, **options),
            {"lengths": LENGTHS, "k": 3, "candidates": (3, 5), "ties": "expected", "chunk_bytes": 1000},
        ),
        "rescore": (
            nhl.rescore,
            {"queries": OUTPUTS, "candidates": LABELS[:, None], "codes": CODES, "vectors": None, "k": 1,
             "length": 8, "chunk_bytes": 1000, "backend": "auto"},
        ),
        "rescore vectors": (
            nhl.rescore,
            {"queries": OUTPUTS, "candidates": LABELS[:, None], "vectors": OUTPUTS, "k": 1, "metric": "cosine",
             "chunk_bytes": 1000, "backend": "auto"},
        ),
        "funnel_search": (
            nhl.funnel_search,
            {"queries": CODES, "database": CODES, "k": 3, "funnel": ((8, 5),), "length": 16, "vectors": None,
             "query_vectors": None, "metric": "cosine", "chunk_bytes": 1000, "backend": "auto"},
        ),
        "PrefixBuckets": (nhl.PrefixBuckets, {"database": CODES}),
        "PrefixBuckets.search": (
            lambda **options: nhl.PrefixBuckets(np.tile(CODES, (200, 1))).search(**options),
            {"queries": CODES[0], "k": 3, "length": 16, "beyond": "cut", "output": "numpy"},
        ),
        "PrefixBuckets.visited": (
            lambda **options: nhl.PrefixBuckets(np.tile(CODES, (200, 1))).visited(**options),
            {"queries": CODES, "k": 3, "length": 16},
        ),
        "advise_funnel": (
            nhl.advise_funnel,
            {"codes": CODES, "recall": 0.9, "k": 3, "queries": CODES[:4], "items": 20, "num_queries": 4, "sample": 10,
             "seed": 0},
        ),
        "fit_layer": (
            functools.partial(nhl.fit_layer, rotation_steps=1),  # any number of them is right, but not in a test
            {"features": OUTPUTS, "code_lengths": LENGTHS, "method": "itq", "normalize": True, "sample_rows": 10,
             "seed": 0, "device": None, "checkpoint": None, "resume": False, "progress": False, "backbone": None},
        ),
        "fit_layer learned": (
            lambda **options: nhl.fit_layer(OUTPUTS, LENGTHS, steps=2, rotation_steps=1, progress=False, **options),
            {"anchors": 2, "neighbors": 3, "drawn": 2, "temperature": 0.1, "lr": 1e-3, "checkpoint_every": 1},
        ),
        "NestedCoder": (
            lambda X, **options: nhl.NestedCoder(LENGTHS, rotation_steps=1, **options).fit_transform(X),
            {"X": OUTPUTS, "method": "itq", "normalize": True, "seed": 0, "device": None},
        ),
        "RetrievalResult.precision_at": (lambda n: result().precision_at(n), {"n": 3}),
        "RetrievalResult.recall_at": (lambda n: result().recall_at(n), {"n": 3}),
        "RetrievalResult.ndcg_at": (lambda n: result().ndcg_at(n), {"n": 3}),
        "RetrievalResult.within_radius": (lambda r: result().within_radius(r), {"r": 2}),
        "RetrievalResult.pr_curve": (
            lambda length, by, points: result().pr_curve(length, by, points),
            {"length": 8, "by": "rank", "points": None},
        ),
        "RetrievalResult.distance_histogram": (lambda length: result().distance_histogram(length), {"length": 8}),
        "RetrievalResult.curve_ranks": (lambda points: result().curve_ranks(points), {"points": 5}),
        "class_confusion": (
            nhl.class_confusion,
            {"q_codes": CODES, "db_codes": CODES, "q_labels": LABELS, "db_labels": LABELS, "lengths": LENGTHS, "k": 3,
             "chunk_bytes": 2**20, "backend": "auto"},
        ),
        "bit_statistics": (nhl.bit_statistics, {"codes": CODES, "length": 12}),
        "code_quality": (nhl.code_quality, {"codes": CODES, "lengths": LENGTHS}),
        "class_similarity": (nhl.class_similarity, {"features": FEATURES, "labels": LABELS, "num_classes": 3}),
        "make_centers": (
            nhl.make_centers,
            {"num_classes": 3, "code_lengths": LENGTHS, "kind": "nested", "seed": 0, "similarity": similarity},
        ),
        "make_centers hadamard": (
            nhl.make_centers, {"num_classes": 3, "code_lengths": LENGTHS, "kind": "hadamard", "seed": 0},
        ),
        "min_distances": (nhl.min_distances, {"centers": torch.ones(3, 16), "lengths": LENGTHS}),
        "distillation_losses": (
            nhl.distillation_losses, {"u": OUTPUTS, "code_lengths": LENGTHS, "teacher": "next"},
        ),
        "dominance_weights": (nhl.dominance_weights, {"dots": torch.eye(3)}),
        "NestedHashLayer": (
            nhl.NestedHashLayer,
            {"in_features": 4, "code_lengths": LENGTHS, "bihalf": 6.0, "device": None, "dtype": None},
        ),
        "NestedHashLayer.project": (
            lambda x, backend: layer().project(x, backend), {"x": FEATURES, "backend": "auto"},
        ),
        "NestedHashLayer.encode": (lambda x, backend: layer().encode(x, backend), {"x": FEATURES, "backend": "auto"}),
        "NestedHashLayer.forward": (lambda x: layer()(x), {"x": FEATURES}),
        "NestedObjective": (
            nhl.NestedObjective,
            {"layer": layer(), "loss": nhl.losses.CSQ(3, LENGTHS), "distill_weight": 1.0, "weighting": "dominance",
             "teacher": "next", "check_finite": True, "backend": "auto"},
        ),
        "make_graphed": (
            nhl.make_graphed,
            {"objective": objective(), "features": FEATURES, "labels": LABELS, "index": None, "num_warmup_iters": 3},
        ),
        "NestedIndex": (nhl.NestedIndex, {"length": 16, "device": "cpu", "device_bytes": 100}),
        "NestedIndex.to": (
            lambda device, device_bytes: filled().to(device, device_bytes=device_bytes).search(CODES, 3),
            {"device": ["cpu", "cpu"], "device_bytes": 16},
        ),
        "NestedIndex.add": (lambda codes, ids: filled().add(codes, ids), {"codes": CODES, "ids": np.arange(12) + 50}),
        "NestedIndex.remove": (lambda **options: filled().remove(**options), {"ids": [1, 2], "missing": "raise"}),
        "NestedIndex.merge": (
            lambda **options: filled().merge(**options),
            {"other": nhl.NestedIndex(16), "renumber": True},
        ),
        "NestedIndex.export": (
            lambda format, length: filled().export(path.with_suffix(".tsv"), format, length),
            {"format": None, "length": 8},
        ),
        "NestedIndex.add vectors": (
            lambda vectors: nhl.NestedIndex(16).add(CODES, vectors=vectors),
            {"vectors": OUTPUTS},
        ),
        "NestedIndex.reconstruct_vectors": (with_vectors().reconstruct_vectors, {"ids": [1, 2]}),
        "NestedIndex.update": (lambda ids, codes: filled().update(ids, codes), {"ids": ROWS, "codes": CODES}),
        "NestedIndex.reconstruct": (lambda ids: filled().reconstruct(ids), {"ids": [1, 2]}),
        "NestedIndex.filter": (lambda allow: filled().filter(allow), {"allow": [1, 2]}),
        "NestedIndex.search": (lambda **options: filled().search(**options), search),
        "NestedIndex.search in stages": (
            lambda **options: filled().search(**options),
            {**search, "length": 16, "funnel": ((8, 5),), "rescore": OUTPUTS, "metric": "cosine"},
        ),
        "NestedIndex.search empty": (lambda **options: nhl.NestedIndex(16).search(**options), search),
        "NestedIndex.search_and_reconstruct": (lambda **options: filled().search_and_reconstruct(**options), search),
        "NestedIndex.range_search": (
            lambda **options: filled().range_search(**options),
            {"queries": CODES, "radius": 3, "length": 8, "allow": [1], "output": "tensor", "backend": "auto"},
        ),
        "NestedIndex.range_search empty": (
            lambda **options: nhl.NestedIndex(16).range_search(**options),
            {"queries": CODES, "radius": 3, "length": 8, "allow": None, "backend": "auto"},
        ),
        "NestedIndex.range_search placed": (
            lambda **options: filled().to(["cpu"]).range_search(**options),
            {"queries": CODES, "radius": 3, "length": 8, "allow": [1], "output": "tensor", "backend": "auto"},
        ),
        "NestedIndex.search placed": (
            lambda **options: filled().to("cpu", device_bytes=16).search(**options), search,
        ),
        "NestedIndex.load": (
            nhl.NestedIndex.load,
            {"path": path, "mmap": True, "verify": True, "device": "cpu", "device_bytes": None},
        ),
        "load": (nhl.load, {"run": run, "length": None, "device": "cpu", "data_options": None}),
        "NestedIndex.from_faiss": (nhl.NestedIndex.from_faiss, {"index": None}),
        "NestedIndex.__contains__": (lambda id_: id_ in filled(), {"id_": 3}),
        "Bank": (nhl.losses.Bank, {"num_train": 12, "num_classes": 3, "code_lengths": LENGTHS}),
        "Bank.update": (
            lambda **options: nhl.losses.Bank(12, 3, LENGTHS).update(**options),
            {"index": ROWS, "u": OUTPUTS, "labels": LABELS},
        ),
        "PerLength": (
            nhl.losses.PerLength, {"functions": [len, len], "code_lengths": LENGTHS, "num_classes": 3},
        ),
        "build": (
            nhl.losses.build, {"name": "dsh", "num_classes": 3, "code_lengths": LENGTHS, "num_train": 12},
        ),
    }  # fmt: skip
    for backend in ("auto", "reference"):
        out[f"NestedObjective.forward {backend}"] = (
            lambda backend=backend, **options: objective(backend=backend)(**options),
            {"features": FEATURES, "labels": LABELS, "index": None},
        )
    options = {
        "CSQ": {"centers": None, "quantization": 0.1, "seed": 0},
        "DPN": {"centers": None, "margin": 1.0, "ternary": False, "seed": 0},
        "DSH": {"num_train": 12, "margin": 2.0, "alpha": 0.1, "balance": False},
        "DHN": {"num_train": 12, "alpha": 0.1, "reference_bits": 16, "balance": False},
        "DBDH": {"num_train": 12, "alpha": 0.1, "clamp": True, "reference_bits": None, "balance": True},
        "LCDSH": {"eta": 3.0, "clamp": True, "reference_bits": None},
        "DCH": {"gamma": 20.0, "quantization": 0.1, "max_cosine": 0.99, "reference_bits": None},
        "DTSH": {"margin": 5.0, "quantization": 1.0, "clamp": True, "reference_bits": None},
        "MDSH": {"centers": None, "num_train": 12, "external_bank": False, "pair_from_epoch": 0, "quantization": 1e-4,
                 "reference_bits": None, "seed": 0},
        "DPSH": {"num_train": 12, "alpha": 0.1, "reference_bits": 16, "balance": False},
        "HashNet": {"beta": 1.0, "continuation": 20, "reference_bits": 20.0},
        "OrthoCos": {"centers": None, "margin": 0.2, "scale": 8.0, "seed": 0},
        "OrthoArc": {"centers": None, "margin": 0.2, "scale": 8.0, "seed": 0},
        "IDHN": {"sharpness": 5.0, "gamma": 0.1, "alpha": 0.1},
        "GreedyHash": {"alpha": 0.1, "seed": 0},
        "HyP2": {"beta": 0.5, "threshold": None, "seed": 0},
        "SHCIR": {"centers": None, "quantization": 1e-4, "reference_bits": None, "seed": 0},
    }  # fmt: skip
    for name, targets, own in (
        ("Neighbors", FEATURES, {"temperature": 0.1}),
        ("Contrastive", LABELS, {"temperature": 0.3, "bottleneck": 0.1}),
    ):
        kind = getattr(nhl.losses, name)
        out[name] = (kind, {"code_lengths": LENGTHS, **own})
        out[f"{name}.forward"] = (
            lambda kind=kind, **arguments: kind(LENGTHS)(**arguments),
            {"u": OUTPUTS, "labels": targets, "backend": "auto"},
        )
    for name, own in options.items():
        kind = getattr(nhl.losses, name)
        out[name] = (kind, {"num_classes": 3, "code_lengths": LENGTHS, **own})
        for backend in ("auto", "reference"):

            def forward(kind=kind, own=own, **arguments):
                return kind(3, LENGTHS, **own)(**arguments)

            out[f"{name}.forward {backend}"] = (
                forward, {"u": OUTPUTS, "labels": LABELS, "index": ROWS, "backend": backend},
            )  # fmt: skip
    out["MDSH.set_epoch"] = (lambda epoch: nhl.losses.MDSH(3, LENGTHS).set_epoch(epoch), {"epoch": 2})
    out["HashNet.set_epoch"] = (lambda epoch: nhl.losses.HashNet(3, LENGTHS).set_epoch(epoch), {"epoch": 2})
    out["DPN.adapt_centers"] = (
        lambda u, labels: nhl.losses.DPN(3, LENGTHS).adapt_centers(u, labels), {"u": OUTPUTS, "labels": LABELS},
    )  # fmt: skip
    return out
