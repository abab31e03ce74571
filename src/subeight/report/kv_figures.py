"""The figures of `kv`: loss by place, hidden numbers, memory against context, and weights and cache in one budget."""

import math
from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from subeight.report.axes import floor_of, log_axis, log_range
from subeight.report.caches import NONE, Caches, Cell, Held, Joint, Together, short, tokens
from subeight.report.facts import Measure
from subeight.report.figures import PALETTE, layout, plain
from subeight.report.map_figures import HEAT
from subeight.report.words import count, significant, size

QUIET = PALETTE[8]
_DASHES = ("solid", "dot", "dash", "dashdot")
_WRITTEN = 16  # columns of the heat map up to which a square has room for its numbers


def tones(found: Caches) -> dict[str, str]:
    """The colour of each policy, the same in every figure."""
    named = [policy for policy in found.policies if policy != NONE]
    return dict(zip(named, cycle(PALETTE[:8]), strict=False)) | {NONE: QUIET}


def placed(found: Caches) -> list[Cell]:
    """The cells whose loss by place can be drawn, the longest first: the baseline itself loses nothing anywhere."""
    cells = [cell for cell in found.cells if cell.context and any(part.kl > 0 for part in cell.parts)]
    return sorted(cells, key=lambda cell: -(cell.context or 0))


def by_place(found: Caches) -> go.Figure:
    """KL by place in the context: a panel for each checkpoint, a colour for each policy, a dash for each context."""
    cells = placed(found)
    checkpoints = list(dict.fromkeys(cell.weights for cell in cells))
    contexts = list(dict.fromkeys(cell.context for cell in cells if cell.context))
    columns = min(3, len(checkpoints))
    rows = math.ceil(len(checkpoints) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows,
        subplot_titles=[f"{plain(short(name))} weights" for name in checkpoints],
    )  # fmt: skip
    figure.update_layout(layout(140 + 260 * rows), margin={"t": 104}, legend={"y": 1 + 36 / (260 * rows)})
    figure.update_annotations(font={"size": 13})
    floor = floor_of([Measure(part.kl) for cell in cells for part in cell.parts])
    dashes = dict(zip(contexts, cycle(_DASHES), strict=False))
    shown: set[str] = set()
    for cell in cells:
        index = checkpoints.index(cell.weights)
        trace = _line(cell, floor, tones(found)[cell.policy], dashes[cell.context or 0])
        trace.showlegend = cell.policy not in shown
        shown.add(cell.policy)
        figure.add_trace(trace, row=index // columns + 1, col=index % columns + 1)
    for context in contexts if len(contexts) > 1 else ():
        line = {"color": QUIET, "width": 2, "dash": dashes[context]}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=f"of {tokens(context)}", hoverinfo="skip")
    figure.update_xaxes(**_counted(_range([part.middle for cell in cells for part in cell.parts])))
    figure.update_xaxes(title="token of the context", row=rows)
    bounds = log_range([Measure(max(part.kl, floor)) for cell in cells for part in cell.parts], floor)
    figure.update_yaxes(**log_axis(bounds))
    figure.update_yaxes(title="KL (nats per token)", col=1)
    return figure


def hidden(found: Caches) -> go.Figure:
    """Hidden numbers found: depth by context, policies side by side, checkpoints and counts of numbers below another.

    A square is empty where nothing was asked.
    """
    cells = [cell for cell in found.cells if cell.asked and cell.context]
    policies = list(dict.fromkeys(cell.policy for cell in cells))
    contexts = sorted({cell.context for cell in cells if cell.context})
    lines = [
        (weights, numbers)
        for weights in dict.fromkeys(cell.weights for cell in cells)
        for numbers in sorted({asked.count for cell in cells for asked in cell.asked})
    ]
    depths = sorted({asked.depth for cell in cells for asked in cell.asked})
    inner = len(lines) * (24 * len(depths) + 26) - 26
    figure = make_subplots(
        rows=len(lines), cols=len(policies), shared_yaxes=True, shared_xaxes=True,
        vertical_spacing=26 / inner if len(lines) > 1 else 0, horizontal_spacing=0.12 / len(policies),
        subplot_titles=[plain(policy, max(14, 126 // len(policies))) for policy in policies],
    )  # fmt: skip
    figure.update_layout(layout(inner + 186), margin={"t": 124, "b": 62, "l": 170})
    figure.update_annotations(font={"size": 12 if len(policies) < 6 else 11})
    written = len(contexts) * len(policies) <= _WRITTEN
    for row, (weights, numbers) in enumerate(lines, start=1):
        for column, policy in enumerate(policies, start=1):
            mine = [cell for cell in cells if (cell.weights, cell.policy) == (weights, policy)]
            figure.add_trace(_squares(mine, numbers, contexts, depths, written), row=row, col=column)
        named = f"{plain(short(weights), 16)}<br>{count(numbers, 'number')}"
        figure.add_annotation(
            text=named, xref="paper", yref=f"y{(row - 1) * len(policies) + 1} domain".replace("y1 ", "y "), x=0, y=0.5,
            xshift=-58, xanchor="right", align="right", showarrow=False, font={"size": 12},
        )  # fmt: skip
    names = [f"{context:,}" for context in contexts]
    figure.update_xaxes(tickvals=list(range(len(contexts))), ticktext=names, ticks="", showgrid=False)
    figure.update_xaxes(title="context", row=len(lines), col=(len(policies) + 1) // 2)
    figure.update_yaxes(
        tickvals=list(range(len(depths))), ticktext=[f"{depth:.0%}" for depth in depths], ticks="", showgrid=False,
        range=[len(depths) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_layout(coloraxis=shares(1 + 44 / inner))
    return figure


def memory(found: Caches, height: int = 440) -> go.Figure:
    """Bytes of caches against the context, and the weights as level lines.

    Beyond the contexts that the record has, a line goes on to where the cache takes the bytes of each checkpoint.
    """
    figure = go.Figure(layout=layout(height))
    rows = [row for row in found.held if row.bytes]
    where = [at for row in rows for at in [*row.bytes, *(at for _, at, _ in crossings(found, row))]]
    sizes = [*(size for row in rows for size in row.bytes.values()), *found.weights.values()]
    across, up = _range(where), _range(sizes)
    across[1] += 0.2 * (across[1] - across[0])  # for the names of the weights
    for row in rows:
        _caches(figure, found, row, tones(found)[row.policy])
    below, aside = -math.inf, 0
    for name, held in sorted(found.weights.items(), key=lambda pair: pair[1]):
        level = math.log10(held)
        line = {"color": QUIET, "width": 1.4, "dash": "dash"}
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=held, y1=held, line=line)
        aside = aside + 1 if level - below < 0.06 * (up[1] - up[0]) else 0
        figure.add_annotation(
            xref="paper", x=1 - 0.25 * (aside % 4), y=level, xanchor="right", yanchor="bottom", showarrow=False,
            text=f"{plain(short(name), 28)} weights: {size(held)}", font={"size": 12, "color": QUIET},
        )  # fmt: skip
        below = level
    ticks = log_axis(up)
    figure.update_yaxes(title=f"cache of {count(found.batch or 1, 'sequence')}", **ticks)
    figure.update_yaxes(ticktext=[size(tick) for tick in figure.layout.yaxis.tickvals])
    figure.update_xaxes(title="context", **_counted(across))
    return figure


def crossings(found: Caches, row: Held) -> list[tuple[str, int, float]]:
    """Where the cache of a policy takes as many bytes as each checkpoint: its name, the context, the bytes."""
    known = found.weights
    return [(name, at, known[name]) for name, at in row.outweighs.items() if at is not None and name in known]


def joint(found: Joint) -> go.Figure:
    """Weights and cache of each combination as one bar, and the budget as a line; what does not fit is pale."""
    rows = [row for row in found.rows if row.bytes is not None]
    names = [_named(row, row is found.best) for row in rows]
    inner = 30 * len(rows)
    figure = go.Figure(layout=layout(inner + 116))
    for title, colour, of in (("weights", PALETTE[0], "weight_bytes"), ("cache", PALETTE[1], "cache_bytes")):
        held = [getattr(row, of) for row in rows]
        figure.add_bar(
            x=held, y=list(range(len(rows))), orientation="h", name=title,
            marker={"color": colour, "opacity": [1.0 if row.fits else 0.4 for row in rows], "line": {"width": 0}},
            hovertext=[f"{name}<br>{title} {size(each)}" for name, each in zip(names, held, strict=True)],
            hoverinfo="text",
        )  # fmt: skip
    most = max([found.memory or 0, *(row.bytes or 0 for row in rows)], default=1) or 1
    if found.memory is not None:
        line = {"color": PALETTE[4], "width": 2}
        figure.add_shape(type="line", yref="paper", y0=0, y1=1, x0=found.memory, x1=found.memory, line=line)
        right = found.memory > 0.7 * most
        figure.add_annotation(
            x=found.memory, yref="paper", y=1, yanchor="bottom", xanchor="right" if right else "left", showarrow=False,
            text=f"budget: {size(found.memory)}", font={"size": 12, "color": PALETTE[4]},
        )  # fmt: skip
    step = 10 ** math.floor(math.log10(most))
    step = next(part for part in (step / 5, step / 2, step, 2 * step) if most / part <= 6)
    ticks = [number * step for number in range(math.ceil(1.04 * most / step) + 1)]
    figure.update_xaxes(tickvals=ticks, ticktext=[size(tick) for tick in ticks], range=[0, 1.04 * most])
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=names, range=[max(1, len(rows)) - 0.5, -0.5], ticks="", showgrid=False
    )
    figure.update_layout(
        barmode="stack", bargap=0.35, margin={"l": 200, "t": 76, "b": 40},
        legend={"y": 1 + 24 / max(30, inner), "traceorder": "normal"},
    )  # fmt: skip
    return figure


def shares(above: float) -> dict[str, object]:
    """Colours of a share, and their bar above the figure."""
    return {
        "colorscale": [[index / (len(HEAT) - 1), colour] for index, colour in enumerate(HEAT)],
        "cmin": 0,
        "cmax": 1,
        "colorbar": {
            "orientation": "h", "x": 0, "xanchor": "left", "y": above, "yanchor": "bottom", "len": 0.5, "xpad": 0,
            "thickness": 10, "outlinewidth": 0, "tickvals": [0, 0.25, 0.5, 0.75, 1], "tickformat": ".0%",
            "title": {"text": "prompts in which all numbers were found", "side": "top", "font": {"size": 12}},
        },
    }  # fmt: skip


def _line(cell: Cell, floor: float, colour: str, dash: str) -> go.Scatter:
    said = f"<b>{plain(cell.policy)}</b><br>{plain(short(cell.weights))} weights, {tokens(cell.context)}"
    return go.Scatter(
        x=[part.middle for part in cell.parts],
        y=[max(part.kl, floor) for part in cell.parts],
        mode="lines+markers",
        line={"color": colour, "width": 4 if cell.policy == NONE else 2, "dash": dash},  # others lie on this one
        marker={"size": 6, "symbol": ["circle" if part.kl > 0 else "triangle-down-open" for part in cell.parts]},
        name=plain(cell.policy, 32),
        legendgroup=cell.policy,
        hovertext=[
            f"{said}<br>tokens {part.start:,} to {part.stop:,}: KL {significant(part.kl)}" for part in cell.parts
        ],
        hoverinfo="text",
    )


def _squares(
    cells: Sequence[Cell], numbers: int, contexts: Sequence[int], depths: Sequence[float], written: bool
) -> go.Heatmap:
    known = {(asked.depth, cell.context): asked for cell in cells for asked in cell.asked if asked.count == numbers}
    grid = [[known.get((depth, context)) for context in contexts] for depth in depths]
    return go.Heatmap(
        z=[[one.found / one.asked if one else None for one in row] for row in grid],
        text=[[f"{one.found}/{one.asked}" if one else "" for one in row] for row in grid] if written else None,
        texttemplate="%{text}" if written else None,
        textfont={"size": 11},
        hovertext=[
            [
                f"{one.found} of {count(one.asked, 'prompt')} at {one.depth:.0%} of {tokens(context)}" if one else ""
                for one, context in zip(row, contexts, strict=True)
            ]
            for row in grid
        ],
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
    )


def _caches(figure: go.Figure, found: Caches, row: Held, colour: str) -> None:
    """One policy's line, and a diamond wherever it crosses a checkpoint's."""
    crossed = crossings(found, row)
    points = sorted({**row.bytes, **{at: held for _, at, held in crossed}}.items())
    name = plain(row.policy, 32)
    figure.add_scatter(
        x=[at for at, _ in points], y=[held for _, held in points], mode="lines", name=name, legendgroup=row.policy,
        line={"color": colour, "width": 2},
        hovertext=[f"<b>{name}</b><br>{tokens(at)}: {size(held)}" for at, held in points], hoverinfo="text",
    )  # fmt: skip
    figure.add_scatter(
        x=[at for _, at, _ in crossed], y=[held for _, _, held in crossed], mode="markers", showlegend=False,
        legendgroup=row.policy, marker={"size": 11, "color": colour, "symbol": "diamond"},
        hovertext=[f"<b>{name}</b><br>outweighs {plain(short(of))} from {tokens(at)}" for of, at, _ in crossed],
        hoverinfo="text",
    )  # fmt: skip


def _named(row: Together, best: bool) -> str:
    name = f"{plain(short(row.weights), 18)}, {plain(row.policy, 26)}"
    return f"<b>{name}</b>" if best else name


def _counted(bounds: list[float]) -> dict[str, object]:
    """A logarithmic axis of tokens."""
    axis = log_axis(bounds)
    ticks = [tick for tick in axis["tickvals"] if tick >= 1]  # type: ignore[attr-defined]
    return axis | {"tickvals": ticks, "ticktext": [f"{tick:,.0f}" for tick in ticks]}


def _range(values: Sequence[float]) -> list[float]:
    return log_range([Measure(value) for value in values], 0)
