"""`lock`: a result that is held for later, and within which tolerances."""

from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import facts, words
from subeight.report.markup import Column, Html, Node, code, join, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 26


def summary(records: list[Record]) -> list[Node]:
    """Which file locks what."""
    return [
        join(
            [
                code(facts.label_of(record)),
                " is locked in ",
                code(facts.text(record.numbers.get("lock"), "a file")),
                ".",
            ]
        )
        for record in records
    ]


def tiles(records: list[Record]) -> list[Tile]:
    """How small the lock is, when there is one."""
    size = facts.number(records[0].numbers.get("lock_bytes"))
    return [Tile(words.size(size), "of text", "lock")] if len(records) == 1 and size is not None else []


def draw(records: list[Record]) -> list[Section]:
    """The numbers that later stacks are held to, and how exact the kernels were."""
    found = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record))}" if len(records) > 1 else ""
        limits = facts.mapping(record.numbers.get("tolerance"))
        lines = [[code(str(name)), words.significant(facts.number(limit))] for name, limit in limits.items()]
        intro = tag("p", "Verification fails where a later stack is worse by more than this, with its whole interval.")
        columns = [Column("metric"), Column("tolerance", True)]
        probes = facts.mappings(record.numbers.get("probes"))
        content: list[Html | Picture] = [intro, table(columns, lines), *([_probes(probes)] if probes else [])]
        found.append(Section(f"The lock{of}", content))
    return found


def _probes(probes: list[Mapping[str, Any]]) -> Html:
    columns = [Column("kernel probe"), Column("error", True), Column("allowed", True), Column("bits")]
    lines = [
        [
            facts.text(probe.get("name")),
            words.significant(facts.number(probe.get("error"))),
            words.significant(facts.number(probe.get("bound"))),
            code(facts.text(probe.get("sha256"))),
        ]
        for probe in probes
    ]
    return table(columns, lines)
