"""A literal baseline of the training step, written for the benchmark: what the published procedure does.

One product per length, every loss evaluated twice (once for the per-length gradients, once for the total), one
backward pass per length, the weights from full gradients of W read back number by number, and the losses as
their formulas stand: an N x M x b cube for DSH, a Python loop over the rows for DTSH and SHCIR. Its numbers
agree with the package's, which the benchmark checks before it times anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _similarity(a, b):
    return (a @ b.T > 0).float()


def csq(u, y, state, k):
    center = y @ state.centers[k]
    center = torch.where(center == 0, state.ties[k], center.sign())
    v = u.tanh()
    entropy = F.binary_cross_entropy(0.5 * (v + 1), 0.5 * (center + 1))
    return entropy + 1e-4 * (v.abs() - 1).pow(2).mean()


def dpn(u, y, state, k):
    center = y @ state.centers[k]
    center = torch.where(center == 0, state.ties[k], center.sign())
    return (1 - u * center).clamp(min=0).mean()


def dsh(u, y, state, k):
    bank, similar = state.bank[:, : u.shape[1]], _similarity(y, state.bank_labels)
    distance = (u.unsqueeze(1) - bank.unsqueeze(0)).pow(2).sum(2)
    loss = 0.5 * similar * distance + 0.5 * (1 - similar) * (2 * u.shape[1] - distance).clamp(min=0)
    return loss.mean() + 0.1 * (1 - u.abs()).abs().mean()


def dhn(u, y, state, k):
    bank, similar = state.bank[:, : u.shape[1]], _similarity(y, state.bank_labels)
    theta = 0.5 * u @ bank.T
    likelihood = (1 + (-theta.abs()).exp()).log() + theta.clamp(min=0) - similar * theta
    return likelihood.mean() + 0.1 * (u.abs() - 1).cosh().log().mean()


def dbdh(u, y, state, k):
    u, bank = u.clamp(-1, 1), state.bank[:, : u.shape[1]].clamp(-1, 1)
    similar, theta = _similarity(y, state.bank_labels), 0.5 * u @ bank.T
    likelihood = (1 + (-theta.abs()).exp()).log() + theta.clamp(min=0) - similar * theta
    return likelihood.mean() + 0.1 * u.mean(1).pow(2).mean()


def dtsh(u, y, state, k):
    similar, theta = _similarity(y, y), u @ u.T
    total, rows = 0.0, 0
    for row in range(u.shape[0]):
        positive, negative = similar[row] == 1, similar[row] == 0
        if positive.sum() != 0 and negative.sum() != 0:
            t = theta[row][positive].unsqueeze(1) - theta[row][negative].unsqueeze(0) - 5
            t = t.clamp(-100, 50)
            total = total + ((1 + t.exp()).log() - t).mean()
            rows += 1
    loss = total / rows if rows else u.sum() * 0
    return loss + (u - u.sign()).pow(2).mean()


def lcdsh(u, y, state, k):
    signs = 2 * _similarity(y, y) - 1
    theta = (0.5 * u @ u.T).clamp(-50, 50)
    likelihood = (1 + (-signs * theta).exp()).log().mean()
    coded = 0.5 * u.sign() @ u.sign().T
    return likelihood + 3 * (theta.sigmoid() - coded.sigmoid()).pow(2).mean()


def dch(u, y, state, k):
    similar, bits = _similarity(y, y), u.shape[1]

    def distance(a, b):
        norms = a.norm(dim=1, keepdim=True) @ b.norm(dim=1, keepdim=True).T
        return (1 - (a @ b.T / norms.clamp(min=1e-12)).clamp(max=0.99)) * bits / 2

    positives, number = similar.sum(), similar.numel()
    if positives == 0 or positives == number:
        weights = torch.ones_like(similar)
    else:
        weights = torch.where(similar == 1, number / positives, number / (number - positives))
    d = distance(u, u)
    loss = weights * (similar * (d / 20).log() + (1 + 20 / d).log())
    penalty = (1 + distance(u.abs(), torch.ones_like(u[:1])) / 20).log()
    return loss.mean() + 0.1 * penalty.mean()


def _probabilities(u, centers):
    cosine = F.normalize(u, dim=1) @ F.normalize(centers, dim=1).T
    return (cosine * u.shape[1] ** 0.5).softmax(1)


def mdsh(u, y, state, k):
    p = _probabilities(u, state.centers[k])
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    return loss + 1e-4 * (u.abs() - 1).pow(2).mean()


def shcir(u, y, state, k):
    p = _probabilities(u, state.centers[k])
    total = 0.0
    for row in range(u.shape[0]):
        positive, negative = p[row][y[row] == 1], p[row][y[row] == 0]
        total = total + positive.log().mean() + (1 - negative).log().mean()
    return -total / u.shape[0] + 1e-4 * (u.abs() - 1).pow(2).mean()


LOSSES = {f.__name__: f for f in (csq, dpn, dsh, dhn, dbdh, dtsh, lcdsh, dch, mdsh, shcir)}


class LiteralStep:
    """The head's training step, literally; its state (weight, bank, centres) is shared with the package's."""

    def __init__(self, name, weight, bias, code_lengths, loss, distill_weight=1.0):
        self.loss, self.lengths, self.distill_weight = LOSSES[name], code_lengths, distill_weight
        self.weight, self.bias = weight, bias
        self.centers, self.ties = getattr(loss, "centers", None), getattr(loss, "tie_centers", None)
        bank = getattr(loss, "bank", None)
        if bank is not None:
            self.bank = bank.u.clone()
            self.bank_labels = F.one_hot(bank.labels, loss.num_classes).float()

    def terms(self, features, y, index):
        outputs = [features @ self.weight[:b].T + self.bias[:b] for b in self.lengths]
        if hasattr(self, "bank"):
            self.bank[index] = outputs[-1].detach()
            self.bank_labels[index] = y
        values = [self.loss(u, y, self, k) for k, u in enumerate(outputs)]
        grams = [F.normalize(u @ u.T, dim=1) for u in outputs]
        for k in range(len(grams) - 1):
            distill = (grams[k] - grams[k + 1].detach()).pow(2).sum() / features.shape[0] ** 2
            values[k] = values[k] + self.distill_weight * distill
        return values

    def weights(self, features, y, index):
        m = len(self.lengths)
        values = self.terms(features.detach(), y, index)
        grads = [torch.autograd.grad(v, self.weight, retain_graph=True)[0] for v in values]
        weights = [1.0]
        for i in range(1, m):
            bound = 1.0
            for k in range(i):
                own = grads[k][: self.lengths[k]]
                dot = (grads[i][: self.lengths[k]] * own).sum().item()
                if dot < 0:
                    bound = min(bound, weights[k] * own.pow(2).sum().item() / ((m - k - 1) * -dot))
            weights.append(bound)
        return [w * m / sum(weights) for w in weights]

    def __call__(self, features, y, index):
        weights = self.weights(features, y, index)
        values = self.terms(features, y, index)
        total = sum(w * v for w, v in zip(weights, values))
        total.backward()
        return total.detach()
