"""What a budget bought for keys and values: bits by layer, and weights and cache together, as sections."""

from subeight.report import kv_figures, kv_map_figures, words
from subeight.report.caches import FULL, NONE, Caches, Granted, Joint, Together, policy_words, short, tokens
from subeight.report.facts import Measure
from subeight.report.markup import Column, Html, Node, code, folded, join, pairs, paragraph, prose, table, tag
from subeight.report.scores import measured
from subeight.report.section import Picture, Section

_BEYOND = 1 << 24  # tokens up to which the record looked for what fits


def bought(found: Caches, of: str) -> list[Section]:
    """What each layer got, and what that loses beside what was expected and beside the other policies."""
    if not found.granted:
        return []
    content: list[Html | Picture] = [*(_said(found, one) for one in found.granted), *_alike(found)]
    if any(one.sides for one in found.granted):
        caption = "What the budget gave to the keys and the values of each layer."
        content.append(Picture(kv_map_figures.strips(found), caption, 560))
    content.append(_beside(found))
    texts = [(one.name, code(one.policy)) for one in found.granted if one.policy]
    if texts:
        content.append(folded("As policies, to be given to --policies", pairs(texts)))
    return [Section(f"What the budget bought{of}", content)]


def joint(found: Caches, of: str) -> list[Section]:
    """Every checkpoint with every policy against one budget of bytes."""
    asked = found.joint
    if asked is None:
        return []
    content: list[Html | Picture] = [paragraph(_best(asked))]
    if any(row.bytes for row in asked.rows):
        caption = "Weights and cache of each combination; what ends left of the line fits, what does not is pale."
        content.append(Picture(kv_figures.joint(asked), caption, 600))
    columns = [
        Column("policy"), Column("weights"), Column("bytes of weights", True), Column("of cache", True),
        Column("together", True), Column("fits"), Column("longest context", True, "tokens of each sequence that fit"),
        Column("KL", True, f"mean nats per token, measured at {tokens(asked.measured_at)}"),
    ]  # fmt: skip
    lines = [_combination(row, row is asked.best) for row in asked.rows]
    content.append(table(columns, lines, ["best" if row is asked.best else None for row in asked.rows]))
    return [Section(f"Weights and cache in one budget{of}", content)]


def _said(found: Caches, one: Granted) -> Html:
    """Measured beside expected."""
    loss = _measured(found, one.name)
    size = "" if one.bits is None else f" takes {words.significant(one.bits)} bits of a number and"
    expected = (
        f"{size} was expected to lose {words.significant(one.expected)}, the sum of what its parts lose alone"
        f" at {tokens(found.mapped_at)}."
    )
    if loss.value is None:
        came = " It was not measured there."
    elif one.expected is not None and one.expected > 0 and loss.value > 0:
        came = f" It loses {words.significant(loss.value)}: {words.significant(loss.value / one.expected)} times that."
    else:
        came = f" It loses {words.significant(loss.value)}."
    return paragraph(code(one.name), expected, came)


def _alike(found: Caches) -> list[Html]:
    """What the other policies lose there."""
    others = [
        f"`{words.shortened(policy, 32)}` ({words.significant(bits)} bits) loses {words.significant(value)}"
        for policy in _others(found)
        if (bits := found.bits_of(policy)) is not None and (value := _measured(found, policy).value) is not None
    ]
    return [paragraph(prose(f"Of the other policies {words.listed(others[:4])}."))] if others else []


def _beside(found: Caches) -> Html:
    columns = [
        Column("policy"), Column("bits of a number", True, "beyond window and sinks"), Column("expected KL", True),
        Column("measured KL", True, f"with full weights at {tokens(found.mapped_at)}"),
    ]  # fmt: skip
    expected = {one.name: one.expected for one in found.granted}
    bits = {one.name: one.bits for one in found.granted}
    lines: list[list[Node]] = [
        [
            code(words.shortened(policy, 40)),
            words.significant(bits.get(policy) or found.bits_of(policy)),
            words.significant(expected.get(policy)),
            measured(_measured(found, policy)),
        ]
        for policy in [*expected, *_others(found)]
    ]
    return table(columns, lines, ["best" if policy in expected else None for policy in expected])


def _others(found: Caches) -> list[str]:
    made = {one.name for one in found.granted}
    return [policy for policy in found.policies if policy != NONE and policy not in made]


def _measured(found: Caches, policy: str) -> Measure:
    cell = found.cell(FULL, policy, found.mapped_at)
    return Measure() if cell is None else cell.kl


def _best(asked: Joint) -> str:
    each = "" if asked.batch is None else f" x {words.count(asked.batch, 'sequence')}"
    budget = f"{words.size(asked.memory)} for {tokens(asked.length)}{each}"
    best = asked.best
    if best is None:
        return f"Nothing that was measured fits {budget}: fewer bits, tokens or sequences would."
    return (
        f"Within {budget}, {short(best.weights)} weights with {policy_words(best.policy)} lose least:"
        f" {words.size(best.bytes)}, KL {words.significant(best.kl)} at {tokens(asked.measured_at)}."
    )


def _combination(row: Together, best: bool) -> list[Node]:
    name = code(words.shortened(row.policy, 40))
    most = "" if row.longest is None or row.longest < _BEYOND else " or more"
    return [
        join([name, " ", tag("span", "best", class_="badge")]) if best else name,
        short(row.weights),
        words.size(row.weight_bytes),
        words.size(row.cache_bytes),
        words.size(row.bytes),
        "yes" if row.fits else "no",
        words.DASH if row.longest is None else f"{row.longest:,}{most}",
        words.significant(row.kl),
    ]
