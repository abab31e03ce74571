"""`verify`: the verdict first, then the differences to the lock, what changed in the stack, and the kernel probes."""

from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import facts, words
from subeight.report.markup import Column, Html, Node, bullets, code, folded, join, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 25
_NAMES = {"kl": "KL", "top1": "top-1 agreement", "nll": "loss"}
_RELATIONS = {
    "same": "the locked bits",
    "rounding": "another rounding, within its float64 error",
    "wrong": "wrong, beyond its float64 error",
    "missing": "on one side only",
}


def summary(records: list[Record]) -> list[Node]:
    """The verdict and its first reason."""
    return [join([code(facts.label_of(record)), ": ", _lines(record)[0]]) for record in records if _lines(record)]


def tiles(records: list[Record]) -> list[Tile]:
    """The verdict, and by how much the KL is worse."""
    if len(records) != 1:
        return []
    numbers = records[0].numbers
    first = next(iter(facts.mappings(numbers.get("differences"))), {})
    worse = facts.measure(first, "worse")
    note = words.interval(worse.value, worse.low, worse.high)
    return [
        Tile(facts.text(numbers.get("verdict"), words.DASH), "against its lock", "verdict"),
        Tile(words.significant(worse.value), note, "KL worse than locked"),
    ]


def draw(records: list[Record]) -> list[Section]:
    """Each verification: its words, its numbers, its stack."""
    found = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record))}" if len(records) > 1 else ""
        found.append(Section(f"Against the lock{of}", [bullets(_lines(record)), _differences(record)]))
        found += _stack(record, of)
        found += _replay(record, of)
    return found


def _lines(record: Record) -> list[str]:
    lines = record.numbers.get("words")
    return [str(line) for line in lines] if isinstance(lines, list) else []


def _differences(record: Record) -> Html:
    columns = [
        Column("metric"), Column("locked", True), Column("today", True), Column("worse by", True), Column("95 %"),
        Column("tolerance", True), Column("verdict"),
    ]  # fmt: skip
    lines, marks = [], []
    for item in facts.mappings(record.numbers.get("differences")):
        worse = facts.measure(item, "worse")
        metric = facts.text(item.get("metric"))
        lines.append(
            [
                _NAMES.get(metric, metric),
                words.significant(facts.number(item.get("locked"))),
                words.significant(facts.number(item.get("today"))),
                words.significant(worse.value),
                words.interval(worse.value, worse.low, worse.high),
                words.significant(facts.number(item.get("tolerance"))),
                facts.text(item.get("verdict")),
            ]
        )
        marks.append("warn" if item.get("verdict") != "pass" else None)
    return table(columns, lines, marks)


def _stack(record: Record, of: str) -> list[Section]:
    changes = facts.mappings(record.numbers.get("changes"))
    content: list[Html | Picture] = []
    if changes:
        content.append(tag("p", "The most suspicious first."))
        content.append(_changes(changes))
    else:
        content.append(tag("p", "Nothing that the lock holds of the stack has changed."))
    probes = facts.mappings(record.numbers.get("probes"))
    if probes:
        content.append(folded(f"Kernel probes ({len(probes)})", _probes(probes), open_=_is_any_wrong(probes)))
    return [Section(f"What changed in the stack{of}", content)]


def _changes(changes: list[Mapping[str, Any]]) -> Html:
    columns = [Column("what"), Column("locked"), Column("today"), Column("suspicion")]
    lines = [
        [
            code(words.shortened(facts.text(item.get("what")), 60)),
            facts.text(item.get("before"), "absent"),
            facts.text(item.get("after"), "absent"),
            facts.text(item.get("suspicion")),
        ]
        for item in changes
    ]
    return table(columns, lines)


def _is_any_wrong(probes: list[Mapping[str, Any]]) -> bool:
    return any(probe.get("relation") == "wrong" for probe in probes)


def _probes(probes: list[Mapping[str, Any]]) -> Html:
    columns = [
        Column("probe"), Column("bits today"), Column("error locked", True), Column("error today", True),
        Column("allowed", True),
    ]  # fmt: skip
    lines = [
        [
            facts.text(probe.get("name")),
            _RELATIONS.get(facts.text(probe.get("relation")), words.DASH),
            words.significant(facts.number(probe.get("error_before"))),
            words.significant(facts.number(probe.get("error_after"))),
            words.significant(facts.number(probe.get("bound"))),
        ]
        for probe in probes
    ]
    return table(columns, lines, ["warn" if probe.get("relation") == "wrong" else None for probe in probes])


def _replay(record: Record, of: str) -> list[Section]:
    replay = facts.mapping(record.numbers.get("replay"))
    if not replay:
        return []
    columns = [Column("packages as they were"), Column("share of the difference that is left", True)]
    lines = [
        [
            ", ".join(str(name) for name in item.get("pinned") or []) or "none",
            words.percent(facts.number(item.get("share"))),
        ]
        for item in facts.mappings(replay.get("tests"))
    ]
    said = replay.get("words")
    content: list[Html | Picture] = [bullets(str(line) for line in said)] if isinstance(said, list) else []
    if lines:
        content.append(table(columns, lines))
    return [Section(f"The old stack, rebuilt{of}", content)]
