"""A backbone that trains along with a layer that is fitted without labels."""

import killed
import numpy as np
import pytest
import torch
from test_fit import LENGTHS, fit, recall, vectors, weights
from torch import nn

import nhl_fast as nhl
from nhl_fast.fit.backbone import HiddenLayer


def hidden(width=20, seed=0):
    torch.manual_seed(seed)
    return HiddenLayer(width, 24)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_hidden_layer_starts_from_the_closed_form_of_the_rows():
    x = vectors()
    backbone = hidden()
    assert torch.equal(backbone.eval()(x), x)
    plain = fit(x, steps=1, lr=1e-12)
    beside = fit(x, steps=1, lr=1e-12, backbone=backbone)
    codes = (plain.encode(x), beside.encode(backbone(x)))
    assert torch.equal(*codes)


def test_a_hidden_layer_follows_the_size_of_its_rows():
    x, backbone = vectors().double(), hidden().double()  # training: of the batch's own statistics
    torch.nn.init.normal_(backbone.out.weight)
    backbone.norm.eps = 1e-30
    with torch.no_grad():
        near, far = backbone(x), backbone(1000 * x)
    assert (near - x).norm(dim=1).min() > 0
    torch.testing.assert_close(far, 1000 * near, rtol=1e-9, atol=1e-9)


def test_behind_a_hidden_layer_a_fit_is_no_worse():
    x = torch.nn.functional.normalize(vectors(2000, 32), dim=1)
    queries, database = x[:300], x[300:]

    def found(backbone):
        layer = fit(database, (8, 16), steps=50, backbone=backbone)
        codes = (layer.encode(rows if backbone is None else backbone(rows)) for rows in (queries, database))
        return nhl.neighbor_recall(*codes, queries, database, (16,), 10, (10,), ties="expected").recall[16][10]

    torch.manual_seed(0)
    assert found(HiddenLayer(32, 2048)) > 0.9 * found(None)


def test_it_trains_along():
    x = vectors(2000, 32)
    queries, database = x[:300], x[300:]
    backbone = nn.Sequential(nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU())
    before = state(backbone)
    layer = fit(database, (8, 16), steps=300, backbone=backbone)
    assert layer.in_features == 48
    assert not backbone.training
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)
    untrained = nn.Sequential(nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU())
    untrained.load_state_dict(before)
    start = fit(database, (8, 16), steps=1, lr=1e-12, backbone=untrained)

    def found(layer, backbone):
        codes = (layer.encode(backbone(rows)) for rows in (queries, database))
        return nhl.neighbor_recall(*codes, queries, database, (16,), 10, (10,), ties="expected").recall[16][10]

    assert found(layer, backbone) > found(start, untrained.eval()) + 0.02
    assert recall(fit(database, (8, 16), steps=300), queries, database, 16) > 0.5 * found(layer, backbone)


@pytest.mark.parametrize("stop", [1, 20])
def test_a_fit_that_goes_on_ends_like_an_unbroken_one(tmp_path, monkeypatch, stop):
    x, whole = vectors(), hidden()
    layer = weights(fit(x, backbone=whole))
    killed.after(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(x, checkpoint=tmp_path / "fit", checkpoint_every=7, backbone=hidden())
    monkeypatch.undo()
    again = hidden(seed=9)
    assert torch.equal(layer, weights(fit(x, checkpoint=tmp_path / "fit", resume=True, backbone=again)))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for other in (None, HiddenLayer(20, 25)):
        with pytest.raises(ValueError, match=r"^backbone: expected that of .*inner.weight \(24, 20\)"):
            fit(x, checkpoint=tmp_path / "fit", resume=True, backbone=other)


class Odd(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet"}, TypeError, "expected a torch.nn.Module"),
        ({"backbone": nn.Identity(), "method": "itq"}, ValueError, "expected None with method 'itq'"),
        ({"backbone": Odd(lambda x: x[0])}, ValueError, r"expected it to give \(50, w\) numbers"),
        ({"backbone": Odd(lambda x: (x, x))}, ValueError, r"expected it to give \(50, w\) numbers"),
        ({"backbone": Odd(lambda x: x > 0)}, ValueError, "expected it to give floating-point"),
        ({"backbone": Odd(lambda x: x / 0)}, ValueError, "its outputs: expected finite"),
    ],
)
def test_wrong_backbones(options, error, message):
    with pytest.raises(error, match=f"^backbone: {message}"):
        fit(vectors(50), LENGTHS, **options)


def test_the_estimator_trains_a_copy():
    x, backbone = vectors().numpy() * 3, hidden()
    before = state(backbone)
    coder = nhl.NestedCoder((8, 16), steps=30, rotation_steps=3, progress=False, backbone=backbone).fit(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    unit = torch.nn.functional.normalize(torch.from_numpy(x))
    codes = coder.layer_.encode(coder.backbone_(unit))
    assert np.array_equal(coder.transform(x), codes.numpy())
    assert coder.n_features_in_ == 20
    assert not torch.equal(coder.backbone_.out.weight, before["out.weight"])
    plain = nhl.NestedCoder((8, 16), "itq", progress=False).fit(x)
    assert plain.backbone_ is None
