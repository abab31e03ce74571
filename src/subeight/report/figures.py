"""From facts to Plotly figures. Colours of text and grid are left to the page, which may be light or dark."""

import html
import math
from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from subeight.report.axes import block_axis, floor_of, log_axis, log_errors, log_range, offsets, place
from subeight.report.facts import Candidate, Layer, Measure
from subeight.report.words import interval, percent, shortened, significant, size

# Middle tones: each reads on white and on near-black.
PALETTE = ("#3f83d1", "#d1771f", "#2f9a62", "#9468cc", "#d24f55", "#1f9c9c", "#a97b50", "#cf64a0", "#7d8590")
_BASE = {
    "template": "none",
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
    "margin": {"l": 64, "r": 24, "t": 16, "b": 52},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "colorway": list(PALETTE),
    "hoverlabel": {"align": "left"},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
}


def plain(text: str, limit: int = 48) -> str:
    """Text of a model for Plotly, which reads a little HTML in its labels: shortened and escaped."""
    return html.escape(shortened(text, limit), quote=False)


def size_against_kl(rows: Sequence[Candidate], best: Candidate | None, height: int = 420) -> go.Figure:
    """Every candidate by its bits per weight and its KL; down and to the left is better."""
    rows = [row for row in rows if row.bits is not None and row.kl.value is not None]
    floor = floor_of([row.kl for row in rows])
    bounds = log_range([row.kl for row in rows], floor)
    figure = go.Figure(layout=layout(height))
    for index, (row, colour) in enumerate(zip(rows, cycle(PALETTE), strict=False)):
        figure.add_scatter(
            x=[row.bits],
            y=[max(row.kl.value or 0, floor)],
            error_y=log_errors([row.kl], floor, colour),
            mode="markers",
            marker={
                "size": 15 if row is best else 10,
                "color": colour,
                "symbol": "star" if row is best else "circle",
                "line": {"width": 0},
            },
            name=plain(row.label),
            hovertemplate=_candidate_hover(row),
            showlegend=False,
            legendrank=index,
        )
    per_unit = (height - 68) / (bounds[1] - bounds[0])
    heights = [math.log10(max(row.kl.value or 0, floor)) * per_unit for row in rows]
    for row, colour, shift in zip(rows, cycle(PALETTE), _shifts(rows, heights), strict=False):
        figure.add_annotation(
            x=row.bits,
            y=math.log10(max(row.kl.value or 0, floor)),
            text=plain(row.label, 28),
            font={"color": colour, "size": 12},
            showarrow=abs(shift) > 3,
            arrowcolor=colour,
            arrowwidth=1,
            arrowhead=0,
            ax=26,
            ay=-shift,
            xshift=0 if abs(shift) > 3 else 12,
            xanchor="left",
            align="left",
        )
    bits = [row.bits or 0 for row in rows] or [4]
    pad = max(0.12, 0.08 * (max(bits) - min(bits)))
    room = max(0.35, 0.22 * (max(bits) - min(bits) + 2 * pad))  # for the labels on the right
    figure.update_xaxes(title="bits per weight", range=[min(bits) - pad, max(bits) + room])
    figure.update_yaxes(title="KL to the baseline (nats per token)", **log_axis(bounds))
    return figure


def kl_by_category(rows: Sequence[Candidate], height: int = 360) -> go.Figure:
    """KL of every category of text, with intervals, one colour per candidate."""
    names = list(dict.fromkeys(name for row in rows for name in row.categories))
    measures = [value for row in rows for value in row.categories.values()]
    floor = floor_of(measures)
    figure = go.Figure(layout=layout(height))
    for row, colour, offset in zip(rows, cycle(PALETTE), offsets(len(rows)), strict=False):
        shown = [(index, row.categories[name]) for index, name in enumerate(names) if name in row.categories]
        figure.add_scatter(
            x=[index + offset for index, _ in shown],
            y=[max(value.value or 0, floor) for _, value in shown],
            error_y=log_errors([value for _, value in shown], floor, colour),
            mode="markers",
            marker={"size": 9, "color": colour},
            name=plain(row.label, 28),
            customdata=[[plain(names[index]), said(value)] for index, value in shown],
            hovertemplate="<b>%{customdata[0]}</b><br>KL %{customdata[1]}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name, 18) for name in names],
        range=[-0.5, max(1, len(names)) - 0.5],
        showgrid=False,
    )
    figure.update_yaxes(title="KL (nats per token)", **log_axis(log_range(measures, floor)))
    figure.update_layout(showlegend=len(rows) > 1)
    return figure


def kl_by_position(rows: Sequence[Candidate], height: int = 320) -> go.Figure:
    """KL by the position of the token in its window."""
    figure = go.Figure(layout=layout(height))
    for row, colour in zip(rows, cycle(PALETTE), strict=False):
        figure.add_scatter(
            x=[(start + stop) / 2 for start, stop, _ in row.positions],
            y=[kl for _, _, kl in row.positions],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 6},
            name=plain(row.label, 28),
            customdata=[[start, stop] for start, stop, _ in row.positions],
            hovertemplate="positions %{customdata[0]} to %{customdata[1]}<br>"
            "KL %{y:.3g}<extra>%{fullData.name}</extra>",
        )
    values = [Measure(kl) for row in rows for _, _, kl in row.positions if kl > 0]
    edges = [Measure((start + stop) / 2) for row in rows for start, stop, _ in row.positions]
    figure.update_xaxes(title="position of the token", **log_axis(log_range(edges, 0)))
    figure.update_yaxes(title="KL (nats per token)", **log_axis(log_range(values, 0)))
    figure.update_layout(showlegend=len(rows) > 1)
    return figure


def by_layer(points: Sequence[Layer], title: str, height: int = 380) -> go.Figure:
    """One value of every linear by block, a line for each role; what stands in no block comes at the end."""
    figure = go.Figure(layout=layout(height))
    outside = max((point.block for point in points if point.block is not None), default=-1) + 1
    for role, colour in zip(dict.fromkeys(point.role for point in points), cycle(PALETTE), strict=False):
        mine = sorted((p for p in points if p.role == role), key=lambda p: place(p, outside))
        repeated = len({p.block for p in mine}) < len(mine)
        figure.add_scatter(
            x=[place(p, outside) for p in mine],
            y=[p.value for p in mine],
            mode="markers" if repeated or len(mine) == 1 else "lines+markers",
            line={"color": colour, "width": 1.4},
            marker={"size": 6, "color": colour},
            name=plain(role, 24),
            customdata=[[plain(p.name, 72), plain(p.note, 96)] for p in mine],
            hovertemplate="<b>%{customdata[0]}</b><br>%{y:.3g}<br>%{customdata[1]}<extra></extra>",
        )
    figure.update_xaxes(title="block", **block_axis(outside, any(p.block is None for p in points)))
    bounds = log_range([Measure(point.value) for point in points], 0)
    figure.update_yaxes(title=title, **log_axis(bounds))
    return figure


def error_shares(shares: dict[str, dict[str, list[Layer]]], height: int = 380) -> go.Figure:
    """Which share of the rounding error the largest values cause: by format, size of the tip, and role."""
    formats = list(shares)
    figure = make_subplots(
        rows=1, cols=max(1, len(formats)), shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[plain(name) for name in formats],
    )  # fmt: skip
    figure.update_layout(layout(height), boxmode="group", boxgap=0.25, boxgroupgap=0.15)
    for column, name in enumerate(formats, start=1):
        for (top, points), colour in zip(shares[name].items(), cycle(PALETTE), strict=False):
            figure.add_box(
                x=[plain(point.role, 24) for point in points],
                y=[point.value for point in points],
                name=plain(_top_words(top)),
                legendgroup=top,
                showlegend=column == 1,
                marker={"color": colour, "size": 4},
                line={"width": 1.4},
                customdata=[[plain(point.name, 72)] for point in points],
                hovertemplate="<b>%{customdata[0]}</b><br>%{y:.1%}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    figure.update_yaxes(title="share of the rounding error", col=1)
    figure.update_layout(margin={"t": 64}, legend={"y": 1.1})
    return figure


def input_extremes(groups: dict[str, list[Layer]], height: int = 380) -> go.Figure:
    """How far the inputs of every group of linears reach, told apart by who reaches there."""
    figure = go.Figure(layout=layout(height))
    every = [point for points in groups.values() for point in points]
    outside = max((point.block for point in every if point.block is not None), default=-1) + 1
    symbols = ("diamond", "circle", "circle-open")
    for (kind, points), colour, symbol in zip(
        groups.items(), (PALETTE[4], PALETTE[0], PALETTE[8]), symbols, strict=False
    ):
        figure.add_scatter(
            x=[place(p, outside) for p in points],
            y=[p.value for p in points],
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbol, "line": {"width": 1.2, "color": colour}},
            name=kind,
            customdata=[[plain(p.name, 72), plain(p.note, 96)] for p in points],
            hovertemplate="<b>%{customdata[0]}</b><br>%{y:.3g} times the RMS<br>%{customdata[1]}<extra></extra>",
        )
    bounds = log_range([Measure(point.value) for point in every], 0)
    figure.update_xaxes(title="block", **block_axis(outside, any(p.block is None for p in every)))
    figure.update_yaxes(title="largest input over its RMS", **log_axis(bounds))
    return figure


def layout(height: int) -> dict[str, object]:
    """What every figure begins with."""
    return {**_BASE, "height": height}


def _candidate_hover(row: Candidate) -> str:
    lines = [
        f"<b>{plain(row.label)}</b>",
        f"KL {said(row.kl)}",
        f"{significant(row.bits)} bits per weight, {size(row.bytes)}",
        f"perplexity {significant(row.ppl.value)} (baseline {significant(row.ppl_baseline)})",
        f"same top token {percent(row.top1.value)}",
    ]
    # A label may hold a `%{`, which Plotly would take for a template.
    return "<br>".join(lines).replace("%{", "%&#123;") + "<extra></extra>"


def said(value: Measure) -> str:
    """`0.0534 (0.0502 to 0.0569)`."""
    ends = interval(value.value, value.low, value.high)
    return significant(value.value) + (f" ({ends})" if ends else "")


def _top_words(top: str) -> str:
    return f"largest {top.removeprefix('top').replace('%', ' %')} of values"


def _shifts(rows: Sequence[Candidate], heights: Sequence[float], gap: float = 16) -> list[float]:
    """How far to lift each label, in pixels, so that labels at about the same size do not overlap."""
    shifts = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: heights[index])
    placed: list[tuple[float, float]] = []
    for index in order:
        bits = rows[index].bits or 0
        near = [at for at_bits, at in placed if abs(at_bits - bits) < 0.5]
        at = max([heights[index], *(other + gap for other in near)])
        shifts[index] = at - heights[index]
        placed.append((bits, at))
    return shifts
