"""Tiny runs, what a report says of them, and pages as trees of facts."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

from nhl_fast.cli.arguments import main
from nhl_fast.report.groups import group
from nhl_fast.report.records import load_records

TINY = ["--epochs", "2", "--hidden", "16", "--lengths", "5,12,20"]
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """An HTML page as a tree of facts; fails where tags do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.tables, self.images = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name not in VOID:
            self.open.append(name)
        if name == "table":
            self.tables.append({"caption": "", "rows": []})
        elif name == "tr":
            self.tables[-1]["rows"].append([])
        elif name in ("th", "td"):
            assert name == "td" or attributes["scope"] in ("col", "row")
            self.tables[-1]["rows"][-1].append("")
        elif name == "img":
            assert attributes["alt"].strip()
            self.images.append(attributes["src"])

    def handle_endtag(self, name):
        assert self.open
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"th", "td"} & set(self.open):
            bold = "*" if "strong" in self.open else ""
            self.tables[-1]["rows"][-1][-1] += f"{bold}{data}{bold}"

    @property
    def text(self):
        return " ".join(self.texts)

    def table(self, start):
        """The first table whose caption starts so: {row's header: cells}, the head under its first header."""
        table = next(t for t in self.tables if t["caption"].startswith(start))
        return {row[0]: row[1:] for row in table["rows"]}


def stands_alone(text):
    """The page, parsed, with no way out of it and nothing to run."""
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for name, attributes in page.elements:
        assert name not in {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "video", "audio"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src", "srcset", "action", "data", "poster", "background", "cite"):
                assert value.startswith("data:image/") or value[1:] in ids
            assert "url(" not in (value if key != "src" else "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"(?:https?:)?//", re.sub(r'src="data:[^"]*"', "", text))
    policy = next(a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for source in page.images:
        kind, _, content = source.removeprefix("data:image/").partition(";base64,")
        content = base64.b64decode(content, validate=True)
        if kind == "png":
            assert content.startswith(b"\x89PNG")
            continue
        assert kind == "svg+xml"
        assert b"<!DOCTYPE" not in content
        for element in ElementTree.fromstring(content).iter():
            assert not element.tag.endswith("script")
            for key, value in element.attrib.items():
                assert not key.endswith("href") or value.startswith("#")
                assert not re.search(r"url\((?!#)", value)
    return page


def seeds_of(folder, *argv, seeds=(0,)):
    paths = []
    for seed in seeds:
        paths.append(folder.with_name(f"{folder.name}-{seed}"))
        assert main(["train", "--out", str(paths[-1]), "--seed", str(seed), *TINY, *map(str, argv)]) == 0
    return paths


def metrics(path):
    return json.loads((path / "metrics.json").read_text())


def maps(path):
    return {row["bits"]: row["mAP"] for row in metrics(path)["lengths"]}


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sections_of(*paths):
    return group([record for path in paths for record in load_records(path)])
