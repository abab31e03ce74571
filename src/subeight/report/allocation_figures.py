"""The figures of an allocation: which format each place got, and the Pareto front among its rivals."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from subeight.report.allocation import KEPT, Allocation, Choice, Point
from subeight.report.axes import block_axis, floor_of, log_axis, log_errors, log_range
from subeight.report.facts import Measure
from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.places import grid
from subeight.report.words import significant, size

QUIET = PALETTE[8]
TONES = (PALETTE[4], PALETTE[1], PALETTE[2], PALETTE[0], PALETTE[3], PALETTE[5], PALETTE[6], PALETTE[7])
_SEVERAL = "several"


def granted(found: Allocation) -> go.Figure:
    """Roles by blocks, a colour for each format; a dot where the record has doubts; the reason on hover."""
    roles, blocks = grid(choice.spot for choice in found.choices)
    outside = [choice for choice in found.choices if choice.spot.block is None]
    rows = [*roles, *dict.fromkeys(choice.spot.role for choice in outside)]
    squares: dict[tuple[int, int], list[Choice]] = {}
    for choice in found.choices:
        at = (rows.index(choice.spot.role), 0 if choice.spot.block is None else choice.spot.block)
        squares.setdefault(at, []).append(choice)
    names = [*(name for name, _ in found.formats)]
    several = any(len({choice.format for choice in here}) > 1 for here in squares.values())
    tones = [_tone(name, index) for index, name in enumerate(names)] + ["#c3a300"] * several
    columns = max(1, blocks)
    grid_of = [[squares.get((row, block), []) for block in range(columns)] for row in range(len(rows))]
    figure = go.Figure(layout=layout(max(290, 126 + 30 * len(rows))))
    figure.add_heatmap(
        z=[[_number(here, names) for here in line] for line in grid_of],
        hovertext=[[_squares_words(here) for here in line] for line in grid_of],
        hoverinfo="text",
        hoverongaps=False,
        zmin=-0.5,
        zmax=len(tones) - 0.5,
        colorscale=steps(tones),
        showscale=False,
        xgap=1,
        ygap=1,
    )
    counts = [*(f"{plain(name, 24)}: {count:,}" for name, count in found.formats), *([_SEVERAL] if several else [])]
    for tone, name in zip(tones, counts, strict=True):
        marker = {"symbol": "square", "size": 12, "color": tone}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, hoverinfo="skip")
    doubted = [at for at, here in squares.items() if any(choice.doubts for choice in here)]
    if doubted:
        figure.add_scatter(
            x=[block for _, block in doubted], y=[row for row, _ in doubted], mode="markers", name="with doubts",
            marker={"size": 6, "color": "#ffffff", "line": {"width": 1.4, "color": "#1d2329"}}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(title="block", **block_axis(columns, False) | {"range": [-0.5, columns - 0.5]}, showgrid=False)
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[plain(row, 18) for row in rows], ticks="", showgrid=False,
        range=[max(1, len(rows)) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_layout(margin={"l": 96, "t": 60})
    return figure


def front(found: Allocation, axis: str, height: int = 460) -> go.Figure:
    """Expected loss against size: the best at every size, uniform and heuristic recipes, the chosen, the measured."""
    best = [point for point in found.front if point.bits is not None and (point.loss.value or 0) > 0]
    best = sorted(best, key=lambda point: point.bits or 0)
    rivals, wholes = (
        [point for point in points if point.bits is not None and point.loss.value is not None]
        for points in (found.rivals, found.measured)
    )
    marks = _marks(found)
    measures = [*(point.loss for point in [*best, *rivals, *wholes]), *(mark[1] for mark in marks)]
    floor = floor_of(measures)
    figure = go.Figure(layout=layout(height))
    if best:
        _band(figure, best, floor)
        figure.add_scatter(
            x=[point.bits for point in best],
            y=[point.loss.value for point in best],
            mode="lines+markers",
            line={"color": PALETTE[0], "width": 2},
            marker={"size": 4},
            name="the best at each size",
            hovertext=[_point_words(point) for point in best],
            hoverinfo="text",
        )
    if wholes:
        figure.add_scatter(
            x=[point.bits for point in wholes],
            y=[max(point.loss.value or 0, floor) for point in wholes],
            error_y=log_errors([point.loss for point in wholes], floor, PALETTE[2]),
            mode="markers",
            marker={"size": 8, "color": PALETTE[2], "symbol": "circle"},
            name="measured by the map",
            hovertext=[_point_words(point) for point in wholes],
            hoverinfo="text",
        )
    _rivals(figure, rivals, floor)
    for name, measured, colour, symbol, diameter in marks:
        figure.add_scatter(
            x=[found.bits],
            y=[max(measured.value or 0, floor)],
            error_y=log_errors([measured], floor, colour),
            mode="markers",
            marker={"size": diameter, "color": colour, "symbol": symbol, "line": {"width": 1, "color": "#ffffff"}},
            name=name,
            hovertext=[f"<b>{name}</b><br>{said(measured)}<br>{significant(found.bits)} bits per weight"],
            hoverinfo="text",
        )
    # beyond the widest recipe the line goes on to everything kept: it is there, outside of the first view
    shown = rivals or best
    known = [*(point.bits or 0 for point in [*shown, *wholes]), *([found.bits] if found.bits is not None else [])]
    low, high = min(known, default=2), max(known, default=8)
    figure.update_xaxes(title="bits per weight", range=[low - 0.25, high + max(0.4, 0.12 * (high - low))])
    visible = [point.loss for point in [*best, *rivals, *wholes] if (point.bits or 0) <= high + 0.4]
    figure.update_yaxes(title=axis, **log_axis(log_range([*visible, *(mark[1] for mark in marks)], floor)))
    return figure


def _marks(found: Allocation) -> list[tuple[str, Measure, str, str, int]]:
    """Expected and measured stand on one another when all is well, so each is smaller than the one below it."""
    marks = [("chosen, expected", found.predicted, PALETTE[4], "star", 20)]
    if found.verified is not None:
        marks.append(("measured", found.verified.loss, PALETTE[2], "diamond", 11))
        marks.append(("on held-out text", found.verified.heldout, PALETTE[3], "circle", 7))
    return [mark for mark in marks if mark[1].value is not None and found.bits is not None]


def _band(figure: go.Figure, best: Sequence[Point], floor: float) -> None:
    """The intervals of the front as one pale band."""
    known = [point for point in best if point.loss.low is not None and point.loss.high is not None]
    if len(known) < 2:
        return
    bits = [point.bits for point in known]
    tops = [max(point.loss.high or 0, floor) for point in known]
    bottoms = [max(point.loss.low or 0, floor) for point in known]
    figure.add_scatter(
        x=[*bits, *reversed(bits)], y=[*tops, *reversed(bottoms)], fill="toself", fillcolor="rgba(63,131,209,0.18)",
        mode="lines", line={"width": 0}, hoverinfo="skip", name="its 95 % interval",
    )  # fmt: skip


def _rivals(figure: go.Figure, rivals: Sequence[Point], floor: float) -> None:
    widest = max(rivals, key=lambda point: point.bits or 0, default=None)
    for heuristic, name, colour, symbol in (
        (False, "uniform", PALETTE[1], "square"),
        (True, "heuristic", PALETTE[5], "triangle-up"),
    ):
        mine = [point for point in rivals if point.uniform != heuristic]
        if not mine:
            continue
        figure.add_scatter(
            x=[point.bits for point in mine],
            y=[max(point.loss.value or 0, floor) for point in mine],
            mode="markers+text",
            text=[] if heuristic else [plain(point.name.removeprefix("uniform").strip(" -:"), 20) for point in mine],
            textposition=["middle left" if point is widest else "middle right" for point in mine],
            textfont={"size": 11, "color": colour},
            marker={"size": 10, "color": colour,
                    "symbol": [symbol if point.measured else f"{symbol}-open" for point in mine]},
            name=name,
            hovertext=[_point_words(point) for point in mine],
            hoverinfo="text",
        )  # fmt: skip


def _point_words(point: Point) -> str:
    how = "measured" if point.measured else "expected"
    lines = [] if point.name == "?" else [f"<b>{plain(point.name)}</b>"]
    lines.append(f"{said(point.loss)}, {how}")
    lines.append(f"{significant(point.bits)} bits per weight, {size(point.bytes)}")
    lines += [f"{plain(str(name), 32)}: {plain(str(count), 12)}" for name, count in list(point.counts.items())[:12]]
    return "<br>".join(lines)


def _squares_words(here: Sequence[Choice]) -> str:
    shown = [_choice_words(choice) for choice in here[:3]]
    return "<br><br>".join([*shown, *([f"and {len(here) - 3:,} more here"] if len(here) > 3 else [])])


def _choice_words(choice: Choice) -> str:
    lines = [f"<b>{plain(choice.spot.name, 72)}</b>", f"{plain(choice.format)}, loses {said(choice.loss)}"]
    lines += _wrapped(choice.reason)
    lines += [line for doubt in choice.doubts for line in _wrapped(f"Doubt: {doubt}")]
    return "<br>".join(lines)


def _wrapped(sentence: str, width: int = 76) -> list[str]:
    lines, line = [], ""
    for word in sentence[:600].split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [plain(line, 600) for line in [*lines, line] if line]


def _number(here: Sequence[Choice], names: Sequence[str]) -> int | None:
    formats = {choice.format for choice in here}
    if not formats:
        return None
    return names.index(formats.pop()) if len(formats) == 1 else len(names)


def _tone(name: str, index: int) -> str:
    return QUIET if name == KEPT else TONES[index % len(TONES)]


def steps(tones: Sequence[str]) -> list[list[object]]:
    """A colour scale that jumps: the same colour over all of a whole number's width."""
    count = max(1, len(tones))
    ends = [math.floor(1e9 * index / count) / 1e9 for index in range(count)] + [1.0]
    pairs = [[[ends[index], tone], [ends[index + 1], tone]] for index, tone in enumerate(tones)]
    return [end for pair in pairs for end in pair] or [[0, QUIET], [1, QUIET]]
