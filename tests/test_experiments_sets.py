"""The experiments' further sets and what stands beside them: files by name, protocols, floats, the released code."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import nhl_fast as nhl
from bench.experiments import __main__ as program
from bench.experiments import datasets, engine, floats, jobs, present, released, weightings
from nhl_fast.training.config import TrainConfig


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of two sets: three classes of 30, 30 and 6 rows, and packed tags of 11 labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 30, 6])
    features = (rng.normal(size=(66, 8)) + 2 * np.eye(8)[labels]).astype(np.float16)
    tags = np.zeros((66, 11), np.uint8)
    tags[np.arange(60), np.arange(60) % 11] = tags[:60, 10] = 1
    np.savez(tmp_path / "some.npz", features=features, labels=labels, tags=np.packbits(tags, axis=1))
    np.savez(tmp_path / "first.npz", features=features, labels=labels)
    monkeypatch.setattr(datasets, "FEATURES", tmp_path / "first.npz")
    return tmp_path


def test_a_set_by_name_or_path_with_rows_of_every_class(files):
    for name in ("some", str(files / "some.npz")):
        data = datasets.build({"name": name, "queries_per_class": 1, "train_per_class": 4}, 0)
        assert torch.bincount(data.query.labels).tolist() == [1, 1, 1]
        assert torch.bincount(data.train.labels).tolist() == [4, 4, 4]
        assert len(data.database) == 66 - 15
    spec = {"name": "some", "queries_per_class": 1, "train_per_class": 4}
    x, raw = (datasets.build({**spec, "standardise": s}, 0).train.inputs for s in (True, False))
    torch.testing.assert_close(x, (raw - raw.mean(0)) / raw.std(0))
    larger = {"name": "some", "queries_per_class": 2, "train_per_class": 10, "smallest_class": 7}
    data = datasets.build(larger, 0)
    assert data.num_classes == 2
    assert len(data.query) + len(data.train) + len(data.database) == 60
    with pytest.raises(ValueError, match="train_per_class: class 2 has 6 rows, fewer than 13"):
        datasets.build({**larger, "smallest_class": 6}, 0)
    with pytest.raises(ValueError, match=r"labels: some\.npz has no sections, only features, labels, tags"):
        datasets.build({**larger, "labels": "sections"}, 0)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        datasets.build({**larger, "name": "none"}, 0)


def test_rows_of_several_labels(files):
    spec = {"name": "some", "labels": "tags", "queries": 10, "train": 30}
    data = datasets.build(spec, 0)
    assert data.multi_label
    assert data.num_classes == 11
    assert (len(data.query), len(data.train), len(data.database)) == (10, 30, 20)  # six rows have no tag
    assert bool(data.train.labels[:, 10].all())
    assert not set(data.query.indices.tolist()) & set(data.database.indices.tolist())
    with pytest.raises(ValueError, match="queries_per_class: rows have several labels"):
        datasets.build({"name": "some", "labels": "tags", "queries_per_class": 1, "train_per_class": 2}, 0)
    with pytest.raises(ValueError, match="train: the set has 60 rows"):
        datasets.build({**spec, "train": 50}, 0)


def test_other_data_and_its_counts():
    config = engine.load("words100")
    wanted = engine.expand(config, "mine.npz", {"queries_per_class": 3})
    assert {(j.data["name"], j.data["queries_per_class"]) for j in wanted} == {("mine.npz", 3)}
    assert {j.data["name"] for j in engine.expand(config)} == {"words100"}
    with pytest.raises(SystemExit):
        program.main(["words100", "--queries-per-class", "3"])


def test_an_arm_may_have_seeds_of_its_own():
    config = {
        "data": {"name": "digits"},
        "seeds": [0, 1],
        "axes": {"loss": [{"label": "csq"}, {"label": "dch"}]},
        "arms": [{"label": "a", "lengths": [8], "seeds_by": {"loss": {"dch": [1]}}}, {"label": "b", "lengths": [8]}],
    }
    runs = [(j.labels["loss"], j.labels["arm"], j.seed) for j in engine.expand(config)]
    assert runs == [(loss, arm, s) for loss, arm in itertools.product(("csq", "dch"), "ab") for s in (0, 1)
                    if (loss, arm, s) != ("dch", "a", 0)]  # fmt: skip
    config["arms"][0]["seeds_by"] = {"loss": {"dpn": [0]}}
    with pytest.raises(ValueError, match="seeds_by of 'a': loss has no dpn"):
        engine._check_tables("x.json", config)


def test_a_caption_says_how_rows_were_counted_and_how_deep_the_ranking_goes():
    document = {"title": "T", "features": "some.npz"}
    tags = {"name": "some", "labels": "tags", "queries": 10, "train": 30, "topk": 20}
    told = present.caption({**document, "data": tags})
    assert "10 queries and 30 training items, the rest" in told
    assert "mAP of the first 20, expected" in told
    told = present.caption({**document, "data": {"name": "some", "queries_per_class": 2, "train_per_class": 5}})
    assert "2 queries and 5 training items a class, the rest" in told
    assert "mAP over the whole ranking, expected" in told


def test_the_probe_finds_the_least_value():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + F.one_hot(y, 4)
    layer = floats.probe(x, F.one_hot(y, 3).float(), 1e-2)
    weight, bias = (t.clone().requires_grad_() for t in (layer.weight, layer.bias))
    value = F.cross_entropy(x @ weight.T + bias, y) + 5e-3 * weight.square().sum()
    for gradient in torch.autograd.grad(value, (weight, bias)):
        assert float(gradient.abs().max()) < 1e-4


def test_floats_rank_by_products_in_blocks(files):
    data = datasets.build({"name": "some", "queries_per_class": 2, "train_per_class": 3, "smallest_class": 7}, 0)
    found = floats.measure(data, (2, 4))
    assert {what: set(values) for what, values in found.items()} == {
        "cosine of the features": {"float"},
        "class scores of a probe": {"float"},
        "PCA sign": {"2", "4"},
        "ITQ, one a length": {"2", "4"},
    }
    q, d = (F.normalize(s.batch(slice(None))[0]) for s in (data.query, data.database))
    precision = []
    for row, label in zip(q @ d.T, data.query.labels):
        hits = (data.database.labels == label)[row.argsort(descending=True)].double()
        precision.append(float((hits * hits.cumsum(0) / torch.arange(1, len(hits) + 1)).sum() / hits.sum()))
    assert found["cosine of the features"]["float"] == pytest.approx(np.mean(precision), abs=1e-9)


def literal_released_weights(dots):
    """The released loop, number by number: lists of factors per prefix, clipped, then a product per length."""
    m, alpha = len(dots), []
    for k in range(m - 1):
        row = [1.0]
        for i in range(k + 1, m):
            share = dots[0][0] / (m - 1)
            row.append(share / -dots[k][i] if dots[k][i] < 0 and -dots[k][i] > share else 1.0)
        alpha.append([row[0], row[1], *(min(a, row[1]) for a in row[2:])])
    weights = [1.0]
    for i in range(1, m):
        product = 1.0
        for k in range(i):
            product *= alpha[k][i - k]
        weights.append(product)
    return [w * m / sum(weights) for w in weights]


def test_released_weights_are_those_of_their_loop_and_break_the_guarantee():
    broken = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        g = torch.randn(4, 4, 3, dtype=torch.float64, generator=generator)
        g *= torch.randn(4, 1, 1, dtype=torch.float64, generator=generator).exp()  # lengths differ in size
        g = (g * torch.tril(torch.ones(4, 4, dtype=torch.float64))[..., None]).flatten(1)
        dots = torch.triu(g @ g.T)
        weights = released.released_weights(dots)
        assert weights.tolist() == pytest.approx(literal_released_weights(dots.tolist()))
        broken += bool((dots @ weights < -1e-9).any())
        assert bool((dots @ nhl.dominance_weights(dots) > -1e-9).all())
    assert broken > 0


def head_gradient(accidents, distill=0.0):
    """(gradient of the head, of the features) of one step, and the parts that it is made of."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 6, generator=generator)
    y = torch.arange(24) % 3
    data = nhl.data.RetrievalData.from_tensors(
        x, y, train=np.arange(18), query=np.arange(18, 20), database=np.arange(20, 24), validation=0.0
    )
    config = TrainConfig(loss="csq", code_lengths=(4, 8), hidden=(5,), distill_weight=distill, weighting="custom")
    rule = weightings.build("released:" + accidents, 2, 0) if accidents else released.Released(())
    kind = released.ReleasedTrainer if "head" in accidents else jobs.Trainer
    trainer = kind(data, config, weighting=rule, progress=False)
    trainer.model.eval()
    features = torch.randn(18, 5, generator=generator).requires_grad_()
    trainer._evaluate(features, y[:18], torch.arange(18)).total.backward()
    layer = trainer.model.layer
    longest = trainer.objective.loss(layer.project(features.detach()), y[:18])[-1]
    (own,) = torch.autograd.grad(longest, layer.hash_layer.weight)
    return layer.hash_layer.weight.grad, features.grad, own


def test_the_head_alone_moves_once_more_by_the_longest_length():
    ours, ours_features, longest = head_gradient("")
    theirs, theirs_features, _ = head_gradient("head")
    torch.testing.assert_close(theirs, ours + longest, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(theirs_features, ours_features, rtol=0, atol=0)
    assert float(longest.abs().max()) > 1e-3


def test_a_dropped_longest_length_leaves_its_last_bits_without_gradient():
    gradient, *_ = head_gradient("dropped", distill=1.0)
    assert float(gradient[4:].abs().max()) == 0
    assert float(gradient[:4].abs().max()) > 0
    with pytest.raises(ValueError, match="accidents: expected some of weights, head, dropped, got other"):
        weightings.build("released:head+other", 5, 0)


def test_released_runs_are_runs_of_their_own():
    spec = {"name": "digits", "queries_per_class": 10, "train_per_class": 20}
    settings = {"epochs": 1, "hidden": [8], "code_lengths": [8, 16], "loss": "csq", "centers": "hadamard"}
    plain, head = (jobs.Job({}, 0, spec, settings, rule) for rule in (None, "released:head"))
    assert plain.key() != head.key()
    assert set(jobs.run(head)["map"]) == {"8", "16"}
