"""The losses of rows that count by weights and have soft labels, in loops over rows, pairs and classes.

By a loss's name a function of (loss, u (N, b), its labels (N, C) from 0 to 1, its rows' weights (N,), k).
"""

import torch

from nhl_fast.losses import naive

LENGTHS, CLASSES = (4, 9), 4


def soft_weights(rows):
    """Of each row, by hand: its classes' at their mean; nothing where it is ignored."""
    out = []
    for row in rows.tolist():
        total = sum(row)
        out.append(sum(a * b for a, b in zip(row, (2, 1, 0, 3))) / total if total > 0 else 1.0 if total == 0 else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def mean_of(values, weights):
    return (values * weights).sum() / weights.sum()


def one_by_one(loss, u, y, w, k):
    """A loss of centres at one length: of every row alone, and of every class of it alone, by the plain formulas."""
    rows = []
    for row, shares in zip(u, y):
        ids = [c for c in range(CLASSES) if shares[c] > 0]
        if ids:
            parts = [shares[c] * loss.naive(row[None], torch.tensor([c]), k) for c in ids]
            rows.append(sum(parts) / shares.sum())
        else:
            rows.append(loss.naive(row[None], torch.zeros(1, CLASSES, dtype=torch.bool), k))
    return mean_of(torch.stack(rows), w)


def softmax_of_rows(loss, u, y, w, k):
    centers = loss.centers[k].to(u.dtype)
    rows = [FORMULAS[type(loss).__name__](loss, u[i : i + 1], y[i : i + 1], centers) for i in range(len(u))]
    return mean_of(torch.stack(rows), w)


def _shcir(loss, u, y, centers):
    p = naive.probabilities(u, centers, loss.reference_bits)
    others = ((1 - y) * (1 - p).log()).sum() / (CLASSES - 1)
    return -(y * p.log()).sum() - others + loss.quantization * (u.abs() - 1).square().mean()


def _ortho(turn):
    def formula(loss, u, y, centers):
        cosine = naive.unit(u) @ naive.unit(centers).T
        log_p = (loss.scale * turn(cosine, loss.margin * y)).log_softmax(1)
        return -(y * log_p).sum() / y.sum() if y.any() else (u * 0).sum()

    return formula


FORMULAS = {
    "MDSH": lambda loss, u, y, centers: naive.mdsh(
        u, y, centers, quantization=loss.quantization, reference_bits=loss.reference_bits
    ),
    "SHCIR": _shcir,
    "OrthoCos": _ortho(lambda cosine, margin: cosine - margin),
    "OrthoArc": _ortho(lambda cosine, margin: (cosine.acos() + margin).cos()),
}


def pair_by_pair(loss, u, y, w, k):
    """Every pair alone, as if similar and as if not; and the penalty of every row alone."""
    bank = getattr(loss, "bank", None)
    if bank is None:
        others, theirs, v = u, y, w
    else:
        others, theirs = bank.u[bank.written, : u.shape[1]].double(), bank.labels[bank.written].double()
        v = soft_weights(theirs)
    s = torch.nn.functional.cosine_similarity(y[:, None], theirs[None], dim=2, eps=1e-30)
    s = torch.where(s > 1 - 1e-9, 1.0, s)
    amount = w[:, None] * v
    near, far = (torch.stack([torch.stack([_pair(loss, a, b, x) for b in others]) for a in u]) for x in (True, False))
    similar, unlike, share = (amount * s).sum(), (amount * (1 - s)).sum(), _share(loss)
    total = similar + unlike
    weights = (
        (1.0, 1.0)
        if share is None or not similar or not unlike
        else (share * total / similar, share * total / unlike)
    )
    found = (amount * (weights[0] * s * near + weights[1] * (1 - s) * far)).sum() / total
    return found + mean_of(torch.stack([_penalty(loss, a) for a in u]), w)


def _share(loss):
    if type(loss).__name__ in ("HashNet", "DCH"):
        return 1.0
    return 0.5 if getattr(loss, "balance", False) else None


def _pair(loss, a, b, similar):
    """The loss of one pair, by the formulas of the papers."""
    name, bits = type(loss).__name__, getattr(loss, "reference_bits", None)
    theta = a @ b / 2 * (1 if bits is None else bits / len(a))
    if name == "DSH":
        distance = (a - b).square().sum()
        return distance / 2 if similar else (loss.margin * len(a) - distance).clamp(min=0) / 2
    if name == "DCH":
        cap = loss.max_cosine or 2
        d = (len(a) / 2 * (1 - (naive.unit(a[None]) @ naive.unit(b[None]).T).clamp(max=cap))).clamp(
            min=1e-6
        ) / loss.gamma
        return (similar * d.log() + (1 + 1 / d).log()).sum()
    if name == "DBDH" and loss.clamp:
        theta = a.clamp(-1, 1) @ b.clamp(-1, 1) / 2 * (1 if bits is None else bits / len(a))
    if name == "HashNet":
        theta = (loss.sharpness * a).tanh() @ (loss.sharpness * b).tanh() / 2 * bits / len(a)
    if name == "LCDSH":
        theta = theta.clamp(-50, 50) if loss.clamp else theta
        coded = naive.signs(a.detach()) @ naive.signs(b.detach()) / 2 * (1 if bits is None else bits / len(a))
        return naive.softplus(-theta if similar else theta) + loss.eta * (theta.sigmoid() - coded.sigmoid()) ** 2
    return naive.softplus(theta) - similar * theta


def _penalty(loss, a):
    name = type(loss).__name__
    if name == "DSH":
        return loss.alpha * (a.abs() - 1).abs().mean()
    if name == "DHN":
        return loss.alpha * (a.abs() - 1).cosh().log().mean()
    if name == "DPSH":
        return loss.alpha * (a - naive.signs(a.detach())).square().mean()
    if name == "DBDH":
        return loss.alpha * (a.clamp(-1, 1) if loss.clamp else a).mean().square()
    if name == "DCH":
        d = len(a) / 2 * (1 - (naive.unit(a[None].abs()).sum() / len(a) ** 0.5).clamp(max=loss.max_cosine or 2))
        return loss.quantization * (1 + d.clamp(min=1e-6) / loss.gamma).log()
    return (a * 0).sum()


def triplet_by_triplet(loss, u, y, w, k):
    s = torch.nn.functional.cosine_similarity(y[:, None], y[None], dim=2, eps=1e-30)
    s, n = torch.where(s > 1 - 1e-9, 1.0, s), len(u)
    theta = u @ u.T * (1 if loss.reference_bits is None else loss.reference_bits / u.shape[1])
    anchors, weights = [], []
    for i in range(n):
        found = total = 0.0
        for p in range(n):
            for q in range(n):
                amount = s[i, p] * w[p] * (1 - s[i, q]) * w[q]
                t = theta[i, p] - theta[i, q] - loss.margin
                found, total = (
                    found + amount * naive.softplus(-(t.clamp(-100, 50) if loss.clamp else t)),
                    total + amount,
                )
        if total > 0 and w[i] > 0:
            anchors.append(found / total), weights.append(w[i])
    penalty = (u - naive.signs(u.detach())).square().mean(1)
    return mean_of(torch.stack(anchors), torch.stack(weights)) + loss.quantization * mean_of(penalty, w)


def graded_pairs(loss, u, y, w, k):
    """IDHN of rows of weights: every pair by its own similarity."""
    h, b = u / (1 + u.abs()), u.shape[1]
    s = torch.nn.functional.cosine_similarity(y[:, None], y[None], dim=2, eps=1e-30)
    found = total = 0.0
    for i in range(len(u)):
        for j in range(len(u)):
            x, grade = h[i] @ h[j], s[i, j]
            if 0.01 <= grade <= 0.99:
                pair = loss.gamma * b * ((x / b + 1) / 2 - grade) ** 2
            else:
                pair = naive.softplus(loss.sharpness * x / b) - grade * loss.sharpness * x / b
            found, total = found + w[i] * w[j] * pair, total + w[i] * w[j]
    return found / total + loss.alpha * mean_of((h.abs() - 1).abs().mean(1), w)


def classified(loss, u, y, w, k):
    """GreedyHash of rows of weights: every row by its own cross-entropy."""
    z = u + (naive.signs(u) - u).detach()
    log_p = (z @ loss.classifier.split(LENGTHS, dim=1)[k].T).log_softmax(1)
    rows = [-(y[i] * log_p[i]).sum() / (y[i].sum() if y[i].any() else 1) for i in range(len(u))]
    return mean_of(torch.stack(rows), w) + loss.alpha * mean_of(((u.abs() - 1).abs() ** 3).mean(1), w)


def with_proxies(loss, u, y, w, k):
    """HyP2 of rows of weights: every row with every proxy, and every two rows of several classes."""
    b, t = LENGTHS[k], loss.thresholds[k]
    sums, totals = [0.0] * 3, [0.0] * 3

    def add(which, amount, value):
        sums[which], totals[which] = sums[which] + amount * value, totals[which] + amount

    def cosine(a, b):
        return (naive.unit(a[None]) @ naive.unit(b[None]).T).sum()

    s = torch.nn.functional.cosine_similarity(y[:, None], y[None], dim=2, eps=1e-30)
    for i in range(len(u)):
        for c in range(CLASSES):
            x = cosine(u[i], loss.proxies[c, :b].to(u))
            add(0, w[i] * y[i, c], 1 - x)
            add(1, w[i] * (1 - y[i, c]), (x - t).relu())
        for j in range(len(u)):
            if (y[i] > 0).sum() > 1 and (y[j] > 0).sum() > 1:
                add(
                    2,
                    w[i] * w[j] * (1 - torch.where(s[i, j] > 1 - 1e-9, 1.0, s[i, j])),
                    (cosine(u[i], u[j]) - t).relu(),
                )
    return sums[0] / totals[0] + sums[1] / totals[1] + loss.beta * sums[2] / totals[2]


PLAINLY = {
    "greedyhash": classified,
    "hyp2": with_proxies,
    "idhn": graded_pairs,
    **dict.fromkeys(("csq", "dpn"), one_by_one),
    **dict.fromkeys(("mdsh", "shcir", "orthocos", "orthoarc"), softmax_of_rows),
    **dict.fromkeys(("dsh", "dhn", "dpsh", "dbdh", "hashnet", "lcdsh", "dch"), pair_by_pair),
    "dtsh": triplet_by_triplet,
}
