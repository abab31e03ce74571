"""The figures of `train qlora`: what each way of merging costs and keeps, and the loss by update."""

from collections.abc import Sequence

import plotly.graph_objects as go

from subeight.report.figures import PALETTE, layout, plain, said
from subeight.report.lora import Way
from subeight.report.words import percent, size

_TONES = {"kept": PALETTE[2], "weakened": PALETTE[1], "erased": PALETTE[3]}
_PLAIN = PALETTE[0]


def sizes_against_gain(found: Sequence[Way], height: int = 380) -> go.Figure:
    """Each way by its bytes and by the share of what was learned that it keeps; up and to the left is better."""
    figure = go.Figure(layout=layout(height))
    for way in found:
        if way.bytes is None or way.kept.value is None:
            continue
        low, high = way.kept.low, way.kept.high
        ends = {}
        if low is not None and high is not None:
            ends = {
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, high - way.kept.value)],
                "arrayminus": [max(0.0, way.kept.value - low)],
            }
        figure.add_scatter(
            x=[way.bytes / 1e6],
            y=[way.kept.value],
            error_y=ends or None,
            mode="markers+text",
            text=[plain(way.name)],
            textposition="middle right",
            marker={"size": 12, "color": _TONES.get(way.verdict, _PLAIN)},
            hovertext=[
                f"<b>{plain(way.label)}</b><br>{size(way.bytes)}, {percent(way.kept.value)}<br>KL {said(way.kl)}"
            ],
            hoverinfo="text",
            showlegend=False,
        )
    figure.update_xaxes(title="MB of the whole model", rangemode="tozero")
    figure.update_yaxes(title="share of the gain that is kept", tickformat=".0%")
    return figure


def _hover(way: Way) -> str:
    return f"<b>{plain(way.label)}</b><br>{size(way.bytes)}, {percent(way.kept.value)} kept<br>KL {said(way.kl)}"


def loss_by_update(points: Sequence[tuple[int, float]], height: int = 320) -> go.Figure:
    """The loss of scored tokens by update."""
    figure = go.Figure(layout=layout(height))
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    figure.add_scatter(x=steps, y=losses, mode="lines", line={"color": _PLAIN, "width": 1.5}, showlegend=False)
    figure.update_xaxes(title="update")
    figure.update_yaxes(title="loss, nats for each scored token", rangemode="tozero")
    return figure
