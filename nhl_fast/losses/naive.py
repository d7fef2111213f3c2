"""The losses as their papers print them: one code length, plain PyTorch, autograd alone. Written to be read.

What a compiled step or a reference form computes is held against these functions in the tests; nothing is saved here,
neither memory nor time, and nothing is done about overflow or cancellation: take float64.

In all of them u is (N, b), the raw outputs of one code length; `similar` (N, M), bool, is S of the pairs; `others`
(M, b) are the stored outputs of the training items; `y` (N, C) are labels of zeros and ones, and centres are of +-1.
A mean over nothing is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def csq(u, center, *, quantization=1e-4):
    """Yuan et al., "Central Similarity Quantization", CVPR 2020: L_C + lambda L_Q. center (N, b): each row's own."""
    h = u.tanh()
    central = F.binary_cross_entropy((h + 1) / 2, (center > 0).to(u.dtype))
    return central + quantization * (h.abs() - 1).square().mean()


def dpn(u, center, *, margin=1.0, ternary=False):
    """Fan et al., "Deep Polarized Network", IJCAI 2020: the polarization loss. center (N, b): each row's own.

    ternary: u is rounded to -1, 0 (within the margin) or 1 first, and the gradient passed straight through.
    """
    if ternary:
        u = torch.where(u.abs() > margin, u.sign(), 0).detach() + (u - u.detach())
    return F.relu(margin - u * center).mean()


def dsh(u, others, similar, *, margin=2.0, alpha=0.1, balance=False):
    """Liu et al., "Deep Supervised Hashing", CVPR 2016: the contrastive loss, m = margin b."""
    distance = (u[:, None] - others[None]).square().sum(2)
    short = F.relu(margin * u.shape[1] - distance)
    pairs = torch.where(similar, distance / 2, short / 2)
    return over_pairs(pairs, similar, balance) + alpha * (u.abs() - 1).abs().mean()


def dhn(u, others, similar, *, alpha=0.1, reference_bits=None, balance=False):
    """Zhu et al., "Deep Hashing Network", AAAI 2016: pairwise cross-entropy, and log cosh to quantize."""
    theta = scaled(u @ others.T / 2, u, reference_bits)
    pairs = softplus(theta) - similar * theta
    return over_pairs(pairs, similar, balance) + alpha * (u.abs() - 1).cosh().log().mean()


def dpsh(u, others, similar, *, alpha=0.1, reference_bits=None, balance=False):
    """Li, Wang and Kang, "Deep pairwise-supervised hashing", IJCAI 2016: pairs as DHN's; outputs to their bits."""
    theta = scaled(u @ others.T / 2, u, reference_bits)
    pairs = softplus(theta) - similar * theta
    return over_pairs(pairs, similar, balance) + alpha * (u - signs(u)).square().mean()


def dbdh(u, others, similar, *, alpha=0.1, clamp=True, reference_bits=None, balance=False):
    """Zheng et al., "Deep balanced discrete hashing", Neurocomputing 2020: DHN's pairs; balanced bits in a row."""
    if clamp:
        u, others = u.clamp(-1, 1), others.clamp(-1, 1)
    theta = scaled(u @ others.T / 2, u, reference_bits)
    pairs = softplus(theta) - similar * theta
    return over_pairs(pairs, similar, balance) + alpha * u.mean(1).square().mean()


def dtsh(u, similar, *, margin=5.0, quantization=1.0, clamp=True, reference_bits=None):
    """Wang, Shi and Kitani, "Deep Supervised Hashing with Triplet Labels", ACCV 2016: the triplet likelihood.

    Anchors one at a time, those with a positive and a negative; an anchor is among its own positives.
    """
    theta, anchors = scaled(u @ u.T, u, reference_bits), []
    for row, positive in zip(theta, similar):
        if positive.any() and not positive.all():
            t = row[positive][:, None] - row[~positive][None] - margin
            t = t.clamp(-100, 50) if clamp else t
            anchors.append(softplus(-t).mean())
    triplets = sum(anchors) / len(anchors) if anchors else u.sum() * 0
    return triplets + quantization * (u - signs(u)).square().mean()


def hashnet(u, similar, *, beta=1.0, reference_bits=20.0):
    """Cao et al., "HashNet", ICCV 2017: the likelihood of tanh outputs, pairs of both kinds by how rare they are."""
    h = (beta * u).tanh()
    theta = scaled(h @ h.T / 2, u, reference_bits)
    pairs = (1 + theta.exp()).log() - similar * theta
    if similar.any() and not similar.all():
        return pairs[similar].mean() + pairs[~similar].mean()
    return pairs.mean()


def lcdsh(u, similar, *, eta=3.0, clamp=True, reference_bits=None):
    """Zhu and Gao, "Locality Constrained Deep Supervised Hashing", IJCAI 2017: likelihood and locality."""
    theta = scaled(u @ u.T / 2, u, reference_bits)
    theta = theta.clamp(-50, 50) if clamp else theta
    coded = scaled(signs(u) @ signs(u).T / 2, u, reference_bits)
    s = torch.where(similar, 1, -1)
    return softplus(-s * theta).mean() + eta * (theta.sigmoid() - coded.sigmoid()).square().mean()


def dch(u, similar, *, gamma=20.0, quantization=0.1, max_cosine=0.99, reference_bits=None):
    """Cao et al., "Deep Cauchy Hashing", CVPR 2018: the Cauchy cross-entropy, and the Cauchy quantization loss.

    max_cosine caps the cosine, so that d > 0; with None d is at least 1e-6. reference_bits stands for b in d.
    """
    b = u.shape[1]
    bits = b if reference_bits is None else reference_bits

    def distance(cosine):
        cosine = cosine if max_cosine is None else cosine.clamp(max=max_cosine)
        return (bits / 2 * (1 - cosine)).clamp(min=1e-6)

    positives, negatives = similar.sum().to(u.dtype), (~similar).sum().to(u.dtype)
    w = torch.where(similar, similar.numel() / positives, similar.numel() / negatives)
    w = w if positives > 0 and negatives > 0 else torch.ones_like(w)
    d = distance(unit(u) @ unit(u).T)
    pairs = w * (similar * (d / gamma).log() + (1 + gamma / d).log())
    ones = torch.ones(b, dtype=u.dtype, device=u.device)
    return pairs.mean() + quantization * (1 + distance(unit(u.abs()) @ ones / b**0.5) / gamma).log().mean()


def mdsh(u, y, centers, *, quantization=1e-4, reference_bits=None):
    """MDSH of arXiv 2412.08922: cross-entropy of a softmax over the classes' centres (C, b)."""
    p = probabilities(u, centers, reference_bits)
    central = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    return central + quantization * (u.abs() - 1).square().mean()


def mdsh_pairs(u, others, similar):
    """MDSH's momentum term: its mean over the similar pairs."""
    cosine = F.normalize(u, dim=1) @ F.normalize(others, dim=1).T
    return (similar * (1 + ((1 - cosine) / 2).exp()).log()).sum() / similar.sum().clamp(min=1)


def shcir(u, y, centers, *, quantization=1e-4, reference_bits=None):
    """SHCIR of arXiv 2412.08922: as MDSH, row by row, the wrong classes' term at its mean; one class a row."""
    total = 0
    for p, positive in zip(probabilities(u, centers, reference_bits), y == 1):
        total = total + p[positive].log().mean() + (1 - p[~positive]).log().mean()
    return -total / len(u) + quantization * (u.abs() - 1).square().mean()


def orthocos(u, y, centers, *, margin=0.2, scale=8.0):
    """Hoe et al., "One Loss for All", NeurIPS 2021: cross-entropy of cosines, a margin off the own classes'."""
    return cross_entropy(scale * (unit(u) @ unit(centers).T - margin * y), y)


def orthoarc(u, y, centers, *, margin=0.2, scale=8.0):
    """As `orthocos`, the margin added to the own classes' angles, whose sines are at least 0.01."""
    cosine = unit(u) @ unit(centers).T
    sine = (1 - cosine.square()).clamp(min=1e-4).sqrt()
    return cross_entropy(scale * torch.where(y == 1, cosine * math.cos(margin) - sine * math.sin(margin), cosine), y)


def idhn(u, y, *, sharpness=5.0, gamma=0.1, alpha=0.1):
    """Zhang et al., "Improved deep hashing with soft pairwise similarity", TMM 2020: S the cosine of label sets."""
    h, b = u / (1 + u.abs()), u.shape[1]
    s = unit(y) @ unit(y).T
    pairs = graded_pairs(h @ h.T / b, s, b, sharpness, gamma)
    return pairs.mean() + alpha * (h.abs() - 1).abs().mean()


def graded_pairs(x, s, b, sharpness, gamma):
    """Cross-entropy of pairs that share all labels or none, a squared error of the others; x is a mean product."""
    entropy = softplus(sharpness * x) - s * sharpness * x
    error = gamma * b * ((x + 1) / 2 - s).square()
    return torch.where((s < 0.01) | (s > 0.99), entropy, error)


def greedyhash(u, y, weights, *, alpha=0.1):
    """Su et al., "Greedy Hash", NeurIPS 2018: a classifier (C, b) of the signs, with gradients straight through."""
    z = u + (signs(u) - u).detach()
    return cross_entropy(z @ weights.T, y) + alpha * ((u.abs() - 1).abs() ** 3).mean()


def hyp2(u, y, proxies, *, threshold, beta=0.5):
    """Xu et al., "HyP^2 Loss", ACM MM 2022: proxies (C, b) of the classes; pairs of several classes, none shared."""
    cosine, several = unit(u) @ unit(proxies).T, y.sum(1) > 1
    own, others = mean_where(1 - cosine, y == 1), mean_where((cosine - threshold).relu(), y == 0)
    irrelevant = several[:, None] & several & (y @ y.T == 0)
    return own + others + beta * mean_where((unit(u) @ unit(u).T - threshold).relu(), irrelevant)


# ------------------------------------------------------------------------------------------------ what they share


def mean_where(x, where):
    """The mean of x over what `where` says; 0 where that is nothing."""
    return (x * where).sum() / where.sum().clamp(min=1)


def softplus(x):
    """log(1 + exp x). (PyTorch's own takes x for it beyond a threshold.)"""
    return torch.logaddexp(x, torch.zeros_like(x))


def signs(u):
    """+1 where u > 0, else -1: the bits."""
    return torch.where(u > 0, 1, -1).to(u.dtype)


def unit(u):
    """Rows at norm 1; a zero row stays zero."""
    norm = u.norm(dim=1, keepdim=True)
    return u / norm.where(norm > 1e-12, torch.inf)


def scaled(products, u, reference_bits):
    """Inner products of rows like u's, multiplied to those of `reference_bits` bits unless that is None."""
    return products if reference_bits is None else products * (reference_bits / u.shape[1])


def over_pairs(loss, similar, balance=False):
    """The mean over all pairs; balance: over similar and dissimilar ones by half each, where there are both."""
    if balance and similar.any() and not similar.all():
        return (loss[similar].mean() + loss[~similar].mean()) / 2
    return loss.sum() / max(loss.numel(), 1)


def probabilities(u, centers, reference_bits):
    """Softmax over the classes of sqrt(b) cos(u, centre), (N, C)."""
    sharpness = (reference_bits or u.shape[1]) ** 0.5
    return (sharpness * unit(u) @ unit(centers).T).softmax(1)


def cross_entropy(logits, y):
    """Mean over the rows of the mean over a row's classes of -log p; a row without a class gives 0."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -((y * log_p).sum(1) / y.sum(1).clamp(min=1)).mean()


def straight_signs(u):
    """+-1 by the bit rule, with the gradient of tanh u (Bengio et al., arXiv 1308.3432)."""
    soft = u.tanh()
    return soft + (torch.where(u > 0, 1.0, -1.0).to(u.dtype) - soft).detach()


def off_diagonal(square, value):
    """A square matrix with `value` on its diagonal."""
    return square.masked_fill(torch.eye(len(square), dtype=torch.bool, device=square.device), value)


def neighbors(u, vectors, scale, *, temperature=0.05):
    """Divergence of the softmax over codes' cosines, times a learned scale, from that over vectors' cosines."""
    z, unit = straight_signs(u), F.normalize(vectors.to(u.dtype))
    found = off_diagonal(scale / u.shape[1] * (z @ z.T), -torch.inf).log_softmax(1)
    wanted = off_diagonal(unit @ unit.T / temperature, -torch.inf).log_softmax(1)
    return (wanted.exp() * off_diagonal(wanted - found, 0)).sum(1).mean()


def contrastive(u, ids, *, temperature=0.3, bottleneck=0.001):
    """Qiu et al., "CIBHash", IJCAI 2021: InfoNCE between codes of views, and a divergence between their bits."""
    z, p, other = straight_signs(u), u.sigmoid(), u.detach()
    logits = off_diagonal(z @ z.T / (u.shape[1] * temperature), -torch.inf)
    pairs = -off_diagonal(logits.log_softmax(1), 0)
    yes = (p * F.logsigmoid(u)).sum(1, keepdim=True) - p @ F.logsigmoid(other).T
    no = ((1 - p) * F.logsigmoid(-u)).sum(1, keepdim=True) - (1 - p) @ F.logsigmoid(-other).T
    views = off_diagonal(ids[:, None] == ids[None], False).to(u.dtype)
    count = views.sum(1)
    rows = ((pairs + bottleneck * (yes + no)) * views).sum(1) / count.clamp(min=1)
    return rows.sum() / (count > 0).sum().clamp(min=1)
