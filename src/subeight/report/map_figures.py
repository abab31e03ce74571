"""The figures of a map: the heat map, the curves, damage against rescue, and what was expected against what came."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from subeight.report.axes import block_axis, floor_of, log_axis, log_errors, log_range
from subeight.report.facts import Measure
from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.places import Spot, grid
from subeight.report.sensitivity import Cell, Sensitivity, hover, worst_of_each
from subeight.report.words import significant

QUIET = PALETTE[8]
HEAT = ("#2b3f73", "#5b63b7", "#9a6bb5", "#d2697f", "#ee8b4a", "#f7c948")
_OUTSIDE = "outside"
_HIGHLIGHTED = 10
Rows = list[list[list[Cell]]]


def heat(found: Sensitivity) -> go.Figure:
    """A heat map for each format, roles by blocks, against the format's own median; embeddings and head beside it."""
    roles, blocks = grid(found.spots.values())
    outside = found.outside
    formats = [format for format in found.formats if found.ranked(format)]
    tall = max(len(roles), len(outside), 1)
    titles = [_title(found, format) for format in formats]
    inner = max(1, len(formats)) * (24 * tall + 38) - 38
    figure = make_subplots(
        rows=max(1, len(formats)), cols=2 if outside else 1, vertical_spacing=38 / inner if len(formats) > 1 else 0,
        horizontal_spacing=0.015, column_widths=[0.93, 0.07] if outside else None,
        subplot_titles=[part for title in titles for part in ((title, "") if outside else (title,))],
    )  # fmt: skip
    figure.update_layout(layout(inner + 162), margin={"t": 112, "b": 50, "l": 84, "r": 104 if outside else 24})
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    ratios, squares = _ratios(found), _squares(found)
    for row, format in enumerate(formats, start=1):
        inside = [[squares.get((format, role, block), []) for block in range(blocks)] for role in roles]
        figure.add_trace(_panel(inside, found.axis, ratios), row=row, col=1)
        _roles(figure, roles, row, 1)
        figure.update_xaxes(**block_axis(blocks, False) | {"range": [-0.5, blocks - 0.5]}, row=row, col=1)
        figure.update_xaxes(showticklabels=row == len(formats), row=row, col=1)
        if outside:
            beside = [[[cell] if (cell := found.damage.get((spot.name, format))) else []] for spot in outside]
            figure.add_trace(_panel(beside, found.axis, ratios, written=True), row=row, col=2)
            _roles(figure, [spot.role for spot in outside], row, 2, side="right")
            figure.update_xaxes(showticklabels=False, row=row, col=2)
    figure.update_xaxes(title="block", row=max(1, len(formats)), col=1)
    figure.update_layout(coloraxis=_scale(list(ratios.values()), 1 + 36 / inner))
    return figure


def curves(found: Sensitivity) -> go.Figure:
    """Damage against bits, a panel for each role: the ten worst places of the narrowest format in colours."""
    cells = worst_of_each([cell for cell in found.damage.values() if cell.bits is not None])
    panels = list(dict.fromkeys(_panel_of(cell.spot) for cell in sorted(cells, key=lambda c: c.spot.block is None)))
    columns = max(1, len(panels)) if len(panels) <= 5 else 4
    rows = math.ceil(len(panels) / columns) or 1
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=0.36 / rows,
        subplot_titles=[plain(name, 24) for name in panels],
    )  # fmt: skip
    figure.update_layout(layout(130 + 270 * rows), margin={"t": 96}, legend={"y": 1 + 34 / (270 * rows)})
    figure.update_annotations(font={"size": 13})
    floor = floor_of([cell.loss for cell in cells])
    worst = found.ranked(found.narrowest)[:_HIGHLIGHTED] if found.narrowest else []
    shown = {cell.spot.name for cell in worst} & {cell.spot.name for cell in cells}
    for index, name in enumerate(panels):
        where = {"row": index // columns + 1, "col": index % columns + 1}
        mine = [cell for cell in cells if _panel_of(cell.spot) == name and cell.spot.name not in shown]
        figure.add_trace(_quiet(mine, found.axis, floor, index == 0), **where)
    for cell, colour, dash in zip(worst, cycle(PALETTE[:8]), ["solid"] * 8 + ["dot"] * 8, strict=False):
        if cell.spot.name in shown:
            index = panels.index(_panel_of(cell.spot))
            line = [c for c in cells if c.spot.name == cell.spot.name]
            trace = _line(line, found.axis, floor, plain(cell.spot.label, 24), {"color": colour, "dash": dash})
            figure.add_trace(trace, row=index // columns + 1, col=index % columns + 1)
    figure.update_yaxes(**log_axis(log_range([Measure(max(cell.value, floor)) for cell in cells], floor)))
    figure.update_yaxes(title=found.axis, col=1)
    figure.update_xaxes(title="bits per weight", row=rows, col=(min(columns, len(panels)) + 1) // 2 or 1)
    figure.update_xaxes(range=[1, max([8.0, *(cell.bits or 0 for cell in cells)]) + 0.5])
    return figure


def rescued(found: Sensitivity, height: int = 460) -> go.Figure:
    """What each place loses alone against what it gives back in a model where everything else is quantized too."""
    cells = worst_of_each([cell for cell in found.damage.values() if found.regained(cell) is not None])
    return _against(
        found, cells, lambda cell: found.regained(cell) or Measure(),
        "regained when it alone is restored", f"{found.axis} of it alone", height,
    )  # fmt: skip


def expected(found: Sensitivity, height: int = 420) -> go.Figure:
    """What was expected from one backward pass against what was measured."""
    cells = worst_of_each([cell for cell in found.damage.values() if cell.prior is not None])
    return _against(found, cells, lambda cell: Measure(cell.prior), "expected from the gradient", found.axis, height)


def added(found: Sensitivity, height: int = 420) -> go.Figure:
    """The loss of whole models against the sum of what their places lose alone, and the line where both are equal."""
    figure = go.Figure(layout=layout(height))
    wholes = sorted(found.added(), key=lambda whole: whole.sum)
    floor = floor_of([whole.loss for whole in wholes])
    bounds = log_range([*(whole.loss for whole in wholes), *(Measure(whole.sum) for whole in wholes)], floor)
    _equal(figure, bounds)
    for mixed, name, symbol, colour in (
        (False, "one format", "square", PALETTE[1]),
        (True, "mixtures", "circle", PALETTE[0]),
    ):
        mine = [whole for whole in wholes if (whole.format is None) == mixed]
        if not mine:
            continue
        figure.add_scatter(
            x=[whole.sum for whole in mine],
            y=[max(whole.loss.value or 0, floor) for whole in mine],
            error_y=log_errors([whole.loss for whole in mine], floor, colour),
            mode="lines+markers" if mixed else "markers+text",
            text=[plain(whole.format or "", 20) for whole in mine],
            textposition="middle right",
            marker={"size": 8, "color": colour, "symbol": symbol},
            line={"color": colour, "width": 1},
            name=name,
            hovertext=[f"{said(whole.loss)}, the sum is {significant(whole.sum)}" for whole in mine],
            hoverinfo="text",
        )
    figure.update_xaxes(title="sum of the places alone", **log_axis(bounds))
    figure.update_yaxes(title=found.axis, **log_axis(bounds))
    return figure


def _equal(figure: go.Figure, bounds: Sequence[float]) -> None:
    ends = [10 ** bounds[0], 10 ** bounds[1]]
    line = {"color": QUIET, "width": 1.4, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip")


def _against(
    found: Sensitivity, cells: Sequence[Cell], other: Callable[[Cell], Measure], above: str, along: str, height: int
) -> go.Figure:
    """Two values of each cell on two logarithmic axes with the line where they are equal, a colour for each format."""
    figure = go.Figure(layout=layout(height))
    pairs = [(cell, other(cell)) for cell in cells]
    values = [Measure(value) for cell, second in pairs for value in (cell.value, second.value or 0)]
    floor = floor_of(values)
    bounds = log_range([Measure(max(value.value or 0, floor)) for value in values], floor)
    _equal(figure, bounds)
    for format, colour in zip(found.formats, cycle(PALETTE), strict=False):
        mine = [(cell, second) for cell, second in pairs if cell.format == format]
        if not mine:
            continue
        low = [cell.value <= 0 or (second.value or 0) <= 0 for cell, second in mine]
        figure.add_scatter(
            x=[max(cell.value, floor) for cell, _ in mine],
            y=[max(second.value or 0, floor) for _, second in mine],
            mode="markers",
            marker={"size": 7, "color": colour, "opacity": 0.75,
                    "symbol": ["triangle-down-open" if below else "circle" for below in low]},
            name=plain(format, 24),
            hovertext=[f"{_words(cell, found.axis)}<br>{above}: {said(second)}" for cell, second in mine],
            hoverinfo="text",
        )  # fmt: skip
    figure.update_xaxes(title=along, **log_axis(bounds))
    figure.update_yaxes(title=above, **log_axis(bounds))
    return figure


def _squares(found: Sensitivity) -> dict[tuple[str, str, int | None], list[Cell]]:
    """The cells of each square of the heat map: one, or those of all experts."""
    squares: dict[tuple[str, str, int | None], list[Cell]] = {}
    for cell in found.damage.values():
        squares.setdefault((cell.format, cell.spot.role, cell.spot.block), []).append(cell)
    return squares


def _ratios(found: Sensitivity) -> dict[tuple[str, str], float]:
    """Each damage over the median of its format, as a power of ten."""
    ratios: dict[tuple[str, str], float] = {}
    for format in found.formats:
        cells = found.ranked(format)
        floor = floor_of([cell.loss for cell in cells])
        middle = max(floor, found.middle(format) or 0)
        ratios |= {(cell.spot.name, format): math.log10(max(cell.value, floor) / middle) for cell in cells}
    return ratios


def _title(found: Sensitivity, format: str) -> str:
    return f"{plain(format)}, median {significant(found.middle(format), 2)}"


def _panel(rows: Rows, axis: str, ratios: dict[tuple[str, str], float], written: bool = False) -> go.Heatmap:
    """Squares by rows; where several places share one (experts), the worst of them."""
    worst = [[max(cells, key=lambda cell: cell.value) if cells else None for cells in row] for row in rows]
    many = [[f"<br>the worst of {len(cells)} here" if len(cells) > 1 else "" for cells in row] for row in rows]
    return go.Heatmap(
        z=[[ratios[cell.spot.name, cell.format] if cell else None for cell in row] for row in worst],
        hovertext=[
            [_words(cell, axis) + more if cell else "" for cell, more in zip(row, line, strict=True)]
            for row, line in zip(worst, many, strict=True)
        ],
        hoverinfo="text",
        hoverongaps=False,
        text=[[f"{cell.value:.1g}" if cell else "" for cell in row] for row in worst] if written else None,
        texttemplate="%{text}" if written else None,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )


def _roles(figure: go.Figure, roles: Sequence[str], row: int, column: int, side: str = "left") -> None:
    figure.update_yaxes(
        tickvals=list(range(len(roles))), ticktext=[plain(role, 16) for role in roles], side=side, ticks="",
        range=[max(1, len(roles)) - 0.5, -0.5], showgrid=False, row=row, col=column,
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, ticks="", row=row, col=column)


def _scale(ratios: Sequence[float], above: float) -> dict[str, object]:
    """Colours from the least to the most, with ticks as multiples of the format's median."""
    low = min([-0.1, *ratios])
    high = max([0.1, *ratios])
    steps = (1,) if high - low > 4 else (1, 3) if high - low > 1.2 else (1, 1.5, 2, 3, 5, 7)
    marks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    shown = [mark for mark in marks if low <= math.log10(mark) <= high]
    return {
        "colorscale": [[index / (len(HEAT) - 1), colour] for index, colour in enumerate(HEAT)],
        "cmin": low,
        "cmax": high,
        "colorbar": {
            "orientation": "h", "x": 0, "xanchor": "left", "y": above, "yanchor": "bottom", "len": 0.6,
            "thickness": 10, "outlinewidth": 0, "xpad": 0,
            "title": {"text": "multiple of the format's median", "side": "top", "font": {"size": 12}},
            "tickvals": [math.log10(mark) for mark in shown], "ticktext": [f"{mark:.4g}" for mark in shown],
        },
    }  # fmt: skip


def _line(cells: Sequence[Cell], axis: str, floor: float, name: str, line: dict[str, object]) -> go.Scatter:
    drawn = sorted(cells, key=lambda cell: cell.bits or 0)
    return go.Scatter(
        x=[cell.bits for cell in drawn],
        y=[max(cell.value, floor) for cell in drawn],
        mode="lines+markers",
        line={"width": 2, **line},
        marker={"size": 5},
        name=name,
        hovertext=[_words(cell, axis) for cell in drawn],
        hoverinfo="text",
    )


def _quiet(cells: Sequence[Cell], axis: str, floor: float, legend: bool) -> go.Scatter:
    """Many lines as one trace, with gaps between them."""
    by_place: dict[str, list[Cell]] = {}
    for cell in cells:
        by_place.setdefault(cell.spot.name, []).append(cell)
    points: list[Cell | None] = []
    for mine in by_place.values():
        points += [*sorted(mine, key=lambda cell: cell.bits or 0), None]
    return go.Scatter(
        x=[cell.bits if cell else None for cell in points],
        y=[max(cell.value, floor) if cell else None for cell in points],
        mode="lines",
        line={"color": QUIET, "width": 1},
        opacity=0.45,
        connectgaps=False,
        name="the others",
        legendgroup="others",
        showlegend=legend,
        hovertext=[_words(cell, axis) if cell else "" for cell in points],
        hoverinfo="text",
    )


def _words(cell: Cell, axis: str) -> str:
    return "<br>".join([f"<b>{plain(cell.spot.name, 72)}</b>", *(plain(line, 96) for line in hover(cell, axis))])


def _panel_of(spot: Spot) -> str:
    return _OUTSIDE if spot.block is None else spot.role
