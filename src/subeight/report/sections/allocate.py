"""`allocate`: which format each place got and why, the front among its rivals, what was expected and what came."""

from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import allocation_figures, diagnosis_figures, facts, scores, words
from subeight.report.allocation import Allocation, Choice, Verified, allocation
from subeight.report.diagnosis import METRICS, Group
from subeight.report.facts import Measure, mapping, mappings, text
from subeight.report.markup import Column, Html, Node, bullets, code, folded, join, pairs, paragraph, prose, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 6
_FEW, _LISTED = 12, 2000


def summary(records: list[Record]) -> list[Node]:
    """What the budget bought, what is expected of it, and what was measured."""
    lines: list[Node] = []
    for record in records:
        found = allocation(record)
        if not found.choices:
            lines.append("No place was decided.")
            continue
        lines.append(paragraph(prose(f"{_budget(found)} {_counts(found)}")))
        lines += [paragraph(prose(line)) for line in (_expectation(found, _axis(record)), _rivalry(found)) if line]
        if found.recipe:
            lines.append(paragraph("The recipe: ", code(words.shortened(found.recipe, 96)), "."))
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """Of one allocation: its size, what it loses, and that beside a uniform recipe of its size."""
    found = allocation(records[0])
    if len(records) != 1 or not found.choices:
        return []
    tiles = []
    if found.bits is not None:
        tiles.append(Tile(words.significant(found.bits), words.size(found.bytes), "bits per weight"))
    if found.predicted.value is not None:
        tiles.append(Tile(words.significant(found.predicted.value), _ends(found.predicted), "expected loss"))
    if found.verified is not None and found.verified.loss.value is not None:
        tiles.append(Tile(words.significant(found.verified.loss.value), _ends(found.verified.loss), "measured loss"))
    if (beside := _beside_uniform(found)) is not None:
        tiles.append(Tile(f"× {words.significant(beside[0])}", beside[1], "of a uniform recipe's loss at this size"))
    return tiles


def draw(records: list[Record]) -> list[Section]:
    """The decisions, the front, the closest decisions, the check, the price of pins, the interactions."""
    sections = []
    for record in records:
        found, axis = allocation(record), _axis(record)
        of = f": {words.shortened(found.budget or facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [*_granted(found, axis, of), *_front(found, axis, of), *_closest(found, axis, of)]
        sections += [*_checked(found, axis, of), *_pins(found, of), *_interactions(found, of)]
    return sections or [Section("The allocation", [paragraph("No place was decided.")])]


def _axis(record: Record) -> str:
    metric = text(record.numbers.get("metric"), "kl")
    return METRICS.get(metric.split(":")[0], metric)


def _budget(found: Allocation) -> str:
    asked = f"The budget of {words.shortened(found.budget)}" if found.budget else "The budget"
    engine = f" for {words.shortened(found.engine)}" if found.engine not in ("", "any") else ""
    if found.bits is None:
        return f"{asked}{engine} was spent."
    return f"{asked}{engine} is spent with {words.significant(found.bits)} bits per weight, {words.size(found.bytes)}."


def _counts(found: Allocation) -> str:
    parts = [f"{count:,} {name if name == 'kept' else f'in `{name}`'}" for name, count in found.formats]
    return f"Of {words.count(len(found.choices), 'place')}: {words.listed(parts)}."


def _expectation(found: Allocation, axis: str) -> str:
    if found.predicted.value is None:
        return ""
    said = f"Expected: {axis} of {_loss(found.predicted)}."
    seen = found.verified
    if seen is None or seen.loss.value is None:
        return f"{said} It was not verified."
    inside = {True: ", within the expected interval", False: ", outside of the expected interval", None: ""}[
        seen.within
    ]
    held = f"; on held-out text {_loss(seen.heldout)}" if seen.heldout.value is not None else ""
    return f"{said} Measured on the whole model: {_loss(seen.loss)}{inside}{held}."


def _beside_uniform(found: Allocation) -> tuple[float, str] | None:
    """The loss over that of a uniform recipe of the same size; measured where it was, or else expected."""
    uniform = found.interpolated()
    seen = found.verified.loss.value if found.verified else None
    loss = found.predicted.value if seen is None else seen
    if uniform is None or loss is None:
        return None
    return loss / uniform[0], "expected" if seen is None else "measured"


def _rivalry(found: Allocation) -> str:
    uniform, beside = found.interpolated(), _beside_uniform(found)
    if uniform is None or beside is None:
        return ""
    names = " and ".join(f"`{words.shortened(point.name)}`" for point in uniform[1:])
    return (
        f"Between {names} a uniform recipe of this size would lose {words.significant(uniform[0])};"
        f" this allocation loses {words.significant(beside[0])} times that ({beside[1]})."
    )


def _granted(found: Allocation, axis: str, of: str) -> list[Section]:
    if not found.choices:
        return []
    caption = (
        "Each square is one place in the format that it got; hover for what it loses, the reason, and the doubts. A"
        " dot marks a place where the automation may be wrong."
    )
    columns = [Column("place"), Column("format"), Column("bits", True), Column("size", True), Column(axis, True)]
    columns += [Column("reason"), Column("doubts", wide=True)]
    lines: list[list[Node]] = [
        [_name(choice), code(choice.format), words.significant(choice.bits), words.size(choice.bytes),
         scores.measured(choice.loss), prose(choice.reason) or words.DASH, _doubts(choice)]
        for choice in found.choices
    ]  # fmt: skip
    every = folded(f"Every place ({len(lines):,}) and its reason", table(columns, lines[:_LISTED]))
    return [Section(f"What each place got{of}", [Picture(allocation_figures.granted(found), caption), every])]


def _front(found: Allocation, axis: str, of: str) -> list[Section]:
    if not any(point.bits is not None and (point.loss.value or 0) > 0 for point in [*found.front, *found.rivals]):
        return []
    caption = (
        "Down is closer to the baseline, left is smaller. The line is the best allocation at each size; rivals give all"
        " places one format, or the first and last blocks a wider one. Filled marks were measured, open ones are"
        " expected; bars and band are 95 % intervals."
    )
    columns = [Column("recipe"), Column("bits / weight", True), Column("size", True), Column(axis, True), Column("")]
    lines: list[list[Node]] = [
        [code(words.shortened(point.name)), words.significant(point.bits), words.size(point.bytes),
         scores.measured(point.loss), "measured" if point.measured else "expected"]
        for point in found.rivals
    ]  # fmt: skip
    content: list[Html | Picture] = [Picture(allocation_figures.front(found, axis), caption)]
    content += [folded("The rivals in numbers", table(columns, lines))] if lines else []
    return [Section(f"The front{of}", content)]


def _closest(found: Allocation, axis: str, of: str) -> list[Section]:
    closest = found.closest
    doubtful = [choice for choice in found.choices if choice.doubts]
    content: list[Html | Picture] = []
    if closest:
        intro = "The places where one more step would gain most for its bytes: a larger budget would widen these first."
        columns = [
            Column("place"), Column("got"), Column("next"), Column("gain", True, f"how much less is lost: {axis}"),
            Column("price", True), Column("gain per MB", True), Column("doubts", wide=True),
        ]  # fmt: skip
        lines: list[list[Node]] = [
            [_name(choice), code(choice.format), code(choice.next or "?"), words.significant(choice.gain),
             words.size(choice.price), words.significant(1e6 * choice.rate), _doubts(choice)]
            for choice in closest
        ]  # fmt: skip
        rest = folded(f"All {len(lines):,}", table(columns, lines[:_LISTED])) if len(lines) > _FEW else Html("")
        content += [paragraph(intro), table(columns, lines[:_FEW]), rest]
    if doubtful:
        shown = [join([_name(choice), ": ", _doubts(choice)]) for choice in doubtful[:_FEW]]
        more = paragraph(f"and {len(doubtful) - _FEW:,} more, in the table of every place.", class_="muted")
        content += [tag("h3", "Where the automation is in doubt"), bullets(shown)]
        content += [more] if len(doubtful) > _FEW else []
    return [Section(f"The closest decisions{of}", content)] if content else []


def _checked(found: Allocation, axis: str, of: str) -> list[Section]:
    if found.predicted.value is None and found.verified is None:
        return []
    seen = found.verified
    groups = [Group("expected", found.predicted, None)]
    if seen is not None:
        groups += [Group("measured", seen.loss, None), Group("on held-out text", seen.heldout, None)]
    groups = [group for group in groups if group.loss.value is not None]
    rows: list[tuple[Node, Node]] = (
        [("sum of the cells", words.significant(found.sum))] if found.sum is not None else []
    )
    rows += [(group.name, scores.measured(group.loss)) for group in groups]
    if found.additivity is not None:
        rows.append(("whole over sum, expected", words.significant(found.additivity)))
    if seen is not None:
        rows += _verdict(seen)
    content: list[Html | Picture] = [pairs(rows)]
    if len(groups) > 1:
        caption = "What was expected of the whole from single places, and what the whole lost, with 95 % intervals."
        content = [Picture(diagnosis_figures.losses(groups, None, None, axis), caption), *content]
    if seen is None:
        content.append(paragraph("The recipe was not quantized and measured; --verify does that.", class_="muted"))
    return [Section(f"Expected and measured{of}", content)]


def _verdict(seen: Verified) -> list[tuple[Node, Node]]:
    rows: list[tuple[Node, Node]] = []
    if seen.ratio is not None:
        rows.append(("measured over expected", words.significant(seen.ratio)))
    if seen.within is not None:
        rows.append(("within the expected interval", _yes(seen.within)))
    if seen.heldout_within is not None:
        rows.append(("held-out text within its interval", _yes(seen.heldout_within)))
    if seen.additivity is not None:
        rows.append(("whole over sum, measured", words.significant(seen.additivity)))
    return rows


def _yes(value: bool) -> Node:
    return "yes" if value else tag("b", "no", class_="warn")


def _pins(found: Allocation, of: str) -> list[Section]:
    priced = dict(found.prices)
    asked = [*((pin, "pinned") for pin in found.pins), *((glob, "forbidden") for glob in found.forbids)]
    known = {name for name, _ in asked}
    asked += [(name, "") for name in priced if name not in known]
    if not asked:
        return []
    columns = [Column("asked for"), Column(""), Column("price", True, "expected loss with it minus without it")]
    lines = [[code(words.shortened(name, 72)), how, words.significant(priced.get(name))] for name, how in asked]
    intro = "What was fixed by hand, and how much more is expected to be lost for it at the same budget."
    return [Section(f"The price of pins{of}", [paragraph(intro), table(columns, lines)])]


def _interactions(found: Allocation, of: str) -> list[Section]:
    seen = found.verified
    if seen is None or not seen.pairs:
        return []
    intro = (
        "Pairs that lose more together (or less, below zero) than the sum of what each loses alone, measured, the"
        " strongest first."
    )
    columns = [Column("one"), Column("other"), Column("alone", True), Column("together", True)]
    columns.append(Column("interaction", True, "beyond the sum; where its interval holds 0 it may be chance"))
    lines: list[list[Node]] = [
        [code(words.shortened(pair.a, 72)), code(words.shortened(pair.b, 72)),
         " and ".join(words.significant(loss) for loss in pair.alone) or words.DASH, words.significant(pair.together),
         scores.measured(pair.interaction)]
        for pair in seen.pairs[:_LISTED]
    ]  # fmt: skip
    content: list[Html | Picture] = [paragraph(intro), table(columns, lines[:_FEW])]
    content += [folded(f"All {len(lines):,}", table(columns, lines))] if len(lines) > _FEW else []
    if said := _corrected(seen.corrected):
        content.append(paragraph(prose(said)))
    return [Section(f"The pairs that interact{of}", content)]


def _corrected(row: Mapping[str, Any]) -> str:
    loss, before = facts.measure(row, "kl"), facts.measure(mapping(row.get("before")), "kl")
    if loss.value is None or before.value is None:
        return ""
    changes = mappings(row.get("changes"))
    kept = "this is the recipe" if row.get("taken") else "the first allocation stays the recipe"
    return (
        f"Allocated again with half of each real interaction in either cell, {words.count(len(changes), 'place')}"
        f" would change: measured {_loss(loss)} instead of {_loss(before)}; {kept}."
    )


def _name(choice: Choice) -> Html:
    return code(words.shortened(choice.spot.name, 72))


def _doubts(choice: Choice) -> Node:
    return join((prose(doubt) for doubt in choice.doubts), "; ") if choice.doubts else words.DASH


def _loss(value: Measure) -> str:
    ends = _ends(value)
    return words.significant(value.value) + (f" ({ends})" if ends else "")


def _ends(value: Measure) -> str:
    return words.interval(value.value, value.low, value.high)
