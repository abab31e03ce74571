"""One self-contained HTML page from records: Plotly inlined, nothing fetched, no text of a model trusted."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from subeight.errors import RecordError
from subeight.records import Record, atomic_write
from subeight.report import facts, other, provenance
from subeight.report.markup import Html, Node, bullets, embedded_json, join, paragraph, prose, tag
from subeight.report.section import Chapter, Picture, Section, Tile, find_chapters


def build(records: Iterable[Record | Path | str], out: Path | str) -> Path:
    """Write the report of records (or of their files, or of run directories) as one HTML page; return its path.

    A path without a suffix `.html` is a directory, in which the page is `report.html`.
    """
    read = [record if isinstance(record, Record) else Record.read(record) for record in records]
    if not read:
        raise RecordError("A report needs at least one record; give a record.json or a run directory.")
    out = Path(out)
    target = out if out.suffix == ".html" else out / "report.html"
    return atomic_write(target, render(read))


def render(records: Sequence[Record]) -> str:
    """The page as text."""
    chapters = _chapters(records)
    sections = [section for chapter, mine in chapters for section in chapter.draw(mine)]
    sections += provenance.draw(list(records))
    figures: list[Any] = []
    bodies = [_section(f"part-{index}", section, figures) for index, section in enumerate(sections)]
    model = facts.model_of(records)
    title = f"{facts.last_part(model)} below 8 bits" if model else "Below 8 bits"
    main = tag("main", _head(title, records), _summary(chapters, records), *bodies, _foot())
    body = tag(
        "body",
        tag("div", _contents(sections), main, class_="frame"),
        tag("script", embedded_json(figures), type="application/json", id="figure-data"),
        *(tag("script", script) for script in _scripts()),
    )
    return f"<!DOCTYPE html>\n{tag('html', _meta(title), body, lang='en')}\n"


def _chapters(records: Sequence[Record]) -> list[tuple[Chapter, list[Record]]]:
    known = find_chapters()
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    found: list[tuple[Chapter, list[Record]]] = [
        (known.get(kind.replace("-", "_"), other), mine) for kind, mine in by_kind.items()
    ]
    return sorted(found, key=lambda pair: pair[0].ORDER)


def _meta(title: str) -> Html:
    # Only these very scripts may run, and nothing may be fetched: a second wall behind the escaping.
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in _scripts())
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_resource("style.css"))),
    )


def _head(title: str, records: Sequence[Record]) -> Html:
    days = sorted({record.created[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    version = next((facts.mapping(r.stack.get("packages")).get("subeight") for r in records if r.stack), None)
    made = f"Measured with Subeight {version}" if version else "Measured with Subeight"
    return tag("header", tag("h1", title), paragraph(f"{made}, {when}", class_="muted"))


def _summary(chapters: list[tuple[Chapter, list[Record]]], records: Sequence[Record]) -> Html:
    notes = provenance.settings_notes(list(records))
    banner = [tag("p", note[0].upper() + note[1:], class_="banner", role="note") for note in notes]
    tiles = [tile for chapter, mine in chapters for tile in chapter.tiles(mine)][:4]
    said = [_said(mine[0].kind, chapter.summary(mine)) for chapter, mine in chapters]
    found = provenance.warnings(list(records))
    alarm = [tag("h3", "Warnings"), bullets((prose(line) for line in found), class_="warnings")] if found else []
    return tag(
        "section",
        *banner,
        tag("div", *(_tile(tile) for tile in tiles), class_="tiles") if tiles else Html(""),
        tag("dl", *said, class_="said"),
        *alarm,
        id="summary",
        class_="summary",
    )


def _said(kind: str, lines: Sequence[Node]) -> Html:
    return join([tag("dt", kind), tag("dd", join((prose(line) for line in lines), " "))])


def _tile(tile: Tile) -> Html:
    value = tag("div", tag("strong", tile.value), " ", tag("span", tile.note))
    return tag("div", value, tag("div", tile.name, class_="name"), class_="tile")


def _section(anchor: str, section: Section, figures: list[Any]) -> Html:
    parts = []
    for item in section.content:
        if isinstance(item, Picture):
            name = f"figure-{len(figures)}"
            spec = json.loads(item.figure.to_json())
            figures.append({"id": name, "data": spec["data"], "layout": spec["layout"]})
            parts.append(tag("figure", _plot(name, item, spec["layout"]), tag("figcaption", item.caption)))
        else:
            parts.append(item)
    return tag("section", tag("h2", section.title), *parts, id=anchor)


def _plot(name: str, picture: Picture, layout: dict[str, Any]) -> Html:
    height = f"height:{int(layout['height'])}px"
    if not picture.least:
        return tag("div", id=name, class_="plot", style=height)
    return tag(
        "div", tag("div", id=name, class_="plot", style=f"{height};min-width:{picture.least}px"), class_="scroll"
    )


def _contents(sections: Sequence[Section]) -> Html:
    links = [tag("a", "Summary", href="#summary")]
    links += [tag("a", section.title, href=f"#part-{index}") for index, section in enumerate(sections)]
    return tag("nav", bullets(links), aria_label="Contents")


def _foot() -> Html:
    return tag("footer", "Written by Subeight. This page stands alone: it loads nothing from anywhere.")


def _scripts() -> list[Html]:
    return [Html(get_plotlyjs().replace("</script", "<\\/script")), Html(_resource("page.js"))]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return (resources.files("subeight.report") / name).read_text(encoding="utf-8")
