"""The training step as loops have it, written for the benchmark: what the published procedure does, and one model a
length, as single-length scripts do.

The published procedure: one product per length, every loss evaluated twice (once for the per-length gradients, once
for the total), one backward pass per length, the weights from full gradients of W read back number by number. One
model a length: a head, a loss and a backward pass for each, neither weights nor distillation. The losses are as their
formulas stand (`nhl_fast.losses.naive`): an N x M x b cube for DSH, a Python loop over the rows for DTSH and SHCIR.
Their numbers agree with the package's, which the benchmarks check before they time anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nhl_fast.losses import naive


def _at_centers(loss):
    def value(u, y, state, k):
        center = y @ state.centers[k]
        return loss(u, torch.where(center == 0, state.ties[k], center.sign()))

    return value


def _with_bank(loss):
    return lambda u, y, state, k: loss(u, state.bank[:, : u.shape[1]], y @ state.bank_labels.T > 0)


def _in_batch(loss):
    return lambda u, y, state, k: loss(u, y @ y.T > 0)


def _softmax(loss):
    return lambda u, y, state, k: loss(u, y, state.centers[k])


def _mdsh_with_its_bank(u, y, state, k):
    return _softmax(naive.mdsh)(u, y, state, k) + _with_bank(naive.mdsh_pairs)(u, y, state, k)


LOSSES = {
    **{name: _at_centers(getattr(naive, name)) for name in ("csq", "dpn")},
    **{name: _with_bank(getattr(naive, name)) for name in ("dsh", "dhn", "dbdh", "dpsh")},
    **{name: _in_batch(getattr(naive, name)) for name in ("dtsh", "lcdsh", "dch", "hashnet")},
    **{name: _softmax(getattr(naive, name)) for name in ("mdsh", "shcir", "orthocos", "orthoarc")},
    "mdsh_pairs": _mdsh_with_its_bank,
}


def loop_of(name: str, loss):
    """The loss of one length as scripts write it, f(u, y, state, k); where none is written here, its own formula."""
    return LOSSES.get(name) or (lambda u, y, state, k: loss.naive(u, y, k))


class State:
    """What a loss keeps, as scripts hold it: centres of each length, a bank of outputs and one-hot labels."""

    def __init__(self, loss):
        self.centers, self.ties = getattr(loss, "centers", None), getattr(loss, "tie_centers", None)
        bank = getattr(loss, "bank", None)
        self.bank = self.bank_labels = None
        if bank is not None:
            self.bank, self.bank_labels = bank.u.clone(), F.one_hot(bank.labels, loss.num_classes).float()

    def store(self, u, y, index):
        """The rows of a step into the bank, if there is one."""
        if self.bank is not None:
            self.bank[index], self.bank_labels[index] = u.detach(), y


class LiteralStep:
    """The head's training step, literally; weight, bias and what the loss learns are shared with the package's."""

    def __init__(self, name, weight, bias, code_lengths, loss, distill_weight=1.0):
        self.loss, self.lengths, self.distill_weight = loop_of(name, loss), code_lengths, distill_weight
        self.weight, self.bias = weight, bias
        self.state = State(loss)

    def terms(self, features, y, index):
        outputs = [features @ self.weight[:b].T + self.bias[:b] for b in self.lengths]
        self.state.store(outputs[-1], y, index)
        values = [self.loss(u, y, self.state, k) for k, u in enumerate(outputs)]
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


class SingleStep:
    """The step of one model of the k-th length: its head, its loss, one backward pass."""

    def __init__(self, name, weight, bias, loss, k):
        self.loss, self.weight, self.bias, self.k = loop_of(name, loss), weight, bias, k
        self.state = State(loss)
        if self.state.bank is not None:
            self.state.bank = self.state.bank[:, : len(weight)].contiguous()

    def __call__(self, features, y, index):
        u = features @ self.weight.T + self.bias
        self.state.store(u, y, index)
        value = self.loss(u, y, self.state, self.k)
        value.backward()
        return value.detach()
