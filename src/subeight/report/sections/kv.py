"""`kv`: what keys and values in few bits cost: findings, cells, places, hidden numbers, memory, what a budget buys."""

from subeight.records import Record
from subeight.report import caches, facts, kv_budget, kv_figures, kv_map_figures, scores, words
from subeight.report.caches import FULL, NONE, Caches, Cell, policy_words, short, tokens
from subeight.report.facts import Measure, text
from subeight.report.markup import Column, Html, Node, bullets, code, folded, join, paragraph, prose, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 12
_NAMED, _SHOWN, _FEW, _LISTED = 3, 8, 12, 2000


def summary(records: list[Record]) -> list[Node]:
    """What was measured against what, and the plainest findings; what to take within a budget comes first."""
    lines: list[Node] = []
    for record in records:
        found = caches.caches(record)
        if not found.cells:
            lines.append("No policy was measured.")
            continue
        lines.append(paragraph(_opening(found)))
        said = found.findings
        ordered = [*said[-1:], *said[:-1]] if found.joint is not None else list(said)
        lines += [paragraph(prose(line)) for line in ordered[:_NAMED]]
        if len(ordered) > _NAMED:
            more = words.count(len(ordered) - _NAMED, "more finding stands", "more findings stand")
            lines.append(paragraph(f"{more} below."))
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """Of one record: the combination that fits a budget best, or what the smallest cache takes and loses."""
    found = caches.caches(records[0])
    if len(records) != 1:
        return []
    if found.joint is not None and (best := found.joint.best) is not None:
        named = f"{short(best.weights)} weights with {policy_words(best.policy, 24)}"
        budget = f"of {words.size(found.joint.memory)}"
        return [
            Tile(words.size(best.bytes), budget, named),
            Tile(words.significant(best.kl), "nats per token", "KL of these"),
            Tile(words.DASH if best.longest is None else f"{best.longest:,}", "tokens", "longest context that fits"),
        ]
    last = [cell for cell in found.cells if (cell.weights, cell.context) == (FULL, max(found.contexts, default=None))]
    cells = {cell.policy: cell for cell in last if cell.cache is not None}
    if NONE not in cells or len(cells) < 2:
        return []
    small = min(cells.values(), key=lambda cell: cell.cache or 0)
    named, whole = words.shortened(small.policy, 28), words.size(cells[NONE].cache)
    shown = [
        Tile(words.size(small.cache), f"of {whole}", f"cache of {named} at {tokens(small.context)}"),
        Tile(words.significant(small.kl.value), "nats per token", f"KL of {named}"),
    ]
    if small.share.value is not None:
        shown.append(Tile(words.percent(small.share.value, 0), "found", "hidden numbers by it"))
    return shown


def draw(records: list[Record]) -> list[Section]:
    """The findings and the cells, what averages hide, and memory; then what a map and a budget add."""
    sections = []
    for record in records:
        found = caches.caches(record)
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        sections += [_cells(found, of), *_places(found, of), *_hidden(found, of), *_memory(found, of)]
        sections += [*_layers(found, of), *kv_budget.bought(found, of), *kv_budget.joint(found, of)]
        sections += _serving(found, of)
    return sections


def _opening(found: Caches) -> str:
    policies = words.count(sum(policy != NONE for policy in found.policies), "policy was", "policies were")
    contexts = words.listed([f"{context:,}" for context in found.contexts]) or "unknown contexts of"
    weights = words.listed([f"{short(name)} weights" for name in found.checkpoints])
    return (
        f"For keys and values {policies} measured at {contexts} tokens, with {weights}, against the full model with"
        " full keys and values."
    )


def _cells(found: Caches, of: str) -> Section:
    title = f"Keys and values in few bits{of}"
    if not found.cells:
        return Section(title, [paragraph("No policy was measured.")])
    content: list[Html | Picture] = [bullets(prose(line) for line in found.findings[:_SHOWN])]
    if rest := found.findings[_SHOWN:]:
        content.append(folded(f"{len(rest):,} more", bullets(prose(line) for line in rest)))
    content.append(
        paragraph(
            "Every row reads the same text by the same chunks and is compared with the full model with full keys and"
            " values. Small numbers are 95 % intervals; the cache is that of one sequence."
        )
    )
    return Section(title, [*content, _table(found)])


def _table(found: Caches) -> Html:
    columns = [
        Column("policy"), Column("weights"), Column("context", True), Column("KL", True, "mean nats per token"),
        Column("perplexity", True), Column("cache", True, "bytes that it held at the end of the context"),
        Column("numbers found", True, "prompts in which all hidden numbers were found"),
        Column("agreement", True, "greedy tokens up to the first difference, as a share of those written"),
    ]  # fmt: skip
    lines = [_row(cell) for cell in found.cells]
    if len(lines) <= 2 * _FEW:
        return table(columns, lines)
    longest = max(found.contexts, default=None)
    shown = [_row(cell) for cell in found.cells if cell.context == longest][: 2 * _FEW]
    return join([table(columns, shown), folded(f"All {len(lines):,}", table(columns, lines[:_LISTED]))])


def _row(cell: Cell) -> list[Node]:
    return [
        code(words.shortened(cell.policy, 40)),
        short(cell.weights),
        words.DASH if cell.context is None else f"{cell.context:,}",
        scores.measured(cell.kl) if cell.kl.value else words.significant(cell.kl.value),
        scores.measured(cell.ppl),
        words.size(cell.cache),
        scores.measured_share(cell.share),
        words.percent(cell.agreement),
    ]


def _places(found: Caches, of: str) -> list[Section]:
    if not kv_figures.placed(found):
        return []
    caption = (
        "Mean KL in each quarter of the context, on logarithmic axes. A line that climbs to the right loses more the"
        " longer the context is: what an average over a short one does not show."
    )
    return [Section(f"Loss by place in the context{of}", [Picture(kv_figures.by_place(found), caption, 560)])]


def _hidden(found: Caches, of: str) -> list[Section]:
    if not any(cell.asked and cell.context for cell in found.cells):
        return []
    caption = (
        "Numbers hidden in a long text, asked for at its end. Across: the context in tokens; down: how deep in it the"
        " numbers stand, the beginning on top. In each square: prompts in which every number came back, of those that"
        " were asked. One number is hidden alone or four at once. Where full keys and values fail with full weights,"
        " a policy's failure says nothing about it."
    )
    return [Section(f"Hidden numbers{of}", [Picture(kv_figures.hidden(found), caption, 720)])]


def _memory(found: Caches, of: str) -> list[Section]:
    rows = [row for row in found.held if row.bytes]
    if not rows:
        return []
    contexts = sorted({context for row in rows for context in row.bytes})
    caption = (
        "The cache grows with the context, the weights (dashed) do not. Diamonds: from here a cache takes more bytes"
        " than the weights. The latest and the first tokens stay in full precision, so short contexts save less than"
        " the bits say."
    )
    columns = [
        Column("policy"), Column("bits of keys", True, "stored bits of a number beyond window and sinks"),
        Column("bits of values", True), *(Column(f"at {context:,}", True) for context in contexts),
        *(Column(f"outweighs {short(name)}", True, "tokens from which the cache is larger") for name in found.weights),
    ]  # fmt: skip
    lines: list[list[Node]] = [
        [
            code(words.shortened(row.policy, 40)), words.significant(row.keys), words.significant(row.values),
            *(words.size(row.bytes.get(context)) for context in contexts),
            *(_from(row, name) for name in found.weights),
        ]
        for row in rows
    ]  # fmt: skip
    content: list[Html | Picture] = [Picture(kv_figures.memory(found), caption, 560), table(columns, lines)]
    return [Section(f"Memory against context{of}", content)]


def _from(row: caches.Held, name: str) -> str:
    at = row.outweighs.get(name)
    return words.DASH if at is None else f"{at:,}"


def _layers(found: Caches, of: str) -> list[Section]:
    if not found.alone:
        return []
    caption = (
        f"Each square is the keys or the values of one layer, rounded alone, everything else full: the brighter, the"
        f" more it loses at {tokens(found.mapped_at)}. Colours are logarithmic; squares that are missing were not"
        " measured."
    )
    losses: dict[tuple[int, str], dict[str, Measure]] = {}
    for one in found.alone:
        losses.setdefault((one.layer, one.side), {})[one.format] = one.kl
    ranked = sorted(losses.items(), key=lambda pair: -max(loss.value or 0 for loss in pair[1].values()))
    formats = list(dict.fromkeys(one.format for one in found.alone))
    columns = [Column("rounded alone"), *(Column(format, True) for format in formats)]
    lines = [
        [f"{side} of layer {layer}", *(scores.measured(mine.get(format, Measure())) for format in formats)]
        for (layer, side), mine in ranked
    ]
    content: list[Html | Picture] = [Picture(kv_map_figures.layers(found), caption, 560)]
    content += [tag("h3", "The most sensitive"), table(columns, lines[:_FEW])]
    if len(lines) > _FEW:
        content.append(folded(f"All {len(lines):,}", table(columns, lines[:_LISTED])))
    return [Section(f"Which layers need the bits{of}", content)]


def _serving(found: Caches, of: str) -> list[Section]:
    if not found.serving:
        return []
    columns = [Column("policy"), Column("engine"), Column("flags"), Column("what it does otherwise")]
    lines = [
        [
            code(words.shortened(policy, 40)),
            text(flags.get("engine"), words.DASH),
            code(text(flags.get("flags")), "flags"),
            text(flags.get("differs"), words.DASH),
        ]
        for policy, flags in found.serving
    ]  # fmt: skip
    intro = "The nearest flags of each engine, by its documentation: none was run here."
    return [Section(f"How engines are told{of}", [paragraph(intro), table(columns, lines)])]
