"""`train qat`: what training through the rounding gained over the post-training result, and what it took."""

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean
from typing import Any

import plotly.graph_objects as go

from subeight.records import Record
from subeight.report import facts, words
from subeight.report.facts import mapping, number
from subeight.report.figures import PALETTE, layout
from subeight.report.markup import Column, Html, Node, code, join, pairs, paragraph, table
from subeight.report.section import Picture, Section, Tile

ORDER = 9


def summary(records: list[Record]) -> list[Node]:
    """One sentence each: the loss before and after, at the same bits."""
    return [paragraph(_sentence(record)) for record in records]


def tiles(records: list[Record]) -> list[Tile]:
    """Of one record: the share of the loss that is gone, its KL, and the time."""
    if len(records) != 1:
        return []
    gain, kl = facts.measure(records[0].numbers, "gain"), facts.measure(records[0].numbers, "kl")
    seconds = number(mapping(records[0].numbers.get("training")).get("seconds"))
    return [
        Tile(words.percent(gain.value, 0), words.percent_interval(gain.low, gain.high, 0), "of the loss gone"),
        Tile(words.significant(kl.value), words.interval(kl.value, kl.low, kl.high), "KL to the baseline"),
        Tile(words.duration(seconds), "", "trained"),
    ]


def draw(records: list[Record]) -> list[Section]:
    """The way there, and what moved."""
    sections = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [_way(record, of), _moved(record, of)]
    return sections


def _way(record: Record, of: str) -> Section:
    training = mapping(record.numbers.get("training"))
    points = [(number(step), number(loss)) for step, loss in training.get("curve") or []]
    known = [(step, loss) for step, loss in points if step is not None and loss is not None]
    figure = go.Figure(layout=layout(320))
    figure.add_scatter(
        x=[step for step, _ in known],
        y=[loss for _, loss in known],
        mode="lines+markers",
        line={"color": PALETTE[0]},
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="KL on held-out sequences", rangemode="tozero")
    predicted = mapping(training.get("predicted"))
    rows: list[tuple[Node, Node]] = [
        *_losses(training),
        ("predicted time", words.duration(number(predicted.get("seconds")))),
        ("time it took", words.duration(number(training.get("seconds")))),
        (
            "codes that so much text can place within a quarter of one",
            words.percent(number(predicted.get("decided")), 2),
        ),
        ("bits per weight, as before", words.significant(number(record.numbers.get("bits_per_weight")))),
    ]
    caption = (
        "The loss on sequences that nothing was learned from, end to end; the least of them is kept, or the start."
    )
    content: list[Html | Picture] = [Picture(figure, caption), pairs(rows)] if known else [pairs(rows)]
    return Section(f"Training{of}", content)


def _losses(training: Mapping[str, Any]) -> list[tuple[Node, Node]]:
    before, after = (words.significant(number(training.get(name))) for name in ("loss_before", "loss_after"))
    start = number(training.get("loss_start"))  # told where blocks were tuned
    if start is None:
        return [("before, held out", before), ("after", after)]
    tuned = ("after blocks were tuned one by one", before)
    return [("before, held out", words.significant(start)), tuned, ("after", after)]


def _moved(record: Record, of: str) -> Section:
    """The share of codes that turned, by kind of linear."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, value in mapping(mapping(record.numbers.get("training")).get("turned")).items():
        if (share := number(value)) is not None:
            kinds[str(name).rpartition(".")[2]].append(share)
    if not kinds:
        return Section(f"What moved{of}", [paragraph("No code was trained.")])
    columns = [Column("linear"), Column("trained", True), Column("codes turned", True), Column("at most", True)]
    lines = [
        [code(kind), f"{len(shares):,}", words.percent(mean(shares), 2), words.percent(max(shares), 2)]
        for kind, shares in kinds.items()
    ]
    return Section(f"What moved{of}", [table(columns, lines)])


def _sentence(record: Record) -> Node:
    numbers = record.numbers
    before, after = (words.significant(number(numbers.get(name))) for name in ("kl_start", "kl"))
    gain = facts.measure(numbers, "gain")
    share = f"{words.percent(gain.value, 0)} (95 % {words.percent_interval(gain.low, gain.high, 0)})"
    return join(
        [
            code(facts.label_of(record)),
            f": KL {before} as quantized, {after} as trained, {share} less at the same bits.",
        ]
    )
