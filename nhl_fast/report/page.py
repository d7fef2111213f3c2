"""The page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.extras import require
from ..text.markup import Markup, tag
from . import code_parts as code_parts
from . import facts as facts
from . import parts as parts
from .codes import measure_codes
from .groups import Section

# Nothing is fetched, whatever a text of a run may hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
APART = (
    "Results of different data, protocols, cuts or rules for ties stand in sections of their own: "
    "their numbers do not compare."
)
STYLE = """
:root { color-scheme: light dark; --text: #1d2126; --soft: #59626d; --line: #d5dae0; --back: #fff; --panel: #f5f7f9;
  --mark: #fff1c2; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaee; --soft: #a3adb8; --line: #3b434d; --back: #15181c;
  --panel: #1e2329; --mark: #4d4012; --link: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2.5rem) 3rem; max-width: 66rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.4rem 0; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.4rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 0.4rem; }
h1, h2, h3 { overflow-wrap: anywhere; }
a { color: var(--link); }
p { margin: 0.4rem 0; max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: 0.9rem; }
nav ul { padding-left: 1.2rem; margin: 0.3rem 0; }
nav ul ul { display: flex; flex-wrap: wrap; gap: 0 1.6rem; }
.scroll { overflow-x: auto; margin: 0.7rem 0; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
caption { text-align: left; padding: 0 0 0.4rem; white-space: nowrap; }
caption span { position: sticky; left: 0; display: inline-block; width: max-content; white-space: normal;
  max-width: min(46rem, 100vw - 2.5rem); }
th, td { padding: 0.28rem 0.55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 5rem; }
.numbers th:not(:first-child), .numbers td { text-align: right; }
.numbers td { white-space: nowrap; }
.numbers thead th { max-width: 7rem; }
.settings td { max-width: 22rem; overflow-wrap: anywhere; }
tr.differs > * { background: var(--mark); }
code { font-size: 0.88em; overflow-wrap: anywhere; }
td code { display: inline-block; min-width: 11rem; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 4px; }
@media screen { .wide { overflow-x: auto; } .wide img { min-width: 34rem; } }
figcaption { margin-top: 0.3rem; max-width: 46rem; }
.note { border-left: 4px solid #e69f00; padding: 0.2rem 0.8rem; background: var(--panel); }
details { margin: 0.6rem 0; }
summary { cursor: pointer; color: var(--link); }
@media print {
  :root { color-scheme: light; --text: #000; --soft: #444; --line: #bbb; --back: #fff; --panel: #f3f3f3;
    --mark: #fff1c2; --link: #000; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  figure, tr, .numbers { break-inside: avoid; }
  figure img { max-height: 19cm; }
  h2, h3, caption { break-after: avoid; }
  .heat td, tr.differs > * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; display: block; }
}
"""


def render(
    sections: Sequence[Section],
    title: str,
    date: str,
    made_with: str,
    percent: bool = False,
    projection: str | None = None,
) -> str:
    """The page.

    Args:
        sections: what `report_groups.group` gives.
        title: heading.
        date: as it is to be read.
        made_with: versions of what made the page.
        percent: whether the tables of measures are in percent.
        projection: a method of `project_codes`, None for no codes in the plane.

    Raises:
        FileNotFoundError, ValueError: files of a run that the page needs are gone or damaged; the message names it.
    """
    try:
        require("matplotlib", "plot", "drawing a picture")
        no_pictures = None
    except ImportError as error:
        no_pictures = str(error)
    bodies, contents = [], []
    for i, section in enumerate(sections, 1):
        body, links = _section(section, i, no_pictures is None, percent, projection)
        bodies.append(body)
        contents.append(tag("li", tag("a", section.title, href=f"#s{i}"), tag("ul", links)))
    runs = sum(len(section.records) for section in sections)
    head = [
        tag("h1", title),
        tag(
            "p",
            f"{date} · {_count(runs, 'result')} in {_count(len(sections), 'section')} · {made_with}",
            class_="soft",
        ),
        tag("p", f"No pictures: {no_pictures}", class_="note") if no_pictures else None,
        tag("p", APART, class_="soft") if len(sections) > 1 else None,
        tag("nav", tag("ul", contents), aria_label="Contents"),
    ]
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ),
        "\n",
        tag("body", tag("header", head), "\n", tag("main", bodies), "\n", tag("footer", facts.definitions())),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"


def _section(
    section: Section, number: int, pictures: bool, percent: bool, projection: str | None
) -> tuple[Markup, list[Markup]]:
    """A section's HTML, and the entries of the contents."""
    measured = {id(r): measure_codes(r) for r in section.records if not r.variant}
    found = [
        ("results", "Results", parts.results(section, pictures, percent)),
        ("further", "Further measures", parts.further(section, percent)),
        ("curves", "Precision and recall", parts.curves(section, measured) if pictures else None),
        ("distances", "Distances of pairs", code_parts.distances(section, measured) if pictures else None),
        ("confusion", "Confusion by class", code_parts.confusion(section, measured) if pictures else None),
        ("times", "Training time", parts.times(section)),
        ("quality", "Quality of the codes", code_parts.quality(section, measured, pictures)),
        (
            "projection",
            "Codes in the plane",
            code_parts.projection(section, measured, projection) if pictures and projection else None,
        ),
        ("training", "Training", parts.training(section, pictures)),
        ("conflicts", "Conflicts between lengths", parts.conflicts(section)),
        ("gallery", "Gallery", parts.gallery(section)),
        ("settings", "Settings", facts.settings_table(section)),
        ("data", "Data and protocol", facts.data_facts(section)),
        ("machines", "Machines and versions", facts.machines(section)),
    ]
    shown = [(f"s{number}-{key}", name, content) for key, name, content in found if content]
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in shown]
    body = [tag("section", tag("h3", name, id=anchor), content) for anchor, name, content in shown]
    heading = f"s{number}"
    return tag("section", tag("h2", section.title, id=heading), "\n", body, aria_labelledby=heading), links


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
