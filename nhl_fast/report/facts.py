"""What a report says about settings, data, splits and machines; each part is a list of HTML elements."""

from __future__ import annotations

from collections.abc import Mapping

from ..text.markup import Markup, html_table, scroll, tag
from .groups import Section, differing, value_text

UNKNOWN = "not recorded"


def settings_table(section: Section) -> list[Markup]:
    columns = [m.settings for m in section.methods]
    different = set(differing(columns))
    keys = dict.fromkeys(k for column in columns for k in column)
    several = len(columns) > 1
    rows, classes = [], []
    for key in keys:
        marked = several and key in different
        said = [tag("code", key), " (differs)" if marked else None]
        rows.append([said, *(value_text(c[key]) if key in c else UNKNOWN for c in columns)])
        classes.append("differs" if marked else None)
    rows.append([tag("code", "seed"), *(value_text([r.seed for r in m.records]) for m in section.methods)])
    caption = "All settings." + (" Rows in which the methods differ are marked." if several else "")
    caption += " Of paths the last part is given."
    head = ["Setting", *(m.name for m in section.methods)]
    table = html_table(caption, head, rows, class_="settings", row_classes=classes)
    return [scroll(table, "Settings")]


def data_facts(section: Section) -> list[Markup]:
    facts, c = section.records[0].facts, section.conditions
    train, validation = facts.get("train"), facts.get("validation")
    same = all((r.facts.get("train"), r.facts.get("validation")) == (train, validation) for r in section.records)
    rows = [
        ["data set", section.data],
        ["protocol", c.protocol],
        ["classes", _known(facts.get("num_classes"))],
        ["training rows", _known(train) if same else "see below, they differ"],
        ["validation rows (of the training rows)", _known(validation) if same else "see below, they differ"],
        ["queries", _known(facts.get("query"))],
        ["database rows", _known(facts.get("database"))],
        ["seed of the split", _known(facts.get("split_seed"))],
        ["SHA-256 of all labels", tag("code", _known(facts.get("labels_sha256")))],
    ]
    found = [scroll(html_table("Data set and split.", ["Item", "Value"], rows), "Data set and split")]
    rows = []
    for method in section.methods:
        for r in method.records:
            split = f"{_known(r.facts.get('train'))} + {_known(r.facts.get('validation'))}"
            rows.append([r.name, method.name, r.seed, split, tag("code", r.fingerprint or UNKNOWN)])
    head = ["Run", "Method", "Seed", "Training + validation rows", "SHA-256 of data and split"]
    return [*found, scroll(html_table("Results of this section.", head, rows), "Results of this section")]


def machines(section: Section) -> list[Markup]:
    rows = []
    for method in section.methods:
        for record in method.records:
            first = record.environments[0].get("from_epoch", 1) if record.environments else 1
            if not record.environments or first > 1:
                until = f", epochs 1 to {first - 1}" if first > 1 else ""
                rows.append([record.name + until, method.name, record.seed, (UNKNOWN, {"colspan": 8})])
            for i, found in enumerate(record.environments):
                since = f", from epoch {found.get('from_epoch')}" if i or first > 1 else ""
                rows.append([record.name + since, method.name, record.seed, *_environment_cells(found)])
    head = ["Run", "Method", "Seed", "Date", "Processor", "Cores, threads", "Device"]
    head += ["nhl_fast", "PyTorch", "NumPy", "Python"]
    return [scroll(html_table("Where each result was trained.", head, rows), "Machines and versions")]


def _environment_cells(found: Mapping) -> list[str]:
    versions = found.get("versions") if isinstance(found.get("versions"), Mapping) else {}
    cores = f"{_known(found.get('cores'))}, {_known(found.get('threads'))}"
    device = str(found.get("gpu") or _known(found.get("device")))
    named = [_known(versions.get(n)) for n in ("nhl_fast", "torch", "numpy", "python")]
    return [_known(found.get("date")), _known(found.get("cpu")), cores, device, *named]


DEFINITIONS = (
    "mAP is the mean over queries of the average precision: the mean of precision@r over the ranks r that hold a "
    "relevant item, within the stated cut; a query without one counts as 0. precision_radius2 is the precision "
    "within Hamming radius 2, 0 for an empty ball. ndcg@n: gains 1 / log2(rank + 1) of the relevant items among the "
    "first n, over those of a ranking with relevant items first. Standard deviations are those of a sample (n - 1).",
    "Imbalance of bits is the mean of |2p - 1|, p the share of ones of a bit (0 is balanced); r is Pearson's "
    "correlation of two bits, constant bits left out; entropies are Shannon's, in bits; colliding pairs are pairs of "
    "database items with equal codes, colliding items those with at least one equal. Codes that are learned from "
    "classes collide on purpose.",
    "Distances of pairs are those of all queries and database items; pairs that share a class stand apart. "
    "Confusion: the share of each class among the nearest database items of a class's queries; of items as far as "
    "the last one, each counts with its chance to be among them.",
    "Nested hash layer: He et al., arXiv 2412.08922.",
)


def definitions() -> list[Markup]:
    return [tag("h2", "Definitions"), *(tag("p", text, class_="soft") for text in DEFINITIONS)]


def _known(value) -> str:
    if value is None or isinstance(value, (Mapping, list)):
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else str(value)
