"""What one would do without training codes, on the same splits: features as they are, a linear probe, PCA, ITQ."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import nhl_fast as nhl
from nhl_fast.core.labels import to_multi_hot
from nhl_fast.core.precision import no_autocast
from nhl_fast.data import RetrievalData
from nhl_fast.retrieval.metrics import evaluate_retrieval

from . import datasets, engine, jobs, measures

BLOCK = 100  # queries whose scores are ranked at once
# Weights of the probe's penalty to choose from, on a fifth of the training rows.
PENALTIES = (1e-4, 1e-3, 1e-2)


def probe(x: torch.Tensor, y: torch.Tensor, penalty: float, iterations: int = 100) -> torch.nn.Linear:
    """A logistic regression of rows x (N, d) on multi-hot y (N, C): softmax where each row has one class.

    Minimises mean cross-entropy + penalty / 2 * |W|^2 by L-BFGS.
    """
    layer = torch.nn.Linear(x.shape[1], y.shape[1])
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")
    loss = F.cross_entropy if bool((y.sum(1) == 1).all()) else F.binary_cross_entropy_with_logits

    def closure():
        optimizer.zero_grad()
        value = loss(layer(x), y) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    with no_autocast(x):
        optimizer.step(closure)
    return layer.requires_grad_(False)


def chosen_probe(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Linear:
    """The probe of all rows, with the penalty that has the best likelihood on a fifth that it does not see."""
    held = torch.arange(len(x)) % 5 == 0
    one = bool((y.sum(1) == 1).all())
    loss = F.cross_entropy if one else F.binary_cross_entropy_with_logits
    errors = {p: float(loss(probe(x[~held], y[~held], p)(x[held]), y[held])) for p in PENALTIES}
    return probe(x, y, min(errors, key=errors.get))


def scores(layer: torch.nn.Linear, x: torch.Tensor, one: bool) -> torch.Tensor:
    """Probabilities of the classes (N, C); rows of length 1 where they are not those of one class."""
    return layer(x).softmax(1) if one else F.normalize(layer(x).sigmoid())


def ranked(q: torch.Tensor, db: torch.Tensor, q_labels, db_labels, topk: int | None = None) -> float:
    """mAP of ranking by the product of rows."""
    one, total = q_labels.ndim == 1, 0.0
    for rows in torch.arange(len(q)).split(BLOCK):
        mine = q_labels[rows]
        relevant = mine[:, None] == db_labels if one else (mine.float() @ db_labels.float().T) > 0
        total += len(rows) * measures.mean_ap(q[rows] @ db.T, relevant, topk)
    return total / len(q)


def measure(data: RetrievalData, lengths, topk: int | None = None) -> dict[str, dict[str, float]]:
    """{what: {"float" or bits: mAP}} of the queries against the database."""
    splits = (data.query, data.database)
    (x, y), (q, d) = data.train.batch(slice(None)), (s.batch(slice(None))[0] for s in splits)
    labels = [s.labels for s in splits]
    one = not data.multi_label
    layer = chosen_probe(x, to_multi_hot(y, data.num_classes, x.dtype))
    found = {
        "cosine of the features": {"float": ranked(F.normalize(q), F.normalize(d), *labels, topk)},
        "class scores of a probe": {"float": ranked(scores(layer, q, one), scores(layer, d, one), *labels, topk)},
    }
    options = {"lengths": lengths, "ties": "expected", "topk": topk}
    fit = {"progress": False, "seed": data.seed}
    for what, fitted in (
        ("PCA sign", dict.fromkeys(lengths, nhl.fit_layer(x, lengths, "pca", **fit))),
        ("ITQ, one a length", {b: nhl.fit_layer(x, (b,), "itq", **fit) for b in lengths}),
    ):
        found[what] = {}
        for b, layer in fitted.items():
            codes = layer.encode(q), layer.encode(d)
            result = evaluate_retrieval(*codes, *labels, **{**options, "lengths": (b,)})
            found[what][str(b)] = result.mean_average_precision[b]
    return found


def run(config: dict, other: str | None = None) -> dict:
    """What `measure` finds for every set and seed; with `other`, for that data alone."""
    runs, sets = [], {e["label"]: {**config["data"], **e["data"]} for e in config["axes"]["set"]}
    if other is not None:
        sets = {other: engine.other_data(next(iter(sets.values())), other, {})}
    lengths = tuple(config["settings"]["code_lengths"])
    for label, spec in sets.items():
        for seed in config["seeds"]:
            data = datasets.build(spec, jobs.SPLIT_SEED + seed)
            for what, values in measure(data, lengths, spec.get("topk")).items():
                print(label, seed, what, {b: round(v, 4) for b, v in values.items()}, flush=True)
                runs += [{"set": label, "method": what, "seed": seed, "bits": b, "mAP": v} for b, v in values.items()]
    return {"title": config["title"], "question": config["question"], "sets": sets, "seeds": config["seeds"],
            "floats": runs, "rows": []}  # fmt: skip
