"""HTML in which every text is escaped by construction: only `Markup` goes in as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = ("br", "img", "meta")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children, **attributes) -> Markup:
    """<name attributes>children</name>.

    Args:
        name: the element's name.
        children: text (escaped), `Markup`, numbers, or lists of these; None is left out.
        attributes: None and False are left out; `class_` is class, `aria_label` is aria-label.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{join(children)}</{name}>")


def join(children: Iterable) -> Markup:
    """Children one after the other, lists flattened."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Markup("".join(parts))


def html_table(
    caption, head: Sequence, rows: Sequence[Sequence], *, class_: str | None = None, row_classes: Sequence = ()
) -> Markup:
    """A table with a caption; the first cell of each row is its header.

    Args:
        caption: text or Markup.
        head: the columns' headers.
        rows: cells; text, Markup, or (Markup or text, attributes of the cell).
        class_: class of the table.
        row_classes: class of each row, or None.
    """

    def cell(name, value, **attributes):
        content, more = value if isinstance(value, tuple) else (value, {})
        return tag(name, content, **attributes, **more)

    body = []
    for i, row in enumerate(rows):
        cells = [cell("th", row[0], scope="row"), *(cell("td", value) for value in row[1:])]
        body.append(tag("tr", cells, class_=row_classes[i] if i < len(row_classes) else None))
    return tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", [cell("th", value, scope="col") for value in head])),
        tag("tbody", body),
        class_=class_,
    )


def scroll(table: str, name: str) -> Markup:
    """A table that scrolls by itself where the screen is narrow."""
    return tag("div", Markup(table), class_="scroll", role="region", aria_label=name, tabindex=0)
