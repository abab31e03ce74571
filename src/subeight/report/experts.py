"""Mixtures of experts: what calibration gave each expert, what each lost, and how many tokens are routed elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from subeight.report import facts, scores, words
from subeight.report.axes import block_axis
from subeight.report.figures import PALETTE, layout, plain
from subeight.report.map_figures import HEAT
from subeight.report.markup import Column, Html, code, folded, join, table, tag
from subeight.report.section import Picture, Section

_FEW = 12
_MANY = 2000


@dataclass(frozen=True)
class Expert:
    """One expert of a record, at its place: the block, and its number in it."""

    name: str
    block: int
    number: int
    row: Mapping[str, Any]

    def value(self, key: str) -> float | None:
        """A number of its row."""
        return facts.number(self.row.get(key))


def experts_of(numbers: Mapping[str, Any]) -> list[Expert]:
    """The experts that a record has rows of, numbered block by block."""
    counts: dict[int, int] = {}
    found = []
    for row in facts.mappings(facts.mapping(numbers.get("experts")).get("rows")):
        block = facts.whole(row.get("block"))
        if block is not None and 0 <= block < 10_000:
            found.append(Expert(facts.text(row.get("expert"), "?"), block, counts.setdefault(block, 0), row))
            counts[block] += 1
    return found


def heat(experts: Sequence[Expert], key: str, title: str) -> go.Figure:
    """A square for each expert, blocks from left to right, on a logarithmic scale; what is 0 stays below it."""
    blocks = max((expert.block for expert in experts), default=-1) + 1
    tall = max((expert.number for expert in experts), default=-1) + 1
    values = {(e.number, e.block): value for e in experts if (value := e.value(key)) is not None}
    named = {(e.number, e.block): e.name for e in experts}
    above = [value for value in values.values() if value > 0]
    floor = math.log10(min(above, default=1)) - 0.3
    height = max(1, tall) * max(9, min(24, 480 // max(1, tall)))
    figure = go.Figure(layout=layout(height + 112))
    cells = [[(number, block) for block in range(blocks)] for number in range(tall)]
    figure.add_heatmap(
        z=[[_logarithm(values.get(cell), floor) for cell in line] for line in cells],
        hovertext=[
            [f"<b>{plain(named.get(cell, ''), 72)}</b><br>{title} {_said(values.get(cell))}" for cell in line]
            for line in cells
        ],
        hoverinfo="text",
        text=[[_said(values.get(cell)) for cell in line] for line in cells] if blocks <= 12 and tall <= 32 else None,
        texttemplate="%{text}" if blocks <= 12 and tall <= 32 else None,
        colorscale=[[at / (len(HEAT) - 1), colour] for at, colour in enumerate(HEAT)],
        colorbar={"title": {"text": title, "side": "right"}, **_ticks(floor, above)},
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(title="block", showgrid=False, **block_axis(blocks, False) | {"range": [-0.5, blocks - 0.5]})
    figure.update_yaxes(title="expert", range=[max(1, tall) - 0.5, -0.5], showgrid=False, ticks="")
    return figure


def _logarithm(value: float | None, floor: float) -> float | None:
    return None if value is None else math.log10(value) if value > 0 else floor


def _said(value: float | None) -> str:
    if value is None:
        return words.DASH
    return f"{value:,.0f}" if value == round(value) else words.significant(value, 2)


def _ticks(floor: float, above: Sequence[float]) -> dict[str, list[Any]]:
    top = math.log10(max(above, default=1))
    powers = range(math.ceil(floor), math.floor(top) + 1)
    ticks = [float(power) for power in powers] if len(powers) > 1 else [floor + 0.3, top]
    return {"tickvals": ticks, "ticktext": [words.significant(10**tick, 2) for tick in ticks]}


def shifts(routing: Sequence[Mapping[str, Any]], height: int = 300) -> go.Figure:
    """The share of tokens whose set of experts is another, by block, with intervals."""
    shown = [(facts.whole(row.get("block")) or 0, facts.measure(row, "changed")) for row in routing]
    shown = [(block, value) for block, value in shown if value.value is not None]
    figure = go.Figure(layout=layout(height))
    figure.add_scatter(
        x=[block for block, _ in shown],
        y=[value.value for _, value in shown],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(v.high if v.high is not None else v.value or 0) - (v.value or 0) for _, v in shown],
            "arrayminus": [(v.value or 0) - (v.low if v.low is not None else v.value or 0) for _, v in shown],
            "thickness": 1.4,
            "width": 4,
        },
        mode="lines+markers",
        line={"color": PALETTE[0], "width": 2},
        hovertemplate="block %{x}<br>%{y:.1%} of tokens<extra></extra>",
    )
    blocks = max((block for block, _ in shown), default=-1) + 1
    figure.update_xaxes(title="block", **block_axis(blocks, False))
    figure.update_yaxes(title="tokens routed elsewhere", tickformat=".0%", rangemode="tozero")
    return figure


def coverage(numbers: Mapping[str, Any], of: str = "") -> list[Section]:
    """What the calibration text gives each expert: a picture, and the least fed ones in a table."""
    experts = experts_of(numbers)
    if not experts:
        return []
    said = facts.mapping(numbers.get("experts"))
    ordered = sorted(experts, key=lambda expert: expert.value("tokens") or 0)
    content: list[Html | Picture] = [tag("p", _fed(said, experts))]
    caption = (
        "Tokens of the calibration text that reach each expert. Dark squares are experts whose codes rest on little:"
        " ask for `per_expert` tokens, out of a pool of text that reaches them."
    )
    content.append(Picture(heat(experts, "tokens", "tokens"), caption))
    content += [tag("h3", "The least fed"), _fed_table(ordered[:_FEW])]
    if len(ordered) > _FEW:
        content.append(folded(f"All {len(ordered):,} experts", _fed_table(ordered[:_MANY])))
    return [Section(f"What calibration gives each expert{of}", content)]


def _fed(said: Mapping[str, Any], experts: Sequence[Expert]) -> str:
    tokens = sorted(expert.value("tokens") or 0 for expert in experts)
    least, whole = facts.whole(said.get("per_expert")), facts.whole(said.get("tokens"))
    opening = f"Of {whole:,} tokens" if whole is not None else "Of the calibration text"
    middle = tokens[len(tokens) // 2]
    line = f"{opening} the least fed of {len(experts):,} experts gets {tokens[0]:,.0f}, the middle one {middle:,.0f}."
    if added := facts.whole(said.get("added")):
        line += f" {words.count(added, 'sequence was', 'sequences were')} added for the experts that were short."
    if least:
        short = facts.mapping(said.get("short"))
        stay = words.count(len(short), "expert stays", "experts stay")
        line += f" Asked for were {least:,} each; " + (f"{stay} under it." if short else "every expert has them.")
    if said.get("forced"):
        line += " Every expert was shown all tokens, whatever the router chose."
    return line


def _fed_table(experts: Sequence[Expert]) -> Html:
    before = any(expert.value("tokens_before") is not None for expert in experts)
    forced = any(expert.value("forced_bias") is not None for expert in experts)
    columns = [
        Column("expert"),
        *([Column("tokens before", True)] if before else []),
        Column("tokens", True),
        Column("of all tokens", True),
        Column("of the routing weight", True),
        *([Column("bias of forcing", True, "of what it was shown to what it is sent; 0 is alike")] if forced else []),
    ]
    lines = []
    for expert in experts:
        counts = [expert.value(key) for key in (("tokens_before", "tokens") if before else ("tokens",))]
        shown = [words.DASH if count is None else f"{count:,.0f}" for count in counts]
        shares = [words.percent(expert.value(key), 2) for key in ("share", "weight")]
        bias = [words.significant(expert.value("forced_bias"), 2)] if forced else []
        lines.append([code(words.shortened(expert.name, 64)), *shown, *shares, *bias])
    return table(columns, lines)


def damage(numbers: Mapping[str, Any], of: str = "") -> list[Section]:
    """What quantizing did inside the mixture: tokens routed elsewhere, and the error of each expert."""
    experts, said = experts_of(numbers), facts.mapping(numbers.get("experts"))
    if not experts:
        return []
    routing = facts.mappings(said.get("routing"))
    content: list[Html | Picture] = [tag("p", part) for part in _sentences(said)]
    if routing:
        caption = (
            "Share of tokens whose set of experts is not the baseline's, with 95 % intervals. It grows with depth,"
            " since each block reads what the blocks before it changed."
        )
        content += [Picture(shifts(routing), caption), folded("Block by block", _routing_table(routing))]
    if any(expert.value("output_error") for expert in experts):
        caption = (
            "Squared error of each expert's output over its square, on the evaluation tokens that the baseline routes"
            " to it, both reading the same input. One bright square in a block is an expert that calibration missed."
        )
        content.append(Picture(heat(experts, "output_error", "error"), caption))
        worst = sorted(experts, key=lambda expert: -(expert.value("output_error") or 0))
        content += [tag("h3", "The worst"), _damage_table(worst[:_FEW])]
    return [Section(f"Inside the experts{of}", content)]


def _sentences(said: Mapping[str, Any]) -> list[Html]:
    found = []
    changed = facts.measure(said, "changed")
    if changed.value is not None:
        ends = words.percent_interval(changed.low, changed.high)
        known = f" ({ends})" if ends else ""
        found.append(join([f"{words.percent(changed.value)} of tokens go to another set of experts{known}."]))
    ratio = facts.number(said.get("worst_over_median"))
    if ratio is not None:
        worst = code(words.shortened(facts.text(said.get("worst")), 64))
        found.append(join(["The worst expert, ", worst, f", has {words.significant(ratio)} times its block's median."]))
    worse = said.get("worse_than_plain")
    if isinstance(worse, list):
        count = words.count(len(worse), "expert loses", "experts lose")
        found.append(join([f"{count} more than plain rounding in the same format would."]))
    return found


def _routing_table(routing: Sequence[Mapping[str, Any]]) -> Html:
    columns = [
        Column("block", True),
        Column("set of experts changed", True),
        Column("experts replaced", True),
        Column("KL of the router", True, "nats per token, baseline to candidate"),
    ]
    lines = [
        [
            facts.text(facts.whole(row.get("block")), words.DASH),
            scores.measured_share(facts.measure(row, "changed")),
            scores.measured_share(facts.measure(row, "replaced")),
            scores.measured(facts.measure(row, "kl")),
        ]
        for row in routing
    ]
    return table(columns, lines)


def _damage_table(experts: Sequence[Expert]) -> Html:
    columns = [
        Column("expert"),
        Column("error", True),
        Column("error of plain rounding", True),
        Column("tokens", True),
        Column("of the routing weight", True),
    ]
    lines = [
        [
            code(words.shortened(expert.name, 64)),
            words.significant(expert.value("output_error")),
            words.significant(expert.value("plain_error")),
            f"{expert.value('tokens') or 0:,.0f}",
            words.percent(expert.value("weight"), 2),
        ]
        for expert in experts
    ]
    return table(columns, lines)
