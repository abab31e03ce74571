"""The figures of speed: a machine's roofs with what was foretold and measured below them, and tokens per second."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from subeight.report.axes import log_axis, log_range
from subeight.report.facts import Measure
from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.speed import BASE, PACKED, PLAIN, STEPS, Advice, Bench, Machine, Scheme, Step, Timing, step_name
from subeight.report.words import significant

QUIET = PALETTE[8]
_TONES = (*PALETTE[:8], "#c3a300", "#6d7f3a")
_SYMBOLS = ("square", "circle", "diamond", "triangle-up", "star")
_DONE = {"prefill": "read", "decode": "written"}


def drawn(found: Advice) -> list[tuple[Scheme, Step]]:
    """The steps whose place below the roofs is known."""
    pairs = [(scheme, step) for scheme in found.schemes for step in scheme.steps]
    return [(scheme, step) for scheme, step in pairs if step.intensity and (step.foretold or step.measured)]


def roofline(found: Advice, height: int = 580) -> go.Figure:
    """Operations per second against operations per byte: the machine's roofs, and foretold and measured below them."""
    figure = go.Figure(layout=layout(height))
    points = drawn(found)
    symbols = dict(zip([None, *found.batches], cycle(_SYMBOLS), strict=False))
    tones = cycle(_TONES)
    for scheme in found.schemes:
        mine = [step for one, step in points if one is scheme]
        if mine:
            _scheme(figure, scheme, mine, QUIET if scheme.name == BASE else next(tones), symbols)
    for batch in dict.fromkeys(step.batch for _, step in points):
        marker = {"symbol": symbols[batch], "size": 9, "color": QUIET}
        name = step_name(batch)
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, hoverinfo="skip")
    ridges = [rate / found.machine.bandwidth for rate in _tops(found.machine).values() if found.machine.bandwidth]
    bounds = log_range([Measure(x) for x in [*(step.intensity or 1 for _, step in points), *ridges]], 0)
    heights = [y for _, step in points for y in _heights(step) if y is not None]
    _roofs(figure, found.machine, bounds)
    up = log_range([Measure(y) for y in [*heights, *_tops(found.machine).values()]], 0)
    figure.update_xaxes(title="operations for each byte read", **log_axis(bounds))
    figure.update_yaxes(title="operations per second", **log_axis(up))
    figure.update_yaxes(ticktext=[many(tick) for tick in figure.layout.yaxis.tickvals])
    return figure


def rates(found: Sequence[Bench], height: int = 380) -> go.Figure:
    """Tokens per second read and written by batch, packed beside dequantized, the quarters of the samples as spread."""
    titles = [f"tokens {_DONE[step]} per second" for step in STEPS]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1, subplot_titles=titles)
    figure.update_layout(layout(height), barmode="group", bargap=0.3, margin={"t": 88}, legend={"y": 1.12})
    figure.update_annotations(font={"size": 13})
    for column, step in enumerate(STEPS, start=1):
        for model, colour in ((PACKED, PALETTE[0]), (PLAIN, QUIET)):
            bars = _bars(found, model, step) | {"marker": {"color": colour, "line": {"width": 0}}}
            figure.add_bar(**bars, name=model, legendgroup=model, showlegend=column == 1, row=1, col=column)
        names = [_batch(row) + _faster(row.ratio[step]) for row in found]
        where = {"tickvals": list(range(len(found))), "ticktext": names, "showgrid": False, "ticks": ""}
        figure.update_xaxes(**where, row=1, col=column)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _bars(found: Sequence[Bench], model: str, step: str) -> dict[str, object]:
    timings = [row.timings[model, step] for row in found]
    return {
        "x": list(range(len(found))),
        "y": [timing.rate.value for timing in timings],
        "error_y": _spread(timings),
        "hovertext": [
            f"<b>{model}</b>, {_batch(row)}<br>{said(timing.rate)} tokens {_DONE[step]} per second"
            for row, timing in zip(found, timings, strict=True)
        ],
        "hoverinfo": "text",
    }


def _spread(timings: Sequence[Timing]) -> dict[str, object]:
    ups, downs = [], []
    for rate in (timing.rate for timing in timings):
        ups.append(0 if rate.high is None else max(0.0, rate.high - (rate.value or 0)))
        downs.append(0 if rate.low is None else max(0.0, (rate.value or 0) - rate.low))
    shown = {"thickness": 1.4, "width": 4, "color": PALETTE[4]}  # seen on the bar and above it
    return {"type": "data", "array": ups, "arrayminus": downs, "symmetric": False, **shown}


def _batch(row: Bench) -> str:
    return "unknown batch" if row.batch is None else f"batch {row.batch:,}"


def _faster(ratio: float | None) -> str:
    return "" if ratio is None else f"<br>× {significant(ratio)}"


def _tops(machine: Machine) -> dict[str, float]:
    return {name: rate for name, rate in (("bf16", machine.bf16), ("int8", machine.int8)) if rate}


def _roofs(figure: go.Figure, machine: Machine, bounds: Sequence[float]) -> None:
    """The slant of memory up to the highest roof, and each roof from where it begins."""
    low, high = 10 ** bounds[0], 10 ** bounds[1]
    line = {"color": QUIET, "width": 1.6}
    tops = _tops(machine)
    ridge = max(tops.values(), default=1.0) / (machine.bandwidth or math.inf)
    middle = (math.log10(max(low, min(ridge, high))) + bounds[1]) / 2  # between tokens and prompts
    for name, rate in tops.items():
        begins = max(low, rate / machine.bandwidth) if machine.bandwidth else low
        figure.add_scatter(
            x=[begins, high], y=[rate, rate], mode="lines", line=line, showlegend=False, hoverinfo="skip", name=name
        )
        figure.add_annotation(
            x=middle, y=math.log10(rate), text=f"{name}: {many(rate)}", showarrow=False, yanchor="bottom",
            font={"size": 12, "color": QUIET},
        )  # fmt: skip
    if machine.bandwidth:
        end = min(high, max(tops.values(), default=math.inf) / machine.bandwidth)
        figure.add_scatter(
            x=[low, end], y=[low * machine.bandwidth, end * machine.bandwidth], mode="lines", line=line,
            showlegend=False, hoverinfo="skip", name="memory",
        )  # fmt: skip


def _scheme(
    figure: go.Figure, scheme: Scheme, steps: Sequence[Step], colour: str, symbols: Mapping[int | None, str]
) -> None:
    """Foretold (open) and measured (filled) of each step, joined by a thin line."""
    points = [(step, y, index) for index in (1, 0) for step in steps if (y := _heights(step)[index]) is not None]
    joined = [(step.intensity, y) for step in steps for y in (*_heights(step), None)]
    name = plain(scheme.name, 32)
    figure.add_scatter(
        x=[x for x, _ in joined], y=[y for _, y in joined], mode="lines", line={"color": colour, "width": 1},
        legendgroup=scheme.name, showlegend=False, hoverinfo="skip", name=name, connectgaps=False,
    )  # fmt: skip
    figure.add_scatter(
        x=[step.intensity for step, _, _ in points],
        y=[y for _, y, _ in points],
        mode="markers",
        marker={
            "size": 9, "color": colour, "line": {"width": 1.4, "color": colour},
            "symbol": [symbols[step.batch] + ("" if index else "-open") for step, _, index in points],
        },
        name=name,
        legendgroup=scheme.name,
        hovertext=[f"<b>{name}</b>, {_words(step, bool(index))}" for step, _, index in points],
        hoverinfo="text",
    )  # fmt: skip


def _heights(step: Step) -> tuple[float | None, float | None]:
    """Operations per second: foretold, and measured."""
    done = step.operations
    foretold, measured = (done / seconds if done and seconds else None for seconds in (step.foretold, step.measured))
    return foretold, measured


def _words(step: Step, measured: bool) -> str:
    seconds = step.measured if measured else step.foretold
    lines = [
        step_name(step.batch),
        f"{'measured' if measured else 'foretold'}: {significant(1e3 * (seconds or 0))} ms,"
        f" {many((step.operations or 0) / (seconds or 1))} operations per second",
        f"{significant(step.intensity)} operations for each byte",
    ]
    return "<br>".join([*lines, *([f"bound by {plain(step.bound, 24)}"] if step.bound else [])])


def many(value: float) -> str:
    """`45.3 G`."""
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.4g} T"
