"""`bench`: tokens per second of a checkpoint on its codes, beside the same weights dequantized."""

from collections import Counter
from typing import Any

from subeight.records import Record
from subeight.report import facts, speed_figures, words
from subeight.report.facts import mapping, number, text, whole
from subeight.report.markup import Column, Html, Node, code, folded, join, pairs, paragraph, table, tag
from subeight.report.section import Picture, Section, Tile
from subeight.report.speed import PACKED, PLAIN, Bench, Timing, benches

ORDER = 14
_LISTED = 2000


def summary(records: list[Record]) -> list[Node]:
    """Tokens per second at the smallest batch and the largest, and how that compares."""
    lines: list[Node] = []
    for record in records:
        rows = benches(record)
        ends = [row for row in (rows[:1] + rows[1:][-1:]) if row.timings[PACKED, "decode"].rate.value is not None]
        lines += [join([code(words.shortened(facts.label_of(record), 32)), f": {_sentence(row)}"]) for row in ends]
    return [paragraph(line) for line in lines] or ["Nothing was timed."]


def tiles(records: list[Record]) -> list[Tile]:
    """Of one record: how many times faster it reads and writes at its first batch, and its bytes."""
    if len(records) != 1:
        return []
    shown = []
    for row in benches(records[0])[:1]:
        for step, name in (("decode", "tokens written per second"), ("prefill", "tokens read per second")):
            rate, ratio = row.timings[PACKED, step].rate.value, row.ratio[step]
            if rate is not None:
                times = "" if ratio is None else f"× {words.significant(ratio)} dequantized"
                shown.append(Tile(words.significant(rate), times, name))
    held, plain = (number(records[0].numbers.get(name)) for name in ("weight_bytes", "dequantized_bytes"))
    if held is not None:
        shown.append(
            Tile(words.size(held), "" if plain is None else f"of {words.size(plain)}", "weights as they are held")
        )
    return shown


def draw(records: list[Record]) -> list[Section]:
    """The rates, and what runs."""
    sections = []
    for record in records:
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [_rates(benches(record), of), *_runs(record, of)]
    return sections


def _rates(rows: list[Bench], of: str) -> Section:
    title = f"Tokens per second{of}"
    if not rows:
        return Section(title, [paragraph("Nothing was timed.")])
    content: list[Html | Picture] = []
    if any(timing.rate.value for row in rows for timing in row.timings.values()):
        prompt = next((f"{row.prompt:,} tokens" for row in rows if row.prompt), "the prompt")
        caption = (
            f"Left: reading {prompt} of each sequence; right: writing, one token of each at a time. Bars are medians,"
            " the thin lines the quarters of the samples; × is how many times faster the packed weights are. Both ran"
            " in turn, in one process."
        )
        content.append(Picture(speed_figures.rates(rows), caption, 520))
    columns = [
        Column("batch", True), Column("weights"), Column("read per second", True, "tokens; below, by quarters"),
        Column("prefill", True), Column("written per second", True, "tokens; below, by quarters"),
        Column("a token of all", True), Column("× reading", True), Column("× writing", True),
    ]  # fmt: skip
    lines = [_line(row, model) for row in rows for model in (PACKED, PLAIN)]
    return Section(title, [*content, table(columns, lines)])


def _line(row: Bench, model: str) -> list[Node]:
    read, written = row.timings[model, "prefill"], row.timings[model, "decode"]
    ratios = [row.ratio[step] if model == PACKED else None for step in ("prefill", "decode")]
    return [
        words.DASH if row.batch is None else f"{row.batch:,}",
        model,
        _rate(read),
        _seconds(read),
        _rate(written),
        _seconds(written),
        *(words.significant(ratio) if model == PACKED else "" for ratio in ratios),
    ]


def _rate(timing: Timing) -> Html:
    """Whole numbers and one decimal are enough of a time that varies by percents."""
    rate = timing.rate
    shown = tag("span", words.significant(rate.value), class_="value")
    ends = words.interval(rate.value, rate.low, rate.high)
    return join([shown, tag("span", ends, class_="interval")]) if ends else shown


def _seconds(timing: Timing) -> str:
    if timing.seconds is None:
        return words.DASH
    return f"{words.significant(1e3 * timing.seconds)} ms" if timing.seconds < 1 else f"{timing.seconds:.2f} s"


def _runs(record: Record, of: str) -> list[Section]:
    """Bytes, the kernels of one row, and the quantized linears that stay dense."""
    numbers = record.numbers
    rows: list[tuple[Node, Node]] = []
    for name, key in (("packed weights", "weight_bytes"), ("dequantized", "dequantized_bytes")):
        if (size := number(numbers.get(key))) is not None:
            rows.append((name, words.size(size)))
    for kernel, count in mapping(numbers.get("kernels")).items():
        linears = words.DASH if (found := whole(count)) is None else words.count(found, "linear")
        rows.append((join(["kernel ", code(words.shortened(text(kernel), 40))]), linears))
    content: list[Html | Picture] = [pairs(rows)] if rows else []
    return [Section(f"What runs{of}", [*content, *_dense(mapping(numbers.get("dense")))])] if rows else []


def _dense(dense: Any) -> list[Html]:
    """Linears by the reason why they stay dense, as the record's warnings count them; each to unfold."""
    if not dense:
        return [paragraph("No quantized linear stays dense.")]
    reasons = Counter(text(why).replace(text(name), "it") for name, why in dense.items())
    lines = [[words.count(n, "linear"), why] for why, n in reasons.most_common()]
    counted = table([Column("stays dense"), Column("why")], lines)
    each = [[code(words.shortened(text(name), 72)), text(why)] for name, why in list(dense.items())[:_LISTED]]
    return [counted, folded(f"Every one ({len(dense):,})", table([Column("linear"), Column("why")], each))]


def _sentence(row: Bench) -> str:
    parts = []
    for step, does in (("prefill", "it reads"), ("decode", "writes")):
        rate, ratio = row.timings[PACKED, step].rate.value, row.ratio[step]
        times = "" if ratio is None else f", {words.significant(ratio)} times what its dequantized weights do"
        parts.append(f"{does} {words.significant(rate)} tokens per second{times}")
    where = "" if row.batch is None else f"at batch {row.batch:,} "
    return f"{where}{', and '.join(parts)}."
