"""Training scripts of one length, written anew in the shape that they have, with our parts in them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import nhl_fast as nhl
from nhl_fast.losses import naive

BITS, CLASSES, ROWS = 12, 4, 60


class Items(Dataset):
    """(picture, one-hot row, place), as their lists of pictures give them."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        ids = torch.arange(ROWS) % CLASSES
        self.labels = np.eye(CLASSES, dtype=np.float32)[ids.numpy()]
        self.pictures = torch.randn(ROWS, 10, generator=generator) + 2 * torch.eye(CLASSES, 10)[ids]

    def __len__(self):
        return ROWS

    def __getitem__(self, place):
        return self.pictures[place], self.labels[place], place


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.features, self.hash_layer = nn.Sequential(nn.Linear(10, 16), nn.ReLU()), layer

    def forward(self, x):
        return self.hash_layer(self.features(x))


def net():
    torch.manual_seed(5)
    return Net(nn.Linear(16, BITS))


class TheirLoss(nn.Module):
    """A bank of the training items and of their one-hot rows, full from the start, or none."""

    def __init__(self, formula, bank):
        super().__init__()
        self.formula = formula
        self.U, self.Y = (None, None) if bank is None else (bank.u.clone(), torch.eye(CLASSES)[bank.labels])

    def forward(self, u, y, ind, config):
        if self.U is None:
            return self.formula(u, y @ y.T > 0)
        self.U[ind, :], self.Y[ind, :] = u.data, y
        return self.formula(u, self.U, y @ self.Y.T > 0)


def their_loop(net, criterion, config):
    loader = DataLoader(Items(), batch_size=16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(config["epoch"]):
        net.train()
        for image, label, ind in loader:
            optimizer.zero_grad()
            u = net(image)
            loss = criterion(u, label.float(), ind, config)
            loss.backward()
            optimizer.step()


def our_loop(net, objective, config):
    loader = DataLoader(Items(), batch_size=16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(config["epoch"]):
        net.train()
        for image, label, ind in loader:
            optimizer.zero_grad()
            objective(net.features(image), label, ind).total.backward()
            optimizer.step()


def our_criterion_loop(net, criterion, config):
    """Their loop; the criterion takes the layer's tuple, and no settings."""
    their_loop(net, lambda u, y, ind, config: criterion(u, y, ind).sum(), config)


def compute_result(loader, net):
    codes, labels = [], []
    net.eval()
    for image, label, _ in loader:
        codes.append(net(image).data.sign())
        labels.append(label)
    return torch.cat(codes), torch.cat(labels)


def loss_of(name, lengths=(BITS,)):
    loss = nhl.losses.build(name, num_classes=CLASSES, code_lengths=lengths, num_train=ROWS)
    if (bank := getattr(loss, "bank", None)) is not None:
        torch.manual_seed(6)
        bank.update(torch.arange(ROWS), torch.randn(ROWS, lengths[-1]), torch.arange(ROWS) % CLASSES)
    return loss


@pytest.mark.parametrize("loop", [our_loop, our_criterion_loop])
@pytest.mark.parametrize("name", ["dch", "dhn", "dsh"])
def test_a_script_of_one_length(name, loop):
    theirs, ours, loss = net(), net(), loss_of(name)
    before = copy.deepcopy(theirs.state_dict())
    their_loop(theirs, TheirLoss(getattr(naive, name), getattr(loss, "bank", None)), {"epoch": 2})
    layer = nhl.NestedHashLayer(16, (BITS,))
    layer.hash_layer.load_state_dict(ours.hash_layer.state_dict())
    ours.hash_layer = layer
    loop(ours, nhl.NestedObjective(layer, loss) if loop is our_loop else loss, {"epoch": 2})
    after = theirs.state_dict()
    for (key, start), value in zip(before.items(), ours.state_dict().values(), strict=True):
        moved = (after[key] - start).norm()
        assert moved > 0
        assert (value - after[key]).norm() < 1e-3 * moved, key

    codes, labels = compute_result(DataLoader(Items(), batch_size=16), theirs)
    packed = layer.encode(ours.features(Items().pictures))
    assert torch.equal(packed, nhl.pack_codes(codes))
    topk = 20
    found = nhl.compat.calc_top_map(codes[20:], codes[:20], labels[20:], labels[:20], topk)
    measured = nhl.evaluate_retrieval(packed[:20], packed[20:], labels[:20], labels[20:], lengths=(BITS,), topk=topk)
    assert found == pytest.approx(measured.mean_average_precision[BITS], rel=1e-12)


def test_several_lengths_in_their_loop():
    """The same script with a tuple of prefixes: the criterion's values add up to one backward pass."""
    model, loss = net(), loss_of("dch", (6, BITS))
    model.hash_layer = nhl.NestedHashLayer(16, (6, BITS))
    their_loop(model, lambda u, y, ind, config: loss(u, y, ind).mean(), {"epoch": 60})
    packed = model.hash_layer.encode(model.features(Items().pictures)).detach()
    y = torch.arange(ROWS) % CLASSES
    result = nhl.evaluate_retrieval(packed[:20], packed[20:], y[:20], y[20:], lengths=(6, BITS))
    assert min(result.mean_average_precision.values()) > 0.7
