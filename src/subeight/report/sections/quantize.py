"""`quantize`: what was done to every linear and why, the error it left, the check of what was written."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import experts, facts, figures, words
from subeight.report.markup import Column, Html, Node, code, folded, join, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 30
_MANY = 2000


def summary(records: list[Record]) -> list[Node]:
    """How many linears were quantized to what, at which cost, and whether what was written was checked."""
    lines: list[Node] = []
    for record in records:
        linears = facts.mappings(record.numbers.get("linears"))
        kept = sum(1 for linear in linears if not linear.get("format"))
        bits = words.significant(facts.number(record.numbers.get("bits_per_weight")))
        stored = words.size(facts.number(record.numbers.get("bytes")))
        done = words.count(len(linears) - kept, "linear was", "linears were")
        rest = f" and {kept:,} left as {'it was' if kept == 1 else 'they were'}" if kept else ""
        cost = f", in {words.duration(record.seconds)}" if record.seconds else ""
        memory = f" with at most {words.size(record.peak_rss_bytes)} of memory" if record.peak_rss_bytes else ""
        opening = join([code(facts.label_of(record)), ": "])
        lines.append(join([opening, f"{done} quantized{rest}: {bits} bits per weight, {stored}{cost}{memory}."]))
        if parity := _parity(record):
            lines.append(parity)
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """Size of the one checkpoint, when there is one."""
    bits = facts.number(records[0].numbers.get("bits_per_weight"))
    if len(records) != 1 or bits is None:
        return []
    stored = words.size(facts.number(records[0].numbers.get("bytes")))
    return [Tile(words.significant(bits), "bits per weight", f"{stored} of linears")]


def draw(records: list[Record]) -> list[Section]:
    """The error left in every layer, and the plan."""
    found = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record))}" if len(records) > 1 else ""
        linears = facts.mappings(record.numbers.get("linears"))
        found += [*_errors(linears, of), *experts.coverage(record.numbers, of)]
        found += [*_plan(linears, of), *_written(record, of)]
    return found


def _errors(linears: list[Mapping[str, Any]], of: str) -> list[Section]:
    content: list[Html | Picture] = []
    done = [item for item in linears if item.get("format")]
    outputs, weights = (_drawn(done, name) for name in ("output_error", "weight_error"))
    if outputs:
        caption = (
            "Relative error of every linear's output on the calibration text: what the next layers notice."
            " A line that climbs or a single high point is where precision is missing."
        )
        content.append(Picture(figures.by_layer(outputs, "error of the output"), caption))
    if weights:
        caption = "Relative error of the weights themselves. Good methods let it grow to make the output's smaller."
        content.append(Picture(figures.by_layer(weights, "error of the weight"), caption))
    return [Section(f"Error per layer{of}", content)] if content else []


def _drawn(linears: list[Mapping[str, Any]], name: str) -> list[facts.Layer]:
    points = facts.worst_of_each(facts.layers(linears, name, note="format"))
    return [point for point in points if point.value > 0]


def _plan(linears: list[Mapping[str, Any]], of: str) -> list[Section]:
    if not linears:
        return []
    kinds = Counter((_format(item), _methods(item), facts.text(item.get("reason"))) for item in linears)
    columns = [Column("linears", True), Column("format"), Column("methods"), Column("why")]
    lines = [[f"{count:,}", code(fmt), how, why] for (fmt, how, why), count in kinds.most_common()]
    shown = linears[:_MANY]
    more = (
        [tag("p", f"The first {_MANY:,} of {len(linears):,}; all stand in the record.")] if len(linears) > _MANY else []
    )
    every = folded(f"Every linear ({len(linears):,}) and its reason", *more, _every(shown))
    return [Section(f"The plan{of}", [table(columns, lines), every])]


def _every(linears: list[Mapping[str, Any]]) -> Html:
    columns = [
        Column("linear"), Column("shape", True), Column("format"), Column("methods"), Column("bits", True),
        Column("size", True), Column("output error", True), Column("why"), Column("runs in"),
    ]  # fmt: skip
    lines = [
        [
            code(words.shortened(facts.text(item.get("name")), 64)),
            " × ".join(str(side) for side in item.get("shape") or []),
            code(_format(item)),
            _methods(item),
            words.significant(facts.number(item.get("bits"))),
            words.size(facts.number(item.get("bytes"))),
            words.significant(facts.number(item.get("output_error"))),
            facts.text(item.get("reason")),
            ", ".join(str(engine) for engine in item.get("runs_in") or []),
        ]
        for item in linears
    ]
    return table(columns, lines)


def _written(record: Record, of: str) -> list[Section]:
    checkpoint = facts.text(record.numbers.get("checkpoint"))
    parity = _parity(record)
    if not checkpoint and not parity:
        return []
    where = [tag("p", "The checkpoint is in ", code(checkpoint), ".")] if checkpoint else []
    return [Section(f"What was written{of}", [*where, *([tag("p", parity)] if parity else [])])]


def _parity(record: Record) -> str:
    parity = facts.mapping(record.numbers.get("parity"))
    largest, bound = facts.number(parity.get("max_abs")), facts.number(parity.get("bound"))
    if largest is None:
        return ""
    tokens = facts.whole(parity.get("tokens"))
    on = f" on {tokens:,} tokens" if tokens else ""
    allowed = f", where {bound:g} is allowed" if bound is not None else ""
    return (
        f"What was written was loaded again in a fresh process: its logits differ by at most"
        f" {words.significant(largest, 2)}{on} from what was measured{allowed}."
    )


def _format(item: Mapping[str, Any]) -> str:
    return facts.text(item.get("format"), "unchanged")


def _methods(item: Mapping[str, Any]) -> str:
    methods = item.get("methods")
    if not isinstance(methods, list):
        return facts.text(methods, words.DASH)
    names = [
        str(m[0] if isinstance(m, list) and m else next(iter(m), "") if isinstance(m, dict) else m) for m in methods
    ]
    return ", ".join(names) or words.DASH
