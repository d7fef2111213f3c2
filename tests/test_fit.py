"""Layers fitted without labels: their definitions, determinism, memory maps, checkpoints and errors."""

import killed
import numpy as np
import pytest
import torch

import nhl_fast as nhl
from nhl_fast.fit import closed, rows
from nhl_fast.training.checkpoint import load_state, save_state

LENGTHS = (4, 8, 16, 24)


def vectors(n=600, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator) * torch.logspace(0.3, -0.7, width)
    return torch.nn.functional.normalize(x + 0.2)


def fit(x, lengths=LENGTHS, method="learned", **options):
    options = {"steps": 60, "anchors": 16, "rotation_steps": 10, "progress": False, **options}
    return nhl.fit_layer(x, lengths, method, **options)


def weights(layer):
    return torch.cat([layer.hash_layer.weight, layer.hash_layer.bias[:, None]], 1).detach()


def recall(layer, queries, database, length):
    codes = (layer.encode(rows) for rows in (queries, database))
    return nhl.neighbor_recall(*codes, queries, database, (length,), 10, (10,), ties="expected").recall[length][10]


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_moments_are_those_of_numpy_whatever_the_chunks(dtype, monkeypatch):
    x = (vectors() * 3 + 100).to(dtype)  # a mean far from 0: what cancels shows
    for chunk in (1, 2**14, 2**26):
        monkeypatch.setattr(rows, "CHUNK_BYTES", chunk)
        found = rows.moments(x, torch.device("cpu"))
        plain = x.double().numpy()
        assert np.allclose(found.mean, plain.mean(0), rtol=1e-6)
        scale = np.cov(plain.T, bias=True).max()
        assert np.abs(found.covariance.numpy() - np.cov(plain.T, bias=True)).max() < 1e-5 * scale


def test_pca_gives_the_leading_components():
    x = vectors()
    layer = fit(x, (5, 10), "pca")
    centred = (x - x.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    product = layer.hash_layer.weight.double() @ directions[:10].T
    assert torch.allclose(product.abs(), torch.eye(10, dtype=torch.float64), atol=1e-4)
    outputs = layer.project(x)
    assert torch.allclose(outputs.mean(0), torch.zeros(10), atol=1e-5)
    assert (outputs.var(0).diff() < 0).all()


def test_one_length_of_itq_is_an_orthonormal_rotation_that_lowers_the_error():
    x = vectors()

    def error(layer):
        weight = layer.hash_layer.weight.detach()
        assert torch.allclose(weight @ weight.T, torch.eye(12), atol=1e-4)
        u = layer.project(x).detach()
        return float((u.sign() * u.abs().mean() - u).square().mean())

    assert error(fit(x, (12,), "itq", rotation_steps=50)) < error(fit(x, (12,), "pca"))


@pytest.mark.parametrize("bits", [3, 8])
def test_a_rotation_comes_nearer_to_the_corners_with_every_step(bits):
    values = vectors()[:, :8]
    values = values - values.mean(0)
    gains = []
    for steps in (1, 2, 5, 20):
        turn = closed.rotation(values, bits, steps, torch.Generator().manual_seed(0))
        assert torch.allclose(turn.T @ turn, torch.eye(bits), atol=1e-5)
        gains.append(float((values @ turn).abs().sum()))
    assert gains == sorted(gains)
    assert gains[-1] > gains[0]


def test_nested_itq_does_what_itq_a_length_does():
    x = vectors(2000, 32)
    queries, database = x[:400], x[400:]
    nested = fit(database, (8, 16, 32), "itq")
    for b in (8, 16, 32):
        single = recall(fit(database, (b,), "itq"), queries, database, b)
        assert recall(nested, queries, database, b) > 0.88 * single


@pytest.mark.parametrize("method", ["itq", "learned", "random"])
def test_codes_may_be_longer_than_the_vectors(method):
    x = vectors()
    layer = fit(x, (8, 64, 100), method, steps=20, rotation_steps=3)
    assert layer.encode(x).shape == (600, 13)
    longer, shorter = (recall(layer, x[:50], x[50:], b) for b in (100, 8))
    assert longer > shorter + 0.2
    with pytest.raises(ValueError, match=r"^code_lengths: expected at most 20 bits for method 'pca'"):
        fit(x, (8, 64), "pca")


def test_methods_rank_as_expected():
    x = vectors(2000, 32)
    queries, database = x[:300], x[300:]
    found = {m: recall(fit(database, (8, 16), m, steps=300), queries, database, 16)
             for m in ("random", "itq", "learned")}  # fmt: skip
    assert found["random"] + 0.02 < found["itq"]
    assert found["itq"] < found["learned"] + 0.02


# ---------------------------------------------------------------------------------------------------- learning


def test_equal_seeds_give_equal_layers_and_leave_the_users_stream_alone():
    x = vectors()
    for method in ("learned", "itq", "random"):
        torch.manual_seed(5)
        first = weights(fit(x, method=method, seed=3))
        after = torch.rand(1)
        torch.manual_seed(5)
        assert after == torch.rand(1)
        assert torch.equal(first, weights(fit(x, method=method, seed=3)))
        assert not torch.equal(first, weights(fit(x, method=method, seed=4)))


@pytest.mark.parametrize("method", ["learned", "itq", "pca"])
def test_a_memory_map_gives_the_same_layer(tmp_path, method):
    x = vectors()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lengths = (4, 16)
    assert torch.equal(weights(fit(x, lengths, method)), weights(fit(mapped, lengths, method)))
    sampled = fit(mapped, lengths, method, sample_rows=100)
    assert sampled.encode(x).shape == (600, 2)


def test_a_sample_holds_distinct_rows_in_their_order():
    for n in (50, 500, 5000):
        x = torch.arange(n, dtype=torch.float32)[:, None]
        found = rows.sample(x, 100, torch.Generator().manual_seed(0), torch.device("cpu"))[:, 0]
        assert len(found) == min(n, 100)
        assert (found.diff() > 0).all()
        assert n <= 100 or found[-1] > 0.8 * n


def test_normalize_is_what_it_says():
    x = vectors() * torch.rand(600, 1).add(0.5)
    unit = torch.nn.functional.normalize(x)
    first, second = (weights(fit(*case)) for case in ((unit, LENGTHS, "itq"), (x, LENGTHS, "itq")))
    assert torch.allclose(first, weights(fit(x, LENGTHS, "itq", normalize=True)), atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("stop", [1, 20, 45])
def test_a_fit_that_goes_on_ends_like_an_unbroken_one(tmp_path, monkeypatch, stop):
    x = vectors()
    whole = weights(fit(x))
    killed.after(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(x, checkpoint=tmp_path / "fit", checkpoint_every=7)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"^checkpoint: "):
        fit(x, checkpoint=tmp_path / "fit")
    assert torch.equal(whole, weights(fit(x, checkpoint=tmp_path / "fit", resume=True)))
    assert torch.equal(whole, weights(fit(x, checkpoint=tmp_path / "fit", resume=True)))  # it has ended
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == ["checkpoint.safetensors"]


def test_a_fit_goes_on_with_its_own_settings_only(tmp_path):
    x = vectors()
    fit(x, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"^checkpoint: .*lr 0.003 -> 0.1"):
        fit(x, checkpoint=tmp_path, resume=True, lr=0.1)
    with pytest.raises(ValueError, match=r"^checkpoint: .*other features"):
        fit(x + 1, checkpoint=tmp_path, resume=True)
    state = load_state(tmp_path / "checkpoint.safetensors")
    save_state(tmp_path / "checkpoint.safetensors", {"step": state["step"]})
    with pytest.raises(ValueError, match=r"^checkpoint: .*no state of a fit"):
        fit(x, checkpoint=tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="damaged"):
        fit(x, checkpoint=tmp_path, resume=True)


X = vectors(50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X[0]}, "features: "),
        ({"x": X[:1]}, "features: expected at least 2 rows"),
        ({"x": X.long()}, "features: "),
        ({"x": torch.ones(50, 4)}, "features: expected rows that differ"),
        ({"x": X / 0}, "features: expected finite"),
        ({"lengths": (8, 8)}, "code_lengths: "),
        ({"method": "lsh"}, "method: "),
        ({"sample_rows": 1}, "sample_rows: "),
        ({"steps": 0}, "steps: "),
        ({"anchors": 0}, "anchors: "),
        ({"drawn": 17}, "drawn: expected at most neighbors"),
        ({"temperature": 0.0}, "temperature: "),
        ({"lr": -1.0}, "lr: "),
        ({"lr": 1e30}, "lr: expected a rate"),
        ({"seed": -1}, "seed: "),
        ({"device": "meta"}, "device: "),
        ({"normalize": 1}, "normalize: "),
        ({"resume": True}, "resume: "),
        ({"checkpoint": "no/such", "resume": True}, "checkpoint: "),
        ({"checkpoint": "x", "method": "itq"}, "checkpoint: "),
        ({"checkpoint_every": 0}, "checkpoint_every: "),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=f"^{message}"):
        fit(**{"x": X, **options})


def test_few_rows_and_few_directions():
    x = torch.tensor([[0.0, 1], [1, 0], [1, 1]])
    for method in ("learned", "itq"):
        assert fit(x, (1, 3, 9), method, anchors=2).encode(x).shape == (3, 2)
    flat = vectors() @ torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) @ torch.ones(3, 20)
    assert fit(flat, (4, 8), "itq").encode(flat).shape == (600, 1)  # rank 1


# --------------------------------------------------------------------------------------------------- estimator


def test_the_estimator_keeps_scikit_learns_conventions():
    x = vectors().numpy() * 3
    coder = nhl.NestedCoder((8, 16), method="itq", progress=False)
    with pytest.raises(AttributeError):
        coder.transform(x)
    with pytest.raises(ValueError, match="fit"):
        coder.outputs(x)
    codes = coder.fit_transform(x)
    assert isinstance(codes, np.ndarray)
    assert codes.shape == (600, 2)
    assert np.array_equal(codes, np.packbits(coder.outputs(x) > 0, axis=1))
    assert torch.equal(coder.transform(torch.from_numpy(x)), torch.from_numpy(codes))
    assert np.array_equal(codes, coder.transform(x * 7))  # rows are brought to length 1
    again = nhl.NestedCoder(**coder.get_params())
    assert np.array_equal(codes, again.set_params(seed=0).fit(x).transform(x))
    assert coder.n_features_in_ == 20
    assert repr(coder) == "NestedCoder(code_lengths=(8, 16), method='itq', progress=False)"
    with pytest.raises(ValueError, match=r"^bits: "):
        coder.set_params(bits=3)
    with pytest.raises(ValueError, match=r"^X: expected 20 numbers"):
        coder.transform(x[:, :5])


def test_the_estimator_in_a_pipeline():
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    coder = nhl.NestedCoder((8, 16), method="pca", progress=False)
    x = vectors().numpy()
    pipeline = make_pipeline(clone(coder)).fit(x)
    assert np.array_equal(pipeline.transform(x), coder.fit(x).transform(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    x = vectors(2000, 32)
    layer = fit(x, (8, 16), device="cuda", steps=300)
    assert layer.hash_layer.weight.is_cuda
    host = fit(x, (8, 16), steps=300)
    queries, database = x[:300], x[300:]
    assert abs(recall(layer.cpu(), queries, database, 16) - recall(host, queries, database, 16)) < 0.05
