"""Where the numbers come from: five coordinates, the stack, the settings, the warnings and the commands."""

import shlex
from collections.abc import Mapping
from typing import Any

from subeight.records import NAMES, Record, difference
from subeight.report import facts, words
from subeight.report.markup import Column, Html, Node, bullets, code, folded, join, pairs, table, tag
from subeight.report.section import Picture, Section

_MEANING = {
    "baseline": "the exact full-precision model",
    "recipe": "which linear gets which format, by which methods",
    "calibration": "the text that the methods saw",
    "evaluation": "the text, settings and metrics of the measurement",
    "stack": "software, hardware and numerics",
}


def draw(records: list[Record]) -> list[Section]:
    """The sections that end every page."""
    found = [_coordinates(records), _stack(records), _settings(records), _commands(records)]
    return [section for section in found if section is not None]


def warnings(records: list[Record]) -> list[str]:
    """All warnings of the records, each once."""
    return list(dict.fromkeys(warning for record in records for warning in record.warnings))


def settings_notes(records: list[Record]) -> list[str]:
    """What must be said of the settings wherever the numbers are shown: demo settings, mostly."""
    notes = [facts.text(holder.get("settings_note")) for r in records for holder in (r.numbers, r.settings)]
    return list(dict.fromkeys(note for note in notes if note))


def _coordinates(records: list[Record]) -> Section:
    columns = [Column("record"), *(Column(name, note=_MEANING[name]) for name in NAMES)]
    points = [record.coordinates for record in records]
    known = {name: {getattr(p, name) for p in points} - {None} for name in NAMES}
    moved = [name for name in NAMES if len(known[name]) > 1]
    lines = []
    for record in records:
        cells = [_hash(getattr(record.coordinates, name), name in moved) for name in NAMES]
        lines.append([join([record.kind, " ", code(words.shortened(facts.label_of(record), 28))]), *cells])
    if len(records) == 1:
        said = "Five fingerprints fix every number on this page. The same five give the same numbers."
    elif not moved:
        said = "All records of this page agree in every coordinate that applies to them."
    else:
        said = f"The records of this page differ in their {words.listed(moved)}, and in nothing else."
    return Section("The five coordinates", [tag("p", said), table(columns, lines)])


def _hash(value: str | None, moved: bool) -> Html:
    if value is None:
        return tag("span", "does not apply", class_="muted")
    return (
        tag("span", "unknown", class_="warn")
        if value == "unknown"
        else code(words.shortened(value, 24), class_="moved" if moved else None)
    )


def _stack(records: list[Record]) -> Section | None:
    stacks = [record.stack for record in records if record.stack]
    if not stacks:
        return None
    content: list[Html | Picture] = [pairs(_stack_rows(stacks[0]))]
    others = [stack for stack in stacks[1:] if stack != stacks[0]]
    for other in [stack for index, stack in enumerate(others) if stack not in others[:index]]:
        lines = [code(line) for line in difference(stacks[0], other)]
        content += [tag("p", "Another record of this page was made on another stack:"), bullets(lines)]
    return Section("The stack", content)


def _stack_rows(stack: Mapping[str, Any]) -> list[tuple[Node, Node]]:
    packages = facts.mapping(stack.get("packages"))
    rows: list[tuple[Node, Node]] = []
    for name, value in stack.items():
        shown = name.replace("_", " ")
        if name == "packages":
            versions = [join([name, " ", code(str(v))]) for name, v in packages.items() if v is not None]
            rows.append((shown, join(versions, ", ")))
        elif isinstance(value, Mapping):
            if value:
                rows.append((shown, ", ".join(f"{key} = {item}" for key, item in value.items())))
        elif isinstance(value, list):
            rows.append((shown, ", ".join(str(item) for item in value)))
        elif value is not None:
            rows.append((shown, str(value)))
    return rows


def _settings(records: list[Record]) -> Section | None:
    content: list[Html | Picture] = []
    seen: list[Mapping[str, Any]] = []
    for record in records:
        if record.settings and record.settings not in seen:
            seen.append(record.settings)
            rows = pairs((code(name), _setting(value)) for name, value in record.settings.items())
            title = f"{record.kind} {words.shortened(facts.label_of(record))}"
            content.append(rows if len(records) == 1 else folded(title, rows, open_=len(seen) == 1))
    return Section("Settings", content) if content else None


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return words.DASH if value is None else str(value)


def _commands(records: list[Record]) -> Section | None:
    commands = list(dict.fromkeys(shlex.join(record.command) for record in records if record.command))
    if not commands:
        return None
    intro = tag("p", "The same commands on the same stack give the same numbers.")
    return Section("Do it again", [intro, tag("pre", "\n".join(commands), class_="commands")])
