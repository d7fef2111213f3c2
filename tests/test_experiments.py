"""The experiments' parts: configs that expand, spoilt data that leaks nothing, weightings that do what they say."""

import dataclasses

import numpy as np
import pytest
import torch

import nhl_fast as nhl
from bench.experiments import datasets, engine, jobs, measures, present, weightings
from nhl_fast.losses import REGISTRY
from nhl_fast.training.config import TrainConfig

DIGITS = {"name": "digits", "queries_per_class": 10, "train_per_class": 30}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", engine.names())
def test_configs_expand_to_valid_runs(name, quick):
    config = engine.load(name, quick)
    wanted = engine.expand(config, "digits")
    if config.get("kind") in ("time", "floats"):
        assert wanted == []
        return
    assert wanted
    assert len({(tuple(j.labels.items()), j.seed, tuple(j.config["code_lengths"])) for j in wanted}) == len(wanted)
    for job in wanted:
        TrainConfig.from_dict(job.config).build_loss(10, 50, datasets_train(job))
        if job.rule is not None:
            weightings.build(job.rule, 5, job.seed)
    if quick:
        assert {j.seed for j in wanted} == {0}
        whole = engine.expand(engine.load(name))
        assert sum(j.config["epochs"] for j in wanted) < sum(j.config["epochs"] for j in whole)
    else:
        # One seed is for a search for settings, or is said.
        assert len(config["seeds"]) >= 3 or "split" in config["data"] or "one seed" in config["title"]


def datasets_train(job):
    """Training rows, where the run's centres need some."""
    if job.config.get("centers") != "aligned":
        return None
    return datasets.build(DIGITS, 0).train


def test_equal_runs_share_a_key_and_others_do_not():
    job = jobs.Job({"arm": "a"}, 0, DIGITS, {"loss": "csq", "code_lengths": [8]})
    assert job.key() == dataclasses.replace(job, labels={"arm": "b"}).key()
    for change in ({"seed": 1}, {"data": {**DIGITS, "noise": 0.1}}, {"config": {"loss": "dpn"}}, {"rule": "pcgrad"}):
        assert dataclasses.replace(job, **change).key() != job.key()


@pytest.mark.parametrize(
    ("spec", "check"),
    [
        ({"noise": 0.4}, lambda labels, clean: (labels != clean).float().mean() == pytest.approx(0.4, abs=0.01)),
        ({"per_class": 7}, lambda labels, clean: torch.bincount(labels).tolist() == [7] * 10),
        ({"imbalance": 10}, lambda labels, clean: torch.bincount(labels)[[0, 9]].tolist() == [30, 3]),
    ],
)
def test_spoilt_training_rows(spec, check):
    plain, spoilt = datasets.build(DIGITS, 3), datasets.build({**DIGITS, **spec}, 3)
    for part in ("query", "database"):
        a, b = getattr(plain, part), getattr(spoilt, part)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
    assert np.isin(spoilt.train.indices, plain.train.indices).all()
    clean = dict(zip(plain.train.indices.tolist(), plain.train.labels.tolist()))
    assert check(spoilt.train.labels, torch.tensor([clean[i] for i in spoilt.train.indices.tolist()]))
    again = datasets.build({**DIGITS, **spec}, 3)
    assert torch.equal(again.train.indices, spoilt.train.indices)
    assert torch.equal(again.train.labels, spoilt.train.labels)


def test_features_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "FEATURES", tmp_path / "none.npz")
    assert datasets.default_name() == "digits"
    with pytest.raises(FileNotFoundError, match="NHL_FAST_FEATURES"):
        datasets.build({**DIGITS, "name": "features"}, 0)


def test_cut_gives_equal_parts_along_the_widest_direction():
    x = torch.stack([torch.arange(10.0), torch.zeros(10)], 1)
    parts = datasets._cut(x, torch.randperm(10), 5)
    assert sorted(sorted(p.tolist()) for p in parts) == [[2 * i, 2 * i + 1] for i in range(5)]


def gradients(seed=0, m=4):
    """m gradients of prefixes of one weight: g_k is zero beyond its own rows."""
    g = torch.randn(m, m, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = torch.tril(torch.ones(m, m, dtype=torch.float64))
    return (g * rows[..., None]).flatten(1)


@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_projects_like_the_paper(seed):
    g = gradients(seed)
    weights = weightings.PCGrad(4, seed=seed)(torch.triu(g @ g.T), torch.ones(4))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(g[0])
    for i in range(4):
        mine = g[i].clone()
        for j in torch.randperm(4, generator=generator).tolist():
            against = mine @ g[j]
            if j != i and against < 0:
                mine -= against / (g[j] @ g[j]) * g[j]
        total += mine
    torch.testing.assert_close(weights @ g, total)


def test_uncertainty_is_gradient_descent_on_the_log_variances():
    rule, values = weightings.Uncertainty(3, lr=0.05), torch.tensor([0.2, 1.0, 5.0])
    for _ in range(800):
        weights = rule(None, values)
    torch.testing.assert_close(weights, 1 / values, rtol=0.05, atol=0)  # where exp(-s) L + s is least


def test_gradnorm_evens_out_the_norms():
    rule, norms = weightings.GradNorm(3), torch.tensor([1.0, 4.0, 2.0])
    dots, values = torch.diag(norms.square()), torch.ones(3)  # all lengths equally far
    for _ in range(500):
        weights = rule(dots, values)
    assert float(weights.sum()) == pytest.approx(3, abs=1e-4)
    shares = weights * norms
    assert float(shares.max() / shares.min()) < 1.25


def test_recorder_counts_conflicts_and_violations():
    dots = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    for name, expected in (("uniform", [1.0, 1.0]), ("dominance", nhl.dominance_weights(dots).tolist())):
        rule = weightings.Recorder(2, name)
        for _ in range(4):
            assert rule(dots, torch.ones(2)).tolist() == expected
        assert rule.conflicts.tolist() == [[0, 4], [0, 0]]
        assert rule.broken.tolist() == [[4, 0], [0, 0]]  # equal weights break prefix 1 (1 - 3 < 0), dominance none


def test_unknown_names():
    with pytest.raises(ValueError, match="rule: expected one of uncertainty"):
        weightings.build("magic", 5, 0)
    with pytest.raises(ValueError, match="experiment: expected one of"):
        engine.load("magic")


def test_mean_ap_equals_the_package():
    generator = torch.Generator().manual_seed(0)
    q, db = (torch.randint(0, 256, (n, 3), dtype=torch.uint8, generator=generator) for n in (20, 300))
    q_labels, db_labels = (torch.randint(0, 4, (n,), generator=generator) for n in (20, 300))
    distances = nhl.hamming_distances(q, db)
    got = measures.mean_ap(-distances.float(), q_labels[:, None] == db_labels)
    want = nhl.evaluate_retrieval(q, db, q_labels, db_labels, lengths=(24,)).mean_average_precision[24]
    assert got == pytest.approx(want, abs=1e-12)


def test_a_run_with_every_measure(tmp_path):
    settings = {"epochs": 2, "hidden": [16], "code_lengths": [8, 16], "loss": "csq"}
    wanted = [
        jobs.Job({"arm": arm}, seed, {**DIGITS, "validation": 0.2}, {**settings, **more}, rule, names)
        for seed in (0, 1)
        for arm, more, rule, names in (
            ("plain", {}, None, ("prefixes", "quality", "asymmetric", "ties", "best_per_length", "advice")),
            ("recorded", {"centers": "hadamard"}, "record-uniform", ("backbone",)),
        )
    ]
    wanted[1].config["epochs"] = wanted[3].config["epochs"] = 5  # the backbone is looked at every fifth epoch
    records = [jobs.run(job) for job in wanted]
    plain, recorded = records[:2]
    assert plain["prefix_map"][7] == pytest.approx(plain["map"]["8"])
    assert plain["prefix_map"][15] == pytest.approx(plain["map"]["16"])
    assert [r["bits"] for r in plain["quality"]] == [r["bits"] for r in plain["asymmetric"]] == [8, 16]
    assert plain["ties"]["worst"][0] <= plain["map"]["8"] <= plain["ties"]["best"][0]
    assert {r["rule"]: r["bits"] for r in plain["advice"]}["longest"] == 16
    assert len(plain["best_per_length"]) == 2
    assert recorded["recorded"]["steps"] == 5 * -(-240 // 64)
    cosine = torch.tensor(recorded["backbone"]["cosine"])
    torch.testing.assert_close(cosine.diagonal(), torch.ones(2))
    config = {"title": "t", "question": "q", "measures": ["prefixes"], "axes": {}, "arms": []}
    document = {**engine.describe(config, wanted), **present.rows(config, wanted, records)}
    assert {(r["arm"], r["bits"], r["seeds"]) for r in document["rows"]} == {
        (arm, bits, 2) for arm in ("plain", "recorded") for bits in (8, 16)
    }
    assert len(document["prefix_map"]) == 2
    present.show("t", document)
    for kind in ("means", "prefixes", "heat", "panels"):
        present.figures.draw(kind, document, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").stat().st_size > 5000


@pytest.mark.parametrize("loss", REGISTRY)
def test_the_preset_is_what_the_experiment_measured(loss):
    for job in engine.expand(engine.load("nested_vs_single")):
        if job.labels["recipe"] == "tuned" and job.labels["loss"] == loss and job.seed == 0:
            given = {"loss": loss, "code_lengths": job.config["code_lengths"], "seed": 0}
            measured = TrainConfig.from_dict({**job.config, "seed": 0})
            assert TrainConfig.preset("tuned", **given) == measured
