"""Records grouped: a section for what may stand in one table, a method for what differs in the seed alone."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.names import data_title
from ..retrieval.ties import RULES
from .records import Conditions, Record

# Where files lie and how rows were drawn say nothing about the method: the rows are compared themselves.
_NOT_THE_METHOD = ("name", "seed", "protocol", "queries_per_class", "train_per_class", "num_queries", "num_train")
_PATHS = ("root", "path", "labels")


@dataclass
class Method:
    """Records that differ in the seed alone, ascending by seed."""

    name: str
    records: list[Record]

    @property
    def settings(self) -> dict:
        """Every setting but the seed, those of the data included; no folder of this machine."""
        return settings(self.records[0])


@dataclass
class Section:
    """What may stand in one table: equal data, protocol, rows, cut and rule for ties."""

    conditions: Conditions
    methods: list[Method]
    title: str = ""

    @property
    def records(self) -> list[Record]:
        return [record for method in self.methods for record in method.records]

    @property
    def data(self) -> str:
        """What titles call the data: of features the file's name, or the names."""
        return ", ".join(dict.fromkeys(data_title(self.conditions.data, r.data_options) for r in self.records))

    @property
    def metric(self) -> str:
        return "mAP" if self.conditions.topk is None else f"mAP@{self.conditions.topk}"

    @property
    def queries(self) -> str:
        """What a title says of the queries of all means."""
        return "" if self.conditions.mean_over == "all" else ", of queries with a relevant item"

    @property
    def caption(self) -> str:
        """What a table of this section measures."""
        c, facts = self.conditions, self.records[0].facts
        sizes = ""
        if facts.get("query") is not None:
            sizes = f"{facts['query']:,} queries against {facts['database']:,} database items, "
        ranking = "the whole ranking" if c.topk is None else f"the first {c.topk:,} of the ranking"
        return (
            f"{self.data}, protocol: {c.protocol}; {sizes}{ranking}; "
            f"ties: {c.ties} ({RULES[c.ties].says}); AP divides by the relevant items found."
            f"{'' if c.mean_over == 'all' else ' Means are over the queries with a relevant item.'}"
        )

    def rows(self, metric: str = "mAP", named: str | None = None) -> list[dict]:
        """One row a method, seed and length, as `methods_table` takes them; the metric under the name `named`."""
        return [
            {"method": method.name, "seed": record.seed, "bits": b, named or metric: value}
            for method in self.methods
            for record in method.records
            for b, value in record.metrics.get(metric, {}).items()
        ]

    def differences(self) -> list[str]:
        """Names of the settings in which the section's methods differ."""
        return differing([m.settings for m in self.methods])


def settings(record: Record) -> dict:
    """Settings of a record but its seed; of paths the last part, since folders are nobody's business."""
    found = {k: v for k, v in record.config.items() if k != "seed"}
    for name, value in record.data_options.items():
        if name not in ("name", "seed"):
            found[f"data: {name}"] = os.path.basename(str(value)) if name in _PATHS else value
    if record.variant:
        found = {"models": "one nested model" if record.variant == "nested" else "one model a length", **found}
    return found


def group(records: Sequence[Record]) -> list[Section]:
    """Sections in the order in which their first run was given, methods likewise.

    Raises:
        ValueError: two records are the same method with the same seed.
    """
    sections: dict[Conditions, dict[str, list[Record]]] = {}
    for record in records:
        sections.setdefault(record.conditions, {}).setdefault(_key(record), []).append(record)
    found = []
    for conditions, methods in sections.items():
        several = [members for alike in methods.values() for members in _by_place(alike)]
        for members in several:
            members.sort(key=lambda r: r.seed)
            for a, b in itertools.pairwise(members):
                if a.seed == b.seed:
                    same = f"have equal settings and data and the same seed ({a.seed})"
                    raise ValueError(f"runs: {a.path} and {b.path} {same}; give one of them")
        names = method_names([members[0] for members in several])
        found.append(Section(conditions, [Method(n, m) for n, m in zip(names, several)]))
    for section, title in zip(found, _titles(found)):
        section.title = title
    return found


def _titles(sections: Sequence[Section]) -> list[str]:
    """Data and protocol, and what else tells one section from another."""
    titles = []
    for s in sections:
        compared = ", nested against single-length models" if s.records[0].variant else ""
        titles.append(f"{s.data}: {s.conditions.protocol}{compared}")
    for further in (
        lambda s: f"{s.metric}, ties {s.conditions.ties}{s.queries}",
        lambda s: f"rows {s.conditions.rows[:8]}",
        lambda s: s.records[0].name,
    ):
        again = [titles.count(title) > 1 for title in titles]
        titles = [f"{t} ({further(s)})" if twice else t for t, s, twice in zip(titles, sections, again)]
    return titles


def method_names(records: Sequence[Record]) -> list[str]:
    """A short, distinct name for each: the loss, and what else tells it from the others with that loss."""
    bases = [_base(record) for record in records]
    names = []
    for record, base in zip(records, bases):
        peers = [settings(r) for r, b in zip(records, bases) if b == base]
        mine, parts = settings(record), [base]
        parts += [f"{key.removeprefix('data: ')} {value_text(mine.get(key))}" for key in differing(peers)]
        names.append(", ".join(parts))
    inputs = [f"{name}, inputs {(r.fingerprint or 'unknown')[:8]}" for name, r in zip(names, records)]
    names = [other if names.count(name) > 1 else name for name, other in zip(names, inputs)]
    return [f"{n} ({names[:i].count(n) + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def differing(several: Sequence[Mapping]) -> list[str]:
    """Keys whose values are not the same in all."""
    keys = dict.fromkeys(k for one in several for k in one)
    return [k for k in keys if any(one.get(k) != several[0].get(k) for one in several)]


def value_text(value) -> str:
    """A setting as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "/".join(value_text(v) for v in value)
    if isinstance(value, Mapping):
        return " ".join(f"{k}={value_text(v)}" for k, v in value.items()) or "none"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _base(record: Record) -> str:
    side = {"": "", "nested": ", nested", "single": ", one model a length"}[record.variant]
    return record.config["loss"].upper() + side


def _by_place(members: list[Record]) -> list[list[Record]]:
    """The records; where a seed is there twice, those whose data lie elsewhere apart: pictures are not compared."""
    if len({record.seed for record in members}) == len(members):
        return [members]
    places: dict[tuple, list[Record]] = {}
    for record in members:
        places.setdefault(tuple(record.data_options.get(name) for name in _PATHS), []).append(record)
    return list(places.values())


def _key(record: Record) -> str:
    options = {k: v for k, v in record.data_options.items() if k not in (*_NOT_THE_METHOD, *_PATHS)}
    config = {k: v for k, v in record.config.items() if k != "seed"}
    return json.dumps([record.variant, config, options, record.fingerprint], sort_keys=True)
