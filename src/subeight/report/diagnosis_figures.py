"""The figures of a diagnosis: where the loss is, the search test by test, the curve, the culprit among all linears."""

from collections.abc import Sequence
from itertools import accumulate

import plotly.graph_objects as go

from subeight.report.axes import block_axis, log_axis, log_range, place
from subeight.report.diagnosis import Group, Trial
from subeight.report.facts import Layer, Measure
from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.words import count, size

GUILTY, QUIET = PALETTE[4], PALETTE[8]


def losses(groups: Sequence[Group], whole: float | None, control: Group | None, axis: str) -> go.Figure:
    """The loss of each category with its interval, the worst on top; the control below, in grey."""
    rows = [group for group in groups if group.loss.value is not None]
    last = [control] if control is not None and control.loss.value is not None else []
    figure = go.Figure(layout=layout(86 + 34 * (len(rows) + len(last))))
    for name, colour, start, shown in (
        ("failing prompts", PALETTE[0], 0, rows),
        ("control", QUIET, len(rows), last),
    ):
        if not shown:
            continue
        figure.add_scatter(
            x=[group.loss.value for group in shown],
            y=[start + index for index in range(len(shown))],
            error_x=_errors([group.loss for group in shown], colour),
            mode="markers",
            marker={"size": 10, "color": colour},
            name=name,
            customdata=[[plain(group.name), said(group.loss), _prompts(group)] for group in shown],
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    if whole is not None and rows:
        _guide(figure, whole)
    _rows(figure, [plain(group.name, 22) for group in [*rows, *last]])
    figure.update_xaxes(title=axis, rangemode="tozero")
    figure.update_layout(showlegend=False)
    return figure


def search(trials: Sequence[Trial]) -> go.Figure:
    """Every test in order, from the top: the share of the loss that it recovered or caused, with its interval."""
    figure = go.Figure(layout=layout(118 + 25 * len(trials)))
    kinds = {"restore": ("restored in the candidate", PALETTE[0], "circle"),
             "anew": ("stored anew in the candidate", PALETTE[2], "square"),
             "damage": ("quantized alone in the baseline", PALETTE[1], "diamond")}  # fmt: skip
    for what, (name, colour, symbol) in kinds.items():
        mine = [(i, t) for i, t in enumerate(trials) if t.recovered.value is not None and _kind(t) == what]
        if not mine:
            continue
        figure.add_scatter(
            x=[trial.recovered.value for _, trial in mine],
            y=[index for index, _ in mine],
            error_x=_errors([trial.recovered for _, trial in mine], colour),
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbol},
            name=name,
            customdata=[[_names(trial), said(trial.loss)] for _, trial in mine],
            hovertemplate="<b>%{x:.1%}</b> of the loss<br>loss %{customdata[1]}<br>%{customdata[0]}<extra></extra>",
        )
    for share in (0, 1):
        _guide(figure, share)
    ends = [end for t in trials for end in (t.recovered.value, t.recovered.low, t.recovered.high) if end is not None]
    low, high = max(-0.5, min([0.0, *ends])), min(1.5, max([1.0, *ends]))
    _rows(figure, [_row(index, trial) for index, trial in enumerate(trials)])
    figure.update_xaxes(title="share of the loss", tickformat=".0%", range=[low - 0.04, high + 0.04])
    _label(figure, "test · linears in it")
    _name_singles(figure, trials)
    return figure


def recovery(points: Sequence[tuple[int, float, float | None]], height: int = 340) -> go.Figure:
    """The share recovered against the linears restored, one point per test, beside the line of damage spread evenly."""
    figure = go.Figure(layout=layout(height))
    last = max((restored for restored, _, _ in points), default=1)
    if points:
        whole = max(share for restored, share, _ in points if restored == last)
        figure.add_scatter(
            x=[0, last],
            y=[0, whole],
            mode="lines",
            line={"color": QUIET, "width": 1.4, "dash": "dot"},
            name="if it were spread evenly",
            hoverinfo="skip",
        )
        best = list(accumulate((share for _, share, _ in points), max, initial=0.0))
        figure.add_scatter(
            x=[0, *(restored for restored, _, _ in points)],
            y=best,
            mode="lines",
            line={"color": PALETTE[0], "width": 2, "shape": "hv"},
            name="the most with so few",
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[restored for restored, _, _ in points],
            y=[share for _, share, _ in points],
            mode="markers",
            marker={"size": 7, "color": PALETTE[0]},
            name="one test",
            customdata=[["" if stored is None else f"<br>{size(stored)} more"] for _, _, stored in points],
            hovertemplate="%{x:,} restored%{customdata[0]}<br><b>%{y:.1%}</b> recovered<extra></extra>",
        )
    low = min([0.0, *(share for _, share, _ in points)])
    figure.update_xaxes(title="linears restored", range=[-0.02 * last, 1.04 * last])
    figure.update_yaxes(tickformat=".0%", range=[low - 0.04, max([1.0, *(share for _, share, _ in points)]) + 0.06])
    _label(figure, "share of the loss recovered")
    return figure


def among_all(points: Sequence[Layer], guilty: Sequence[str], title: str, height: int = 340) -> go.Figure:
    """One value of every linear by block, in grey, and the guilty ones in red."""
    figure = go.Figure(layout=layout(height))
    outside = max((point.block for point in points if point.block is not None), default=-1) + 1
    culprits = [point for point in points if point.name in guilty]
    others = [point for point in points if point.name not in guilty]
    for name, colour, diameter, shown in (("others", QUIET, 6, others), ("guilty", GUILTY, 12, culprits)):
        if shown:
            figure.add_scatter(
                x=[place(point, outside) for point in shown],
                y=[point.value for point in shown],
                mode="markers",
                marker={"size": diameter, "color": colour, "opacity": 0.65 if name == "others" else 1},
                name=name,
                customdata=[[plain(point.name, 72)] for point in shown],
                hovertemplate="<b>%{customdata[0]}</b><br>%{y:.3g}<extra></extra>",
            )
    figure.update_xaxes(title="block", **block_axis(outside, any(point.block is None for point in points)))
    _label(figure, title)
    figure.update_yaxes(**log_axis(log_range([Measure(point.value) for point in points], 0)))
    figure.update_layout(showlegend=bool(culprits))
    return figure


def _errors(measures: Sequence[Measure], colour: str) -> dict[str, object]:
    """Error bars to the ends of the intervals, as far as these are known."""
    pairs = [(m.value or 0, m.low, m.high) for m in measures]
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else max(0, high - value) for value, _, high in pairs],
        "arrayminus": [0 if low is None else max(0, value - low) for value, low, _ in pairs],
        "thickness": 1.6,
        "width": 0,
        "color": colour,
    }


def _rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Rows from the top, each under its name."""
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=list(names), range=[max(1, len(names)) - 0.4, -0.6], showgrid=False
    )


def _label(figure: go.Figure, title: str) -> None:
    figure.update_yaxes(title={"text": title, "standoff": 12})


def _name_singles(figure: go.Figure, trials: Sequence[Trial]) -> None:
    """The name of the linear beside a test of a single one, on the side where there is room."""
    for index, trial in enumerate(trials):
        if trial.recovered.value is None or len(trial.names) != 1 or trial.places not in (1, None):
            continue
        low = trial.recovered.value if trial.recovered.low is None else trial.recovered.low
        high = trial.recovered.value if trial.recovered.high is None else trial.recovered.high
        left = trial.recovered.value > 0.5
        figure.add_annotation(
            x=low if left else high,
            y=index,
            text=plain(trial.names[0].removeprefix("model.layers."), 24),
            showarrow=False,
            xanchor="right" if left else "left",
            xshift=-8 if left else 8,
            font={"size": 11},
        )


def _guide(figure: go.Figure, at: float) -> None:
    figure.add_vline(x=at, line={"color": QUIET, "width": 1, "dash": "dot"}, layer="below")


def _kind(trial: Trial) -> str:
    return trial.what if trial.what in ("restore", "damage") else "anew"


def _row(index: int, trial: Trial) -> str:
    return f"{index + 1}" if trial.places is None else f"{index + 1} · {trial.places:,}"


def _prompts(group: Group) -> str:
    return "" if group.prompts is None else count(group.prompts, "prompt")


def _names(trial: Trial) -> str:
    shown = [plain(name, 72) for name in trial.names]
    more = (trial.places or len(shown)) - len(shown)
    return "<br>".join([*shown, *([f"and {more:,} more"] if more > 0 and shown else [])])
