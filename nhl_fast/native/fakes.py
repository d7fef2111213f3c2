"""Shapes and dtypes of the native operators for tracing (torch.compile, opcheck)."""

from __future__ import annotations

from functools import cache

import torch


@cache
def register() -> None:
    """Register them; the library is loaded."""
    _register_hamming()
    _register_step()


def _register_hamming() -> None:
    """The Hamming engine's; see `nhl_fast.native.hamming`."""
    fake = torch.library.register_fake

    def bins(lengths, num_queries):
        return sum(2 * (b + 1) for b in lengths) * num_queries

    @fake("nhl_fast::pack")
    def _(x):
        return x.new_empty(x.shape[0], (x.shape[1] + 7) // 8, dtype=torch.uint8)

    @fake("nhl_fast::distances")
    def _(queries, database, lengths):
        return queries.new_empty(len(lengths), queries.shape[0], database.shape[0], dtype=torch.int32)

    @fake("nhl_fast::histograms")
    def _(queries, database, query_labels, database_labels, lengths):
        return queries.new_empty(bins(lengths, queries.shape[0]), dtype=torch.int64)

    @fake("nhl_fast::evaluate")
    def evaluate(queries, database, query_labels, database_labels, lengths, cutoff):
        m, q, n = len(lengths), queries.shape[0], database.shape[0]
        return (
            queries.new_empty(bins(lengths, q), dtype=torch.int64),
            queries.new_empty(m, q, dtype=torch.float64),
            queries.new_empty(m, q, dtype=torch.int64),
            queries.new_empty(m, n, dtype=torch.float64),
            queries.new_empty(m, n, dtype=torch.float64),
        )

    @fake("nhl_fast::evaluate_gains")
    def _(queries, database, query_labels, database_labels, lengths, cutoff, ranks):
        gains = queries.new_empty(len(lengths), queries.shape[0], len(ranks), dtype=torch.float64)
        return *evaluate(queries, database, query_labels, database_labels, lengths, cutoff), gains

    @fake("nhl_fast::topk")
    def _(queries, database, k, length, allow=None, base=0):
        shape = (queries.shape[0], k)
        return queries.new_empty(shape, dtype=torch.int32), queries.new_empty(shape, dtype=torch.int64)

    @fake("nhl_fast::topk_among")
    def _(queries, database, candidates, k, length):
        shape = (queries.shape[0], k)
        return queries.new_empty(shape, dtype=torch.int32), queries.new_empty(shape, dtype=torch.int64)

    @fake("nhl_fast::score_codes")
    def _(outputs, codes, candidates, length):
        return outputs.new_empty(candidates.shape)

    @fake("nhl_fast::radius")
    def _(queries, database, radius, length, allow=None, base=0):
        found = torch.library.get_ctx().new_dynamic_size()
        return (
            queries.new_empty(queries.shape[0] + 1, dtype=torch.int64),
            queries.new_empty(found, dtype=torch.int32),
            queries.new_empty(found, dtype=torch.int64),
        )


def _register_step() -> None:
    """The training step's; see `nhl_fast.steps.native`."""
    fake = torch.library.register_fake

    def loss(u, *rest):
        lengths = next(r for r in rest if isinstance(r, (list, tuple)))  # the first list of each
        return u.new_empty(len(lengths)), u.new_empty(u.shape[0], sum(lengths))

    for name in ("center", "pairs", "triplets", "softmax"):
        fake(f"nhl_fast::step_{name}", loss)

    @fake("nhl_fast::step_listwise")
    def _(u, targets, scales, lengths, function, constants):
        return *loss(u, lengths), u.new_empty(len(lengths))

    @fake("nhl_fast::step_project")
    def _(features, weight, bias, want_gram):
        n = features.shape[0]
        return features.new_empty(n, weight.shape[0]), features.new_empty((n, n) if want_gram else (0, 0))

    @fake("nhl_fast::step_project_back")
    def _(scale, du, features, weight, need_features, need_weight):
        return (
            features.new_empty(features.shape if need_features else (0, 0)),
            features.new_empty(weight.shape if need_weight else (0, 0)),
            features.new_empty(weight.shape[:1] if need_weight else (0,)),
        )

    @fake("nhl_fast::step_combine")
    def _(u, features, gram, values, deltas, lengths, distill_weight, fixed_weights):
        m = len(lengths)
        return (
            u.new_empty(()),
            u.new_empty(m),
            u.new_empty(m),
            u.new_empty((m, m) if fixed_weights is None else (0, 0)),
            u.new_empty(u.shape),
        )
