"""The figures of a map of keys and values: what each layer's lose alone, and what a budget gave them."""

import math
import re

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from subeight.report.allocation_figures import TONES, steps
from subeight.report.axes import block_axis, floor_of, log_axis, log_range
from subeight.report.caches import NONE, SIDES, Alone, Caches, Granted
from subeight.report.facts import Measure
from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.map_figures import HEAT

QUIET = PALETTE[8]


def layers(found: Caches) -> go.Figure:
    """Layers along, a row for each format, keys above values; colours are the logarithm of the loss."""
    formats = list(dict.fromkeys(one.format for one in found.alone))
    count = 1 + max(one.layer for one in found.alone)
    by_place = {(one.side, one.format, one.layer): one for one in found.alone}
    floor = floor_of([one.kl for one in found.alone])
    bounds = log_range([Measure(max(one.kl.value or 0, floor)) for one in found.alone], floor)
    inner = 2 * (26 * len(formats) + 34) - 34
    figure = make_subplots(rows=2, cols=1, vertical_spacing=34 / inner, subplot_titles=list(SIDES))
    figure.update_layout(layout(inner + 164), margin={"t": 112, "l": 110})
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    for row, side in enumerate(SIDES, start=1):
        grid = [[by_place.get((side, format, layer)) for layer in range(count)] for format in formats]
        figure.add_heatmap(
            z=[[math.log10(max(one.kl.value or 0, floor)) if one else None for one in line] for line in grid],
            hovertext=[[_alone_words(one) if one else "" for one in line] for line in grid],
            hoverinfo="text", hoverongaps=False, coloraxis="coloraxis", xgap=1, ygap=1, row=row, col=1,
        )  # fmt: skip
        figure.update_xaxes(
            **block_axis(count, False) | {"range": [-0.5, count - 0.5]}, showticklabels=row == 2, showgrid=False,
            ticks="", row=row, col=1,
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(formats))), ticktext=[plain(format, 18) for format in formats], ticks="",
        showgrid=False, range=[len(formats) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_xaxes(title="layer", row=2)
    figure.update_layout(coloraxis=_losses(bounds, 1 + 36 / inner))
    return figure


def strips(found: Caches) -> go.Figure:
    """What each layer's keys and values got, a colour for each format and a pair of rows for each allocation."""
    shown = [one for one in found.granted if one.sides]
    names = sorted({name for one in shown for side in one.sides.values() for name in side.values()}, key=_width)
    colours = [QUIET if name == NONE else TONES[index % len(TONES)] for index, name in enumerate(names)]
    count = 1 + max((layer for one in shown for side in one.sides.values() for layer in side), default=0)
    inner = len(shown) * (60 + 38) - 38
    figure = make_subplots(
        rows=len(shown), cols=1, vertical_spacing=38 / inner if len(shown) > 1 else 0,
        subplot_titles=[plain(one.name, 60) for one in shown],
    )  # fmt: skip
    figure.update_layout(layout(inner + 148), margin={"t": 96, "l": 72}, legend={"y": 1 + 34 / inner})
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    for row, one in enumerate(shown, start=1):
        figure.add_trace(_strip(one, names, colours, count), row=row, col=1)
    for name, colour in zip(names, colours, strict=True):
        marker = {"symbol": "square", "size": 12, "color": colour}
        words = "full precision" if name == NONE else plain(name, 24)
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=words, hoverinfo="skip")
    figure.update_xaxes(
        **block_axis(count, False) | {"range": [-0.5, count - 0.5]}, showticklabels=False, showgrid=False, ticks=""
    )
    figure.update_xaxes(title="layer", showticklabels=True, row=len(shown))
    figure.update_yaxes(tickvals=[0, 1], ticktext=list(SIDES), ticks="", showgrid=False, range=[1.5, -0.5])
    return figure


def _strip(one: Granted, names: list[str], colours: list[str], count: int) -> go.Heatmap:
    grid = [[one.sides[side].get(layer) for layer in range(count)] for side in SIDES]
    return go.Heatmap(
        z=[[None if name is None else names.index(name) for name in line] for line in grid],
        hovertext=[
            [f"{side} of layer {layer}: {plain(name)}" if name else "" for layer, name in enumerate(line)]
            for side, line in zip(SIDES, grid, strict=True)
        ],
        hoverinfo="text", hoverongaps=False, zmin=-0.5, zmax=len(names) - 0.5, colorscale=steps(colours),
        showscale=False, xgap=1, ygap=1,
    )  # fmt: skip


def _alone_words(one: Alone) -> str:
    return f"<b>{one.side} of layer {one.layer}</b><br>{plain(one.format)}: KL {said(one.kl)}"


def _width(name: str) -> tuple[bool, int, str]:
    """The narrowest format first, full precision last."""
    bits = re.search(r"\d+", name)
    return name == NONE, int(bits.group()[:4]) if bits else 0, name


def _losses(bounds: list[float], above: float) -> dict[str, object]:
    """Colours of a loss, and their bar above the figure."""
    marks = log_axis(bounds)
    return {
        "colorscale": [[index / (len(HEAT) - 1), colour] for index, colour in enumerate(HEAT)],
        "cmin": bounds[0],
        "cmax": bounds[1],
        "colorbar": {
            "orientation": "h", "x": 0, "xanchor": "left", "y": above, "yanchor": "bottom", "len": 0.6, "xpad": 0,
            "title": {"text": "KL (nats per token)", "side": "top", "font": {"size": 12}}, "thickness": 10,
            "outlinewidth": 0,
            "tickvals": [math.log10(mark) for mark in marks["tickvals"]],  # type: ignore[attr-defined]
            "ticktext": marks["ticktext"],
        },
    }  # fmt: skip
