"""How candidates are shown, one evaluated or several compared: their table, tail, kinds of text, answers."""

from collections.abc import Sequence

from subeight.report import figures, words
from subeight.report.facts import Candidate, Measure
from subeight.report.markup import Column, Html, Node, code, join, paragraph, table, tag
from subeight.report.section import Picture, Section, Tile


def measured(value: Measure) -> Html:
    """A value with its interval below it."""
    ends = words.interval(value.value, value.low, value.high)
    shown = tag("span", words.significant(value.value), class_="value")
    return join([shown, tag("span", ends, class_="interval")]) if ends else shown


def measured_share(value: Measure) -> Html:
    """A share in percent with its interval below it."""
    shown = tag("span", words.percent(value.value), class_="value")
    ends = words.percent_interval(value.low, value.high)
    return join([shown, tag("span", ends, class_="interval")]) if ends else shown


def table_of(rows: Sequence[Candidate], best: Candidate | None) -> Html:
    """All candidates, a row each, columns without any number left out."""
    columns: list[tuple[Column, list[Node]]] = [
        (Column("recipe"), [_name(row, row is best) for row in rows]),
        (Column("bits / weight", True), [words.significant(row.bits) for row in rows]),
        (Column("size", True), [words.size(row.bytes) for row in rows]),
        (
            Column("KL", True, "mean nats per token, baseline to candidate"),
            [measured(row.kl) for row in rows],
        ),
        (Column("perplexity", True), [measured(row.ppl) for row in rows]),
        (Column("same top token", True), [measured_share(row.top1) for row in rows]),
        (Column("quantize", True), [words.duration(row.quantize_seconds) for row in rows]),
        (Column("evaluate", True), [words.duration(row.evaluate_seconds) for row in rows]),
        (Column("peak memory", True), [words.size(row.peak_bytes) for row in rows]),
    ]
    kept = [(column, cells) for column, cells in columns if not column.numeric or not _empty(cells)]
    lines = list(zip(*(cells for _, cells in kept), strict=True))
    return table([column for column, _ in kept], lines, ["best" if row is best else None for row in rows])


def tiles_of(row: Candidate) -> list[Tile]:
    """The numbers of one candidate that stand out."""
    tiles = []
    if row.bits is not None:
        tiles.append(Tile(words.significant(row.bits), "bits per weight", words.size(row.bytes) + " of linears"))
    if row.kl.value is not None:
        tiles.append(Tile(words.significant(row.kl.value), "nats per token", "KL" + _ends(row.kl)))
    if row.top1.value is not None:
        tiles.append(Tile(words.percent(row.top1.value), "of tokens", "same most likely token"))
    if row.ppl.value is not None:
        against = f"baseline {words.significant(row.ppl_baseline)}" if row.ppl_baseline is not None else ""
        tiles.append(Tile(words.significant(row.ppl.value), against, "perplexity"))
    return tiles


def intro_of(rows: Sequence[Candidate]) -> Html:
    """What the numbers of the table are."""
    base = next((row.ppl_baseline for row in rows if row.ppl_baseline is not None), None)
    also = "" if base is None else f" The baseline's own perplexity on this text is {words.significant(base)}."
    return paragraph(
        "Every row is measured on the same tokens as the baseline; the small numbers are 95 % intervals. KL is the"
        " mean divergence of the next-token probabilities from the baseline's, in nats per token: 0 is the same"
        f" model.{also}"
    )


def sentence_of(row: Candidate) -> str:
    """What quantizing did to the model, in one sentence of plain words."""
    parts = []
    if row.kl.value is not None:
        ends = words.interval(row.kl.value, row.kl.low, row.kl.high)
        known = f" (95 % interval {ends})" if ends else ""
        parts.append(f"moves the model's next-token probabilities by a KL of {words.significant(row.kl.value)}{known}")
    if row.top1.value is not None:
        parts.append(f"keeps the most likely token on {words.percent(row.top1.value)} of tokens")
    if row.ppl.value is not None:
        base = row.ppl_baseline
        from_ = f" from {words.significant(base)}" if base is not None else ""
        parts.append(f"takes perplexity{from_} to {words.significant(row.ppl.value)}")
    return f"It {words.listed(parts)}." if parts else "Nothing of it was measured."


def by_text(rows: Sequence[Candidate], of: str = "") -> list[Section]:
    """KL per category and by position, where they were measured."""
    content: list[Html | Picture] = []
    shown = [row for row in rows if row.categories]
    if shown:
        caption = "Mean KL on each category of text, with 95 % intervals. Lower is closer to the baseline."
        content.append(Picture(figures.kl_by_category(shown), caption))
    placed = [row for row in rows if row.positions]
    if placed:
        caption = "Mean KL by the position of the token in its window: early tokens have less context to lean on."
        content.append(Picture(figures.kl_by_position(placed), caption))
    return [Section(f"By kind of text{of}", content)] if content else []


def tail(rows: Sequence[Candidate], of: str = "") -> list[Section]:
    """What the mean hides: the tail of KL, answers that flipped, texts that came out otherwise."""
    content: list[Html | Picture] = []
    if any(row.kl_p99 is not None or row.kl_max is not None for row in rows):
        columns = [
            Column("recipe"),
            Column("mean KL", True),
            Column("99th percentile", True),
            Column("largest", True),
        ]
        lines = [[_name(row), *(words.significant(v) for v in (row.kl.value, row.kl_p99, row.kl_max))] for row in rows]
        content += [tag("h3", "Worst tokens"), table(columns, lines)]
    if any(row.choices for row in rows):
        content += [tag("h3", "Multiple choice"), _choices([row for row in rows if row.choices])]
    if any(row.generation for row in rows):
        columns = [Column("recipe"), Column("tokens in agreement", True)]
        lines = [[_name(row), measured_share(row.generation)] for row in rows if row.generation]
        content += [tag("h3", "Greedy answers"), table(columns, lines)]
    return [Section(f"What the mean hides{of}", content)] if content else []


def _choices(rows: Sequence[Candidate]) -> Html:
    columns = [
        Column("recipe"),
        Column("questions", True),
        Column("accuracy", True),
        Column("baseline", True),
        Column("answers flipped", True, "right to wrong and wrong to right together"),
        Column("McNemar p", True, "the probability of so lopsided flips by chance"),
    ]
    lines = []
    for row in rows:
        found = row.choices
        assert found is not None
        flips = words.DASH if found.flips is None else f"{found.flips:,}"
        asked = words.DASH if found.questions is None else f"{found.questions:,}"
        shares = (words.percent(found.accuracy), words.percent(found.accuracy_baseline))
        lines.append([_name(row), asked, *shares, flips, words.significant(found.mcnemar_p, 2)])
    return table(columns, lines)


def _name(row: Candidate, best: bool = False) -> Html:
    name = code(words.shortened(row.label, 32))
    return join([name, " ", tag("span", "best", class_="badge")]) if best else name


def _ends(value: Measure) -> str:
    ends = words.interval(value.value, value.low, value.high)
    return f", {ends}" if ends else ""


def _empty(cells: Sequence[Node]) -> bool:
    return all(
        words.DASH in (cell, cell.removeprefix('<span class="value">').removesuffix("</span>")) for cell in cells
    )
