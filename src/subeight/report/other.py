"""A record of a kind that has no chapter: its numbers as they are, so that nothing is left out in silence."""

import json
from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import facts, words
from subeight.report.markup import Html, Node, code, folded, join, pairs, tag
from subeight.report.section import Section, Tile

ORDER = 80
_LONG = 20_000


def summary(records: list[Record]) -> list[Node]:
    """That there is such a record."""
    return [join([code(facts.label_of(record)), f": a record of kind {record.kind}."]) for record in records]


def tiles(_records: list[Record]) -> list[Tile]:
    """None."""
    return []


def draw(records: list[Record]) -> list[Section]:
    """Single numbers as a table, all of them as JSON to unfold."""
    found = []
    for record in records:
        title = f"{record.kind.capitalize()}: {words.shortened(facts.label_of(record))}"
        found.append(Section(title, [_singles(record.numbers), _whole(record.numbers)]))
    return found


def _singles(numbers: Mapping[str, Any]) -> Html:
    singles = [(code(name), value) for name, value in numbers.items() if isinstance(value, bool | int | float | str)]
    return pairs((name, words.shortened(str(value), 200)) for name, value in singles)


def _whole(numbers: Mapping[str, Any]) -> Html:
    whole = json.dumps(numbers, indent=1, ensure_ascii=False)
    cut = "\n… the rest stands in the record" if len(whole) > _LONG else ""
    return folded("All numbers of the record", tag("pre", whole[:_LONG] + cut))
