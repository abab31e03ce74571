"""`advise`: what pays on this machine: the advice, its roofs, and every scheme foretold and measured."""

from subeight.records import Record
from subeight.report import facts, speed_figures, words
from subeight.report.markup import Column, Html, Node, bullets, code, join, pairs, paragraph, prose, table, tag
from subeight.report.section import Picture, Section, Tile
from subeight.report.speed import BASE, Advice, Machine, Scheme, advice, step_name

ORDER = 13


def summary(records: list[Record]) -> list[Node]:
    """What was timed, and what to take."""
    lines: list[Node] = []
    for record in records:
        found = advice(record)
        if not found.schemes:
            lines.append("No scheme was timed.")
            continue
        context = "" if found.context is None else f" at {found.context:,} tokens of context"
        goal = f", for {found.goal}" if found.goal else ""
        timed = words.count(len(found.schemes), "scheme was", "schemes were")
        lines.append(paragraph(f"{timed} timed on one real block of the model{context}{goal}."))
        lines += [paragraph(prose(line)) for line in found.sentences[:2]]
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """Of one record: how many times faster than bf16 the fastest scheme is in each step."""
    found = advice(records[0])
    if len(records) != 1 or found.base is None:
        return []
    shown = []
    for batch in [None, *found.batches[:1]]:
        gains = [(gain, scheme) for scheme in found.schemes if (gain := _gain(found, scheme, batch)) is not None]
        if gains:
            gain, scheme = max(gains, key=lambda pair: pair[0])
            against = f"{words.shortened(scheme.name, 24)} against bf16"
            shown.append(Tile(f"× {words.significant(gain)}", step_name(batch), against))
    return shown


def draw(records: list[Record]) -> list[Section]:
    """The advice, the roofline, and the schemes."""
    sections = []
    for record in records:
        found = advice(record)
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [_advice(found, of), *_roofline(found, of), *_schemes(found, of)]
    return sections


def _advice(found: Advice, of: str) -> Section:
    title = f"What pays on this machine{of}"
    content: list[Html | Picture] = [bullets(prose(line) for line in found.sentences)]
    return Section(title, content if found.sentences else [paragraph("The record has no advice.")])


def _roofline(found: Advice, of: str) -> list[Section]:
    content: list[Html | Picture] = []
    if speed_figures.drawn(found):
        caption = (
            "Under the slant reading bounds, under a level roof multiplying does. Open: what the roofline foretells;"
            " filled: measured; one thin line joins the two, and the longer it is, the more is lost to what no roof"
            " shows, calls of kernels among it. Fewer bytes move a scheme to the right, along the slant up. Operations"
            " are those of weights and attention, the same in every scheme; bytes are the weights' and the cache's."
        )
        content.append(Picture(speed_figures.roofline(found), caption, 560))
    if rows := _rates(found.machine):
        content.append(pairs(rows))
    return [Section(f"Roofs of the machine{of}", content)] if content else []


def _rates(machine: Machine) -> list[tuple[Node, Node]]:
    rows: list[tuple[Node, Node]] = []
    if machine.device:
        threads = "" if machine.threads is None else f", {words.count(machine.threads, 'thread')}"
        rows.append(("device", f"{words.shortened(machine.device)}{threads}"))
    if machine.bandwidth is not None:
        rows.append(("memory", f"{words.size(machine.bandwidth)} a second"))
    for name, rate in {"bf16": machine.bf16, "int8": machine.int8}.items():
        if rate is not None:
            rows.append((f"products in {name}", f"{speed_figures.many(rate)} operations a second"))
    if machine.call is not None:
        rows.append(("a call", f"{words.significant(1e6 * machine.call)} µs for a small linear, whatever it computes"))
    return rows


def _schemes(found: Advice, of: str) -> list[Section]:
    if not found.schemes:
        return []
    steps: list[int | None] = [None, *found.batches]
    first = f" at batch {found.batches[0]:,}" if found.batches else ""
    note = "measured; below it, how many times faster than bf16, and what the roofline foretells"
    columns = [
        Column("scheme"),
        Column("weights", True, "bytes of the blocks' linears and of the head, which stays in 16 bits"),
        Column(f"cache{first}", True, "of all sequences at the end of the context"),
        *(Column(step_name(batch), True, note) for batch in steps),
        Column("kernels"),
    ]
    lines: list[list[Node]] = [
        [
            code(words.shortened(scheme.name, 32)),
            words.size(scheme.weight_bytes),
            _cache(scheme),
            *(_times(found, scheme, batch) for batch in steps),
            _kernels(scheme),
        ]
        for scheme in found.schemes
    ]
    return [Section(f"Schemes{of}", [table(columns, lines)])]


def _times(found: Advice, scheme: Scheme, batch: int | None) -> Html:
    step = scheme.step(batch)
    measured, foretold = (None, None) if step is None else (step.measured, step.foretold)
    shown = tag("span", _milliseconds(measured), class_="value")
    gain = _gain(found, scheme, batch)
    below = [] if gain is None or scheme.name == BASE else [f"× {words.significant(gain)}"]
    below += [] if foretold is None else [f"roofline {_milliseconds(foretold)}"]
    return join([shown, *(tag("span", line, class_="interval") for line in below)])


def _cache(scheme: Scheme) -> Html:
    held = sorted(scheme.cache_bytes.items())
    first = words.size(held[0][1]) if held else words.DASH
    rest = [tag("span", f"batch {size:,}: {words.size(each)}", class_="interval") for size, each in held[1:]]
    return join([tag("span", first, class_="value"), *rest])


def _gain(found: Advice, scheme: Scheme, batch: int | None) -> float | None:
    """How many times faster than bf16."""
    mine, theirs = (None if one is None else one.step(batch) for one in (scheme, found.base))
    if mine is None or theirs is None or mine.measured is None or theirs.measured is None:
        return None
    return theirs.measured / mine.measured


def _milliseconds(seconds: float | None) -> str:
    return words.DASH if seconds is None else f"{words.significant(1e3 * seconds)} ms"


def _kernels(scheme: Scheme) -> str:
    if len(set(scheme.kernels.values())) < 2:
        return next(iter(scheme.kernels.values()), words.DASH)
    return ", ".join(f"{rows}: {kernel}" for rows, kernel in scheme.kernels.items())
