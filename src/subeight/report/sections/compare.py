"""`compare`: recipes on one model side by side. The best row, the table of methods, size against KL."""

from subeight.records import Record
from subeight.report import facts, figures, scores, words
from subeight.report.markup import Column, Html, Node, code, join, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 10


def summary(records: list[Record]) -> list[Node]:
    """What was tried, what came out best, and what it costs."""
    lines: list[Node] = []
    for record in records:
        rows = facts.candidates(record)
        tokens = next((f" on {row.tokens:,} tokens" for row in rows if row.tokens), "")
        tried = words.count(len(rows), "recipe was", "recipes were")
        lines.append(f"{tried} tried, and each was measured against the exact full-precision model{tokens}.")
        best = facts.best(record, rows)
        if best is not None:
            opening = join(["The best of them is ", code(best.label), f": {_size(best)}. "])
            lines.append(join([opening, scores.sentence_of(best)]))
            lines += _cost(best)
        if why := facts.text(record.numbers.get("why")):
            lines.append(why)
        lines += facts.strategies(record)
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """The numbers of the best row."""
    best = facts.best(records[0], facts.candidates(records[0]))
    return scores.tiles_of(best) if best is not None else []


def draw(records: list[Record]) -> list[Section]:
    """The methods, the picture of size against loss, the kinds of text, and the tail."""
    found = []
    for record in records:
        rows = facts.candidates(record)
        best = facts.best(record, rows)
        found += [
            _methods(record, rows, best),
            *_kinds(record),
            *_trade(rows, best),
            *scores.by_text(rows),
            *scores.tail(rows),
        ]
    return found


def _methods(record: Record, rows: list[facts.Candidate], best: facts.Candidate | None) -> Section:
    content: list[Html | Picture] = [scores.intro_of(rows), scores.table_of(rows, best)]
    pairs = facts.compared_pairs(record)
    if pairs:
        columns = [
            Column("pair"),
            Column("difference in KL", True, "of the first to the second: below zero, the first is better"),
            Column("p", True, "of no difference, by document, corrected for all pairs (Holm)"),
            Column("only the first", True, "tokens on which just the first has the baseline's first choice"),
            Column("only the second", True, "tokens on which just the second has it"),
            Column("verdict"),
        ]
        lines = [
            [
                join([code(pair.a), " against ", code(pair.b)]),
                scores.measured(pair.difference),
                words.significant(pair.p),
                _count(pair.only_a),
                _count(pair.only_b),
                pair.verdict,
            ]
            for pair in pairs
        ]
        content += [tag("h3", "Pair by pair, on the same text"), table(columns, lines)]
    return Section("Methods", content)


def _kinds(record: Record) -> list[Section]:
    """One method may win on code and lose on German: each kind of text by itself."""
    kinds = facts.by_kind(record)
    if not kinds:
        return []
    recipes = list(kinds[0].kl)
    columns = [Column("kind of text"), *(Column(name, True) for name in recipes), Column("best there")]
    lines: list[list[Node]] = [
        [kind.name, *(words.significant(kind.kl.get(name)) for name in recipes), kind.best or "not told apart"]
        for kind in kinds
    ]
    note = "KL to the baseline. The best of a kind is named only where a corrected p-value sets it apart from the rest."
    return [Section("Best by kind of text", [tag("p", note), table(columns, lines)])]


def _trade(rows: list[facts.Candidate], best: facts.Candidate | None) -> list[Section]:
    if not any(row.bits is not None and row.kl.value is not None for row in rows):
        return []
    caption = (
        "Size against loss, on a logarithmic axis: down is closer to the baseline, left is smaller. Bars are"
        " 95 % intervals; the star is the best row. Bits count scales, zero points and exceptions."
    )
    return [Section("Size against KL", [Picture(figures.size_against_kl(rows, best), caption)])]


def _count(tokens: int | None) -> str:
    return "" if tokens is None else f"{tokens:,}"


def _size(row: facts.Candidate) -> str:
    return f"{words.significant(row.bits)} bits per weight, {words.size(row.bytes)}"


def _cost(row: facts.Candidate) -> list[Node]:
    parts = []
    if row.quantize_seconds is not None:
        parts.append(f"{words.duration(row.quantize_seconds)} to quantize")
    if row.evaluate_seconds is not None:
        parts.append(f"{words.duration(row.evaluate_seconds)} to evaluate")
    memory = f", with at most {words.size(row.peak_bytes)} of memory" if row.peak_bytes else ""
    return [f"It took {words.listed(parts)}{memory}."] if parts else []
