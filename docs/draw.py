"""Draw docs/architecture.svg: the two rivers, and the floors as tests/test_layout.py has them.

python docs/draw.py
"""

import ast
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIDTH = 960
FORMS = """
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 14px }
  .title { font-weight: 600; font-size: 16px }
  .soft { font-size: 12px }
  .mid { text-anchor: middle }
  .end { text-anchor: end }
  .flow { fill: none; stroke-width: 2; marker-end: url(#tip) }
  .imports { fill: none; stroke-width: 1.5; marker-end: url(#down) }
"""
COLORS = """
  text { fill: %(ink)s }
  .soft, .down { fill: %(soft)s }
  .page { fill: %(page)s }
  .water { fill: %(water)s; stroke: %(wave)s }
  .floor { fill: %(box)s; stroke: %(soft)s }
  .stone { fill: %(stone)s; stroke: %(edge)s }
  .flow { stroke: %(wave)s }
  .tip { fill: %(wave)s }
  .imports { stroke: %(soft)s }
"""
LIGHT = {"page": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "box": "#f6f8fa", "water": "#ddf4ff"}
LIGHT |= {"wave": "#0969da", "stone": "#fff8c5", "edge": "#9a6700"}
DARK = {"page": "#0d1117", "ink": "#e6edf3", "soft": "#9198a1", "box": "#151b23", "water": "#0c2d4d"}
DARK |= {"wave": "#58a6ff", "stone": "#2e2a14", "edge": "#d29922"}
STYLE = f"{FORMS}{COLORS % LIGHT}@media (prefers-color-scheme: dark) {{{COLORS % DARK}}}\n"
TRAINING = [
    ("features", "(N, d)", "data, a backbone"),
    ("nested layer", "one product, u (N, L)", "head"),
    ("losses", "of every prefix", "losses"),
    ("weights, distillation", "dominance, long to short", "head"),
    ("gradient", "of layer and features", "steps"),
]
SEARCH = [
    ("codes", "bit = u > 0", "head"),
    ("packing", "8 bits a byte", "retrieval"),
    ("scan", "Hamming, any prefix", "native, csrc"),
    ("neighbours", "top-k, radius, index", "retrieval, index"),
    ("metrics", "mAP of every prefix", "retrieval"),
]
BOX, GAP, LEFT = (160, 48), 27, 26


def floors() -> list[str]:
    """`FLOORS` of the test that holds the package to them, the lowest first."""
    tree = ast.parse((HERE.parent / "tests" / "test_layout.py").read_text())
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "FLOORS"]
    return ast.literal_eval(values[0])


def text(x, y, said, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(said)}</text>'


def box(x, y, width, height, kind):
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>'


def arrow(points, kind="flow"):
    return f'<path d="M{points}" class="{kind}"/>'


def river(top, title, about, stations, branches=()):
    """Stations from left to right; those of `branches` (station, where its water comes from) have no neighbour's."""
    drawn = [text(LEFT, top, title, "title"), text(LEFT + 158, top, about, "soft")]
    for i, (name, what, where) in enumerate(stations):
        x, y = LEFT + i * (BOX[0] + GAP), top + 16
        middle = x + BOX[0] / 2
        drawn += [box(x, y, *BOX, "water"), text(middle, y + 20, name, "mid"), text(middle, y + 38, what, "soft mid")]
        drawn.append(text(middle, y + BOX[1] + 16, where, "soft mid"))
        source = dict(branches).get(i)
        if source is not None:
            start = LEFT + source * (BOX[0] + GAP) + BOX[0] / 2
            drawn.append(arrow(f"{start} {y - 2} V{y - 14} H{middle} V{y - 5}"))
        elif i:
            drawn.append(arrow(f"{x - GAP + 2} {y + BOX[1] / 2} H{x - 5}"))
    return drawn


def house(top, rows):
    """The floors, the highest on top."""
    height, drawn = 30, [text(LEFT, top, "Floors", "title")]
    drawn.append(
        text(LEFT + 90, top, "a package imports from floors below its own, never from above or beside", "soft")
    )
    for i, row in enumerate(reversed(rows)):
        y, number = top + 14 + i * (height + 4), len(rows) - 1 - i
        left, width = LEFT + 34, 560
        drawn += [text(LEFT + 22, y + 20, str(number), "soft end"), box(left, y, width, height, "floor")]
        drawn.append(text(left + width / 2, y + 20, "   ·   ".join(row.split()), "mid"))
        if "native" in row.split():
            for at, name, what in ((640, "csrc/", "C++, CUDA"), (796, "kernels/", "Triton")):
                drawn += [box(at, y, 140, height, "stone"), text(at + 70, y + 20, f"{name}  {what}", "soft mid")]
            drawn.append(arrow(f"638 {y + height / 2} H{left + width + 8}", "imports"))
    bottom = top + 14 + len(rows) * (height + 4)
    drawn.append(arrow(f"{LEFT + 614} {top + 22} V{bottom - 82}", "imports"))
    drawn.append(text(LEFT + 626, top + 40, "imports", "soft"))
    drawn.append(text(LEFT + 626, top + 58, "what is above registers itself with what is below:", "soft"))
    drawn.append(text(LEFT + 626, top + 74, "steps with losses and head", "soft"))
    return drawn, bottom


def picture() -> str:
    layer = LEFT + BOX[0] + GAP + BOX[0] / 2
    last = LEFT + 4 * (BOX[0] + GAP) + BOX[0] / 2
    drawn = river(34, "Training", "one step of the head, forward and back", TRAINING)
    drawn.append(arrow(f"{last} 118 V130 H{layer + 46} V103"))
    drawn += river(178, "Search", "what a trained layer's outputs become", SEARCH, [(4, 2)])
    drawn.append(arrow(f"{layer - 56} 100 V136 H{LEFT + BOX[0] - 18} V189"))
    built, bottom = house(304, floors())
    height = bottom + 16
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L8 4 L0 8 z" class="{kind}"/></marker>'
        for name, kind in (("tip", "tip"), ("down", "down"))
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
    )
    head += 'role="img" aria-label="Two rivers, training and search, and the floors of the package">'
    page = f'<rect width="{WIDTH}" height="{height}" class="page"/>'
    lines = [head, f"<style>{STYLE}</style>", f"<defs>{tips}</defs>", page, *drawn, *built, "</svg>"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(picture())
