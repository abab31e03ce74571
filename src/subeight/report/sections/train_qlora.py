"""`train_qlora`: what was learned, what each way of merging keeps of it, and what of the model is quantized."""

from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import facts, lora, lora_figures, scores, words
from subeight.report.facts import mapping, text
from subeight.report.lora import Way
from subeight.report.markup import Column, Html, Node, code, folded, join, paragraph, table
from subeight.report.section import Picture, Section, Tile

ORDER = 17
_LISTED = 3000


def summary(records: list[Record]) -> list[Node]:
    """What each record found, in its own sentences."""
    lines: list[Node] = []
    for record in records:
        found = record.numbers.get("findings")
        label = code(words.shortened(facts.label_of(record), 32))
        sentences = [text(line) for line in found] if isinstance(found, list) else []
        lines += [paragraph(join([label, ": ", line])) for line in sentences[-1:]]
    return lines or ["Nothing was trained."]


def tiles(records: list[Record]) -> list[Tile]:
    """Of one record: the best way by bytes, what it keeps, and the trained numbers."""
    if len(records) != 1:
        return []
    found = []
    best = lora.best(records[0])
    if best is not None:
        found.append(Tile(words.size(best.bytes), best.label, "best by bytes"))
        found.append(Tile(words.percent(best.kept.value), "of what was learned", "kept by it"))
    trained = next((total for total in lora.totals(records[0]) if total.status == "trained"), None)
    if trained is not None and trained.count is not None:
        found.append(Tile(f"{trained.count:,}", words.size(trained.bytes), "numbers trained"))
    return found


def draw(records: list[Record]) -> list[Section]:
    """The merges, the course of the loss, the manifest."""
    sections = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [_merges(record, of), *_course(record, of), *_manifest(record, of)]
    return sections


def _merges(record: Record, of: str) -> Section:
    ways, bases = lora.ways(record), lora.bases(record)
    content: list[Html | Picture] = [
        paragraph(
            "KL is that to the trained model, its adapter kept apart, on the held-out part. The gain is what the "
            "trained model is better than its quantized base before training, by ",
            code(text(record.numbers.get("metric"), "?")),
            "; below a half of it, what was learned is called erased.",
        )
    ]
    if any(way.kept.value is not None for way in ways):
        caption = "Up and to the left is better. Thin lines are 95 % intervals, paired by document."
        content.append(Picture(lora_figures.sizes_against_gain(ways), caption, 480))
    columns = [
        Column("model"), Column("size", True), Column("loss", True), Column("exact answers", True),
        Column("right choices", True), Column("KL", True), Column("gain kept", True), Column("verdict"),
    ]  # fmt: skip
    content.append(table(columns, [_line(way) for way in (*bases, *ways)]))
    return Section(f"Ways of merging{of}", content)


def _line(way: Way) -> list[Node]:
    if way.skipped is not None:
        return [way.label, *[words.DASH] * 6, f"not measured: {way.skipped}"]
    return [
        way.label,
        words.size(way.bytes),
        scores.measured(way.loss),
        scores.measured_share(way.exact),
        scores.measured_share(way.accuracy),
        scores.measured(way.kl),
        scores.measured_share(way.kept),
        way.verdict,
    ]


def _course(record: Record, of: str) -> list[Section]:
    points = lora.curve(record)
    if len(points) < 2:
        return []
    resumed = facts.whole(mapping(record.numbers.get("training")).get("resumed_at"))
    note = f" The run was resumed at update {resumed:,}." if resumed else ""
    caption = f"Mean over the scored tokens of each update.{note}"
    return [Section(f"The loss while training{of}", [Picture(lora_figures.loss_by_update(points), caption)])]


def _manifest(record: Record, of: str) -> list[Section]:
    totals = lora.totals(record)
    if not totals:
        return []
    columns = [Column("status"), Column("parameters", True), Column("numbers", True), Column("bytes", True),
               Column("bits each", True)]  # fmt: skip
    lines: list[list[Node]] = [
        [
            total.status,
            words.DASH if total.parameters is None else f"{total.parameters:,}",
            words.DASH if total.count is None else f"{total.count:,}",
            words.size(total.bytes),
            words.significant(total.bits),
        ]
        for total in totals
    ]
    content: list[Html | Picture] = [table(columns, lines), *_fused(record)]
    rows = lora.parameters(record)
    each = [Column("parameter"), Column("shape", True), Column("status"), Column("format"), Column("bytes", True),
            Column("why")]  # fmt: skip
    content.append(folded(f"Every parameter ({len(rows):,})", table(each, [_entry(row) for row in rows[:_LISTED]])))
    return [Section(f"What is quantized, frozen and trained{of}", content)]


def _fused(record: Record) -> list[Html]:
    fused = mapping(mapping(mapping(record.numbers.get("manifest")).get("totals")).get("fused"))
    count = facts.whole(fused.get("parameters"))
    if not count:
        return []
    done = facts.whole(fused.get("quantized")) or 0
    return [paragraph(f"Of {words.count(count, 'fused expert parameter')}, {done:,} are quantized.")]


def _entry(row: Mapping[str, Any]) -> list[Node]:
    shape = row.get("shape")
    sides = " × ".join(text(side) for side in shape) if isinstance(shape, list) else words.DASH
    return [
        code(words.shortened(text(row.get("name"), "?"), 72)),
        sides,
        text(row.get("status")),
        text(row.get("format")),
        words.size(facts.number(row.get("bytes"))),
        text(row.get("reason")),
    ]
