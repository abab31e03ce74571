"""HTML that cannot be injected into: every text is escaped unless this module made it."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class Html(str):
    """Text that is HTML already. Anything else that reaches a tag is escaped."""

    __slots__ = ()


Node = str  # an Html is kept, a plain str is escaped
_VOID = frozenset({"br", "hr", "meta"})


def escape(node: Node) -> Html:
    """An Html as it is; any other text with everything escaped that HTML gives a meaning."""
    return node if isinstance(node, Html) else Html(html.escape(str(node)))


def join(nodes: Iterable[Node], between: str = "") -> Html:
    """The nodes one after the other."""
    return Html(escape(between).join(escape(node) for node in nodes))


def tag(name: str, /, *children: Node, **attributes: str | None) -> Html:
    """One element; `class_` stands for class, and an attribute that is None is left out."""
    pairs = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{name}{''.join(pairs)}>"
    return Html(opening if name in _VOID else f"{opening}{join(children)}</{name}>")


def code(text: str, class_: str | None = None) -> Html:
    """A name of the machine's (of a linear, a recipe, a file), that may wrap after its dots and slashes."""
    apart = re.sub(r"\+(?=\w)", "+<wbr>", escape(text))
    return tag("code", Html(re.sub(r"([./])(?=\w)", r'\1<wbr class="soft">', apart)), class_=class_)


def prose(text: Node) -> Html:
    """A sentence of a record, in which `backticks` mark names."""
    if isinstance(text, Html):
        return text
    parts = re.split(r"`([^`]+)`", text)
    return join(code(part) if index % 2 else part for index, part in enumerate(parts))


def paragraph(*nodes: Node, class_: str | None = None) -> Html:
    """One paragraph."""
    return tag("p", *nodes, class_=class_)


def bullets(items: Iterable[Node], class_: str | None = None) -> Html:
    """An unordered list; nothing when there are no items."""
    rows = [tag("li", item) for item in items]
    return tag("ul", *rows, class_=class_) if rows else Html("")


def folded(summary: Node, *content: Node, open_: bool = False) -> Html:
    """Content that is folded away until its summary is clicked."""
    return tag("details", tag("summary", summary), *content, open="" if open_ else None)


@dataclass(frozen=True)
class Column:
    """A column of a table; `numeric` ones are aligned right, in digits of one width, those of sentences are `wide`."""

    title: str
    numeric: bool = False
    note: str | None = None
    wide: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[Node]], marks: Sequence[str | None] = ()) -> Html:
    """A table that scrolls sideways by itself when it is wide; `marks` are classes of rows."""
    classes = ["number" if column.numeric else "wide" if column.wide else None for column in columns]
    heads = [
        tag("th", column.title, class_=class_, title=column.note, scope="col")
        for column, class_ in zip(columns, classes, strict=True)
    ]
    lines = []
    for index, row in enumerate(rows):
        cells = [tag("td", cell, class_=class_) for cell, class_ in zip(row, classes, strict=True)]
        lines.append(tag("tr", *cells, class_=marks[index] if index < len(marks) else None))
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines)), class_="scroll")


def pairs(items: Iterable[tuple[Node, Node]]) -> Html:
    """A table of names and values."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in items]
    return tag("div", tag("table", tag("tbody", *rows), class_="pairs"), class_="scroll")


def embedded_json(value: Any) -> Html:
    """JSON that stays JSON inside a script element: no `<` is left that could end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
