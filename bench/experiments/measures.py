"""What a run measures besides mAP: every prefix, code quality, asymmetric search, conflicts in the backbone."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch

import nhl_fast as nhl
from nhl_fast.data import RetrievalData
from nhl_fast.retrieval.advise import advise
from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.retrieval.quality import code_quality
from nhl_fast.training.evaluate import prefix_map
from nhl_fast.training.model import HashModel, batches, encode_split

SHORTLIST = 1000


@torch.no_grad()
def outputs(model: HashModel, split, batch_size: int = 1024) -> torch.Tensor:
    """Raw outputs (N, L) of every row of a split."""
    model.eval()
    return torch.cat([model(x) for x, _, _ in batches(split, batch_size)])


def mean_ap(scores: torch.Tensor, relevant: torch.Tensor, topk: int | None = None) -> float:
    """mAP of the first `topk` (None: all) by real-valued scores (Q, n), the highest first; ties by id."""
    hits = relevant.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :topk]).double()
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    precision = (hits * hits.cumsum(1) / ranks).sum(1) / hits.sum(1).clamp(min=1)
    return float(precision.mean())


def asymmetric(model: HashModel, data: RetrievalData, lengths, queries: int = 100) -> list[dict]:
    """Queries that say more than the short database codes that they search.

    One row a length b, over the first `queries` queries: "codes" is b-bit against b-bit codes; "outputs" the
    query's first b raw outputs against b-bit codes (by product); "long_query" its longest code, mapped to b numbers
    by least squares on the training codes, against b-bit codes; "reranked" the nearest SHORTLIST at b bits, put in
    order by the longest codes (the rest keeps its order).
    """
    picked = torch.randperm(len(data.query), generator=torch.Generator().manual_seed(0))[:queries]
    q, db, train = (outputs(model, s) for s in (data.query, data.database, data.train))
    q = q[picked]
    q_sign, db_sign, train_sign = ((t > 0).float() * 2 - 1 for t in (q, db, train))
    relevant = data.query.labels[picked][:, None] == data.database.labels[None]
    packed_q, packed_db = nhl.pack_codes(q), nhl.pack_codes(db)
    longest, rows = lengths[-1], []
    gram = train_sign.T @ train_sign + 1e-3 * len(train) * torch.eye(longest)
    far = nhl.hamming_distances(packed_q, packed_db, lengths=(longest,))[0].float()
    for b in lengths:
        mapped = q_sign @ torch.linalg.solve(gram, train_sign.T @ train_sign[:, :b])
        near = nhl.hamming_distances(packed_q, packed_db, lengths=(b,))[0].float()
        shortlist = near.argsort(dim=1, stable=True)[:, :SHORTLIST]
        reranked = -(near + longest + 1)
        reranked.scatter_(1, shortlist, -far.gather(1, shortlist))
        rows.append(
            {
                "bits": b,
                "codes": mean_ap(-near, relevant),
                "outputs": mean_ap(q[:, :b] @ db_sign[:, :b].T, relevant),
                "long_query": mean_ap(mapped @ db_sign[:, :b].T, relevant),
                "reranked": mean_ap(reranked, relevant),
            }
        )
    return rows


def advice(model: HashModel, data: RetrievalData, q_codes, db_codes, lengths) -> list[dict]:
    """What different ways to choose a length give on the queries; all of them look at the validation rows alone.

    "best" and "95%" ask `advise` for the shortest prefix within 0.005 of the best, and with 95% of the best mAP;
    "longest" and "64 by habit" take a fixed length, "trained, 95%" the shortest trained length with 95%. "oracle" is
    the shortest prefix within 0.005 of the best on the queries themselves.
    """
    items, longest = len(data.database), lengths[-1]
    seen = prefix_map(
        encode_split(model, data.validation),
        encode_split(model, data.validation_database),
        data.validation.labels,
        data.validation_database.labels,
        longest,
    )
    real = prefix_map(q_codes, db_codes, data.query.labels, data.database.labels, longest)
    enough = 0.95 * max(seen.values())
    chosen = {
        "best": advise(seen, items).bits,
        "95%": advise(seen, items, min_map=enough).bits,
        "longest": longest,
        "64 by habit": min(64, longest),
        "trained, 95%": next(b for b in (*lengths, longest) if seen[b] >= enough or b == longest),
        "oracle": advise(real, items).bits,
    }
    return [{"rule": rule, "bits": bits, "mAP": real[bits]} for rule, bits in chosen.items()]


@torch.no_grad()
def graded(data: RetrievalData, q_codes, db_codes, lengths, topk: int) -> list[dict]:
    """What counts how many labels two rows share: NDCG and the weighted mAP of the first `topk`, a row a length.

    With r shared labels, NDCG has gains 2^r - 1 over log2(1 + rank), and its ideal order is that of the whole
    database; the weighted mAP is the mean, over the ranks of the items with r > 0, of the mean r up to that rank
    (Zhao et al., CVPR 2015), 0 where none is found. Tied items come in one order drawn for all queries, since the
    rows' own order may follow their labels.
    """
    order = torch.randperm(len(db_codes), generator=torch.Generator().manual_seed(0))
    shuffled, labels = db_codes[order], data.database.labels[order].float()
    topk = min(topk, len(order))
    ranks = torch.arange(1, topk + 1, dtype=torch.float64)
    discount, rows = 1 / torch.log2(1 + ranks), []
    queries = data.query.labels.float()
    ideal = torch.cat([(part @ labels.T).topk(topk).values.double() for part in queries.split(100)])
    best = ((ideal.exp2() - 1) * discount).sum(1)
    for b in lengths:
        nearest = nhl.search(q_codes, shuffled, topk, b)[1]
        shared = torch.stack([labels[near] @ query for near, query in zip(nearest, queries)]).double()
        gain = ((shared.exp2() - 1) * discount).sum(1)
        hit = (shared > 0).double()
        weighted = (hit * shared.cumsum(1) / ranks).sum(1) / hit.sum(1).clamp(min=1)
        rows.append({"bits": b, "ndcg": float((gain / best.clamp(min=1)).mean()), "weighted": float(weighted.mean())})
    return rows


class BackboneConflicts:
    """Cosines between the lengths' gradients in the backbone, on a few batches after some epochs."""

    def __init__(self, every: int = 5, batches_each: int = 4):
        self.every, self.batches_each, self.cosines, self.trainer = every, batches_each, [], None

    def __call__(self, record: dict) -> None:
        if record["epoch"] % self.every:
            return
        trainer = self.trainer
        # A copy, since a bank takes in what it is shown.
        loss = copy.deepcopy(trainer.objective.loss)
        parameters = [p for p in trainer.model.backbone.parameters() if p.requires_grad]
        size = trainer.config.batch_size
        order = torch.randperm(len(trainer.data.train), generator=torch.Generator().manual_seed(record["epoch"]))
        for rows in order.split(size)[: self.batches_each]:
            x, labels = trainer.data.train.batch(rows)
            values = loss(trainer.model(x), labels, rows)
            grads = [torch.autograd.grad(v, parameters, retain_graph=True) for v in values]
            flat = torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads])
            flat = torch.nn.functional.normalize(flat, dim=1)
            self.cosines.append(flat @ flat.T)

    def rows(self) -> dict:
        cosines = torch.stack(self.cosines)
        return {"cosine": cosines.mean(0).tolist(), "negative": (cosines < 0).float().mean(0).tolist()}


class Curve:
    """mAP of the held-out queries after every epoch, and what training had taken by then: seconds, the process's own
    seconds of CPU (which work beside it does not change), steps.

    Encodes small batches, so that these do not set the peak of a run's memory.
    """

    def __init__(self):
        self.found, self.seconds, self.cpu, self.steps, self.trainer = [], 0.0, 0.0, 0, None
        self.began = time.process_time()

    def __call__(self, record: dict) -> None:
        self.seconds += record["seconds"]
        self.cpu += time.process_time() - self.began
        self.steps += record["steps"]
        data, model = self.trainer.data, self.trainer.model
        result = evaluate_retrieval(
            *(encode_split(model, split, batch_size=32) for split in (data.query, data.database)),
            *(data.query.labels, data.database.labels),
            lengths=model.code_lengths,
            ties="expected",
        )
        scores = {str(b): value for b, value in result.mean_average_precision.items()}
        taken = {"seconds": self.seconds, "cpu_seconds": self.cpu, "steps": self.steps}
        self.found.append({**taken, "map": scores})
        self.began = time.process_time()

    def rows(self) -> list[dict]:
        return self.found


class PeakMemory:
    """How far a process's memory rises above what it has when this is made (Linux)."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.start = self._kibibytes("VmRSS")

    @staticmethod
    def _kibibytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def mebibytes(self) -> float:
        return (self._kibibytes("VmHWM") - self.start) / 1024


def after(names, model: HashModel, data: RetrievalData, q_codes, db_codes, lengths, topk: int | None = None) -> dict:
    """The measures `names` of a trained model, JSON-ready; "graded" looks at the first `topk`."""
    found, labels = {}, (data.query.labels, data.database.labels)
    if "prefixes" in names:
        found["prefix_map"] = list(prefix_map(q_codes, db_codes, *labels, lengths[-1]).values())
    if "quality" in names:
        found["quality"] = code_quality(db_codes, lengths)
    if "graded" in names:
        found["graded"] = graded(data, q_codes, db_codes, lengths, len(db_codes) if topk is None else topk)
    if "asymmetric" in names:
        found["asymmetric"] = asymmetric(model, data, lengths)
    if "advice" in names:
        found["advice"] = advice(model, data, q_codes, db_codes, lengths)
    if "ties" in names:
        found["ties"] = {
            rule: list(
                evaluate_retrieval(
                    q_codes, db_codes, *labels, lengths=lengths, ties=rule
                ).mean_average_precision.values()
            )
            for rule in ("best", "worst", "id")
        }
    return found
