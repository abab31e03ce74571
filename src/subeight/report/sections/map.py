"""`map`: which places lose how much in which format. Heat map, curves, rescue, priors, controls, and the cost."""

from statistics import median

from subeight.records import Record
from subeight.report import facts, map_figures, scores, words
from subeight.report.facts import mapping, mappings, number, whole
from subeight.report.markup import Column, Html, Node, code, folded, join, pairs, paragraph, prose, table, tag
from subeight.report.section import Picture, Section, Tile
from subeight.report.sensitivity import Cell, Sensitivity, sensitivity

ORDER = 7
_FEW, _NAMED, _LISTED = 12, 3, 2000


def summary(records: list[Record]) -> list[Node]:
    """What was measured, and per format the places that lose most and how much of the damage they hold."""
    lines: list[Node] = []
    for record in records:
        found = sensitivity(record)
        if not found.damage:
            lines.append("Nothing was measured yet.")
            continue
        formats = words.listed([f"`{format}`" for format in found.formats if found.ranked(format)])
        places = words.count(len({name for name, _ in found.damage}), "place was", "places were")
        said = f"{places} quantized alone to {formats}, and measured against the exact full-precision model."
        lines.append(paragraph(prose(said)))
        if (every := whole(record.numbers.get("every")) or 1) > 1:
            lines.append(paragraph(f"Of every {every} blocks one was measured; it stands for those around it."))
        lines += [_sentence(found, format) for format in found.formats if found.ranked(format)]
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """Of one map: how concentrated the damage is, the most sensitive place, what it cost, what was expected."""
    found = sensitivity(records[0])
    format = found.narrowest
    if len(records) != 1 or format is None:
        return []
    tiles = []
    if held := found.concentration(format):
        places = words.count(held[0], "place")
        tiles.append(Tile(words.percent(held[1], 0), f"in {places}", f"of the damage of {_short(format)}"))
    worst = found.ranked(format)[0]
    name = words.shortened(worst.spot.label, 16)
    tiles.append(Tile(words.significant(worst.value), name, f"the worst place in {_short(format)}"))
    if (share := number(found.cost.get("share"))) is not None:
        tiles.append(Tile(words.percent(share), "of the naive way", "in block runs"))
    if (rank := number(found.ranks.get(format, {}).get("prior"))) is not None:
        tiles.append(Tile(words.significant(rank), "rank correlation", f"of prior and damage in {_short(format)}"))
    return tiles


def draw(records: list[Record]) -> list[Section]:
    """The map from its overview to its cost."""
    sections = []
    for record in records:
        found = sensitivity(record)
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [*_heat(found, of), *_curves(found, of), *_rescue(found, of), *_added(found, of)]
        sections += [*_priors(found, of), *_controls(found, of), *_cost(found, of)]
    return sections or [Section("The map", [paragraph("Nothing was measured yet.")])]


def _sentence(found: Sensitivity, format: str) -> Html:
    named = [f"{_where(cell)} ({words.significant(cell.value)})" for cell in found.ranked(format)[:_NAMED]]
    held = found.concentration(format)
    share = ""
    if held is not None:
        few = "worst place of the blocks holds" if held[0] == 1 else f"worst {held[0]:,} places of the blocks hold"
        share = f"; the {few} {words.percent(held[1], 0)} of the summed damage"
    return paragraph("In ", code(_short(format)), f" most is lost in {words.listed(named)}{share}.")


def _where(cell: Cell) -> str:
    role = words.shortened(cell.spot.role, 40)
    return role if cell.spot.block is None else f"{role} of block {cell.spot.block}"


def _heat(found: Sensitivity, of: str) -> list[Section]:
    if not found.damage:
        return [Section(f"Where the bits are needed{of}", [paragraph("No cell was measured.")])]
    methods = f", by {words.listed(list(found.methods))}" if found.methods else ""
    intro = (
        f"Each square is one place quantized alone{methods}, everything else exact: the brighter, the more it loses."
        " Squares that are missing were not measured."
    )
    caption = (
        f"Colour: {found.axis}, on a logarithmic scale around the median of each format: one colour is the same"
        " multiple in all of them. Hover for the value, its 95 % interval (paired: what the documents have in common"
        " is taken out), the tokens it took, and what was expected."
    )
    picture = Picture(map_figures.heat(found), caption)
    content: list[Html | Picture] = [paragraph(intro), picture, tag("h3", "The most sensitive places"), _worst(found)]
    return [Section(f"Where the bits are needed{of}", content)]


def _worst(found: Sensitivity) -> Html:
    """The worst places of the narrowest format as a table, all of them to unfold."""
    formats = [format for format in found.formats if found.ranked(format)]
    ranked = found.ranked(found.narrowest or "")
    columns = [Column("place"), *(Column(format, True) for format in formats)]
    lines = [
        [code(words.shortened(cell.spot.name, 72)), *(_loss(found, cell, of) for of in formats)] for cell in ranked
    ]
    known = [measure for of in formats if (measure := found.whole.get(of)) and measure.value is not None]
    everything: list[Node] = ["everything in the blocks", *(_whole(found, of) for of in formats)]
    shown = table(columns, [*lines[:_FEW], *([everything] if known else [])])
    rest = folded(f"All {len(lines):,}", table(columns, lines[:_LISTED])) if len(lines) > _FEW else ""
    return join([shown, rest])


def _loss(found: Sensitivity, cell: Cell, format: str) -> Node:
    measured = found.damage.get((cell.spot.name, format))
    return words.DASH if measured is None else scores.measured(measured.loss)


def _whole(found: Sensitivity, format: str) -> Node:
    measured = found.whole.get(format)
    return words.DASH if measured is None else scores.measured(measured)


def _curves(found: Sensitivity, of: str) -> list[Section]:
    if len({cell.format for cell in found.damage.values() if cell.bits is not None}) < 2:
        return []
    caption = (
        f"Each line is one place: what it loses at how many bits per weight, scales counted. In colours the ten that"
        f" lose most in {found.narrowest}; a steep line is a place where one more bit buys much."
    )
    return [Section(f"Damage against bits{of}", [Picture(map_figures.curves(found), caption)])]


def _rescue(found: Sensitivity, of: str) -> list[Section]:
    if not any(found.regained(cell) for cell in found.damage.values()):
        return []
    caption = (
        "To the right: quantized alone, a place loses much. Up: restored alone in a model that is quantized everywhere"
        " else, it gives much back. On the dotted line both agree and losses simply add; above it a place makes the"
        " others' errors worse, below it they hide or mend its own. Open triangles: not above zero."
    )
    return [Section(f"Damage against rescue{of}", [Picture(map_figures.rescued(found), caption)])]


def _added(found: Sensitivity, of: str) -> list[Section]:
    if not found.added():
        return []
    caption = (
        "To the right: the sum of what places lose alone. Up: what the model loses with all of them together, measured."
        " On the dotted line losses simply add. What an allocation will lose is read off the mixtures, each place in"
        " the format that a budget gave it."
    )
    return [Section(f"How single losses add up{of}", [Picture(map_figures.added(found), caption)])]


def _priors(found: Sensitivity, of: str) -> list[Section]:
    ranks = [(format, found.ranks[format]) for format in found.formats if found.ranks.get(format)]
    drawn = any(cell.prior is not None for cell in found.damage.values())
    content: list[Html | Picture] = []
    if drawn:
        said = [f"{_short(format)} {_rank(rank.get('prior'))}" for format, rank in ranks]
        ranked = f" Spearman's rank correlation: {', '.join(said)}." if said else ""
        caption = (
            "What one backward pass expected of each cell (gradient times weight error) against what was measured;"
            f" on the dotted line it was right.{ranked} Priors only order the work: the map holds what was measured."
        )
        content.append(Picture(map_figures.expected(found), caption))
    if ranks:
        columns = [
            Column("format"),
            Column("gradient times weight error", True, "Spearman's rank correlation with the measured damage"),
            Column("output error", True, "the same of the error of a linear's output, relative to the output"),
        ]
        lines = [[code(format), _rank(rank.get("prior")), _rank(rank.get("output_error"))] for format, rank in ranks]
        content.append(table(columns, lines))
    return [Section(f"Expected and measured{of}", content)] if content else []


def _controls(found: Sensitivity, of: str) -> list[Section]:
    lines: list[list[Node]] = []
    if (swapped := number(found.controls.get("no_swap"))) is not None:
        verdict = "as it must be" if swapped == 0 else "it must be exactly 0: do not trust this map"
        lines.append(["nothing swapped", words.significant(swapped), f"The same way with nothing replaced: {verdict}."])
    noise = [
        (row, a / b)
        for row in mappings(found.controls.get("noise"))
        if (a := number(row.get("kl"))) is not None and (b := number(row.get("noise_kl"))) and b > 0
    ]
    if noise:
        middle = median(ratio for _, ratio in noise)
        less = (
            f"Rounding loses {words.significant(middle)} times as much as random noise of the same size, in the median"
        )
        lines.append(["isotropic noise", f"× {words.significant(middle)}", f"{less} of {_cells(len(noise))}."])
    floor = mapping(found.controls.get("floor"))
    if (kl := number(floor.get("kl"))) is not None:
        dtype = words.shortened(facts.text(floor.get("dtype"), "another precision"))
        said = f"The exact model computed in {dtype}: losses well below this are lost in arithmetic anyway."
        lines.append(["precision", words.significant(kl), said])
    if not lines:
        return []
    content: list[Html | Picture] = [
        table([Column("control"), Column(found.axis, True), Column("what it says")], lines)
    ]
    if noise:
        columns = [Column("place"), Column("format"), Column("rounded", True), Column("noise", True), Column("×", True)]
        rows: list[list[Node]] = [
            [code(words.shortened(facts.text(row.get("place")), 72)), code(facts.text(row.get("format"))),
             words.significant(number(row.get("kl"))), words.significant(number(row.get("noise_kl"))),
             words.significant(ratio)]
            for row, ratio in noise
        ]  # fmt: skip
        content.append(folded("The noise, place by place", table(columns, rows[:_LISTED])))
    return [Section(f"Controls{of}", content)]


def _cost(found: Sensitivity, of: str) -> list[Section]:
    cost = found.cost
    spent, naive, share = (number(cost.get(key)) for key in ("token_blocks", "naive_token_blocks", "share"))
    rows: list[tuple[Node, Node]] = []
    if spent is not None:
        rows.append(("tokens through blocks", f"{spent:,.0f}"))
    if naive is not None:
        part = "" if share is None else f"; this map took {words.percent(share)} of it"
        rows.append(("the naive way", f"{naive:,.0f}: every cell, all tokens, through everything{part}"))
    names = {"rounds": "rounds", "workers": "workers", "deaths": "workers lost and replaced"}
    rows += [(said, f"{n:,}") for key, said in names.items() if (n := whole(cost.get(key))) is not None]
    if (seconds := number(cost.get("cpu_seconds"))) is not None:
        rows.append(("processor time", words.duration(seconds)))
    tokens = [cell.tokens for cell in [*found.damage.values(), *found.rescue.values()] if cell.tokens]
    if tokens:
        few = f"{min(tokens):,} to {max(tokens):,}, in the median {median(tokens):,.0f}"
        rows.append(("tokens for each cell", few))
    return [Section(f"What the map cost{of}", [pairs(rows)])] if rows else []


def _rank(value: object) -> str:
    return words.significant(number(value))


def _cells(count: int) -> str:
    return words.count(count, "cell")


def _short(format: str) -> str:
    return words.shortened(format, 20)
