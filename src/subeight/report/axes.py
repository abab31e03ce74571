"""Axes of the figures: logarithmic ones with ticks said in full, and blocks with what stands outside of them."""

import math
from collections.abc import Sequence

from subeight.report.facts import Layer, Measure


def floor_of(measures: Sequence[Measure]) -> float:
    """Where values that a log axis cannot show are drawn: a third of the smallest one that it can."""
    ends = [end for m in measures for end in (m.value, m.low) if end is not None and end > 0]
    values = [m.value for m in measures if m.value is not None and m.value > 0]
    return max(min(ends, default=1e-6), min(values, default=1e-6) / 10) / 3


def log_errors(measures: Sequence[Measure], floor: float, colour: str) -> dict[str, object]:
    """Error bars that end at the floor where their lower end is not positive."""
    tops, bottoms = [], []
    for m in measures:
        value = max(m.value or 0, floor)
        tops.append(0 if m.high is None else max(0.0, m.high - value))
        bottoms.append(0 if m.low is None else max(0.0, value - max(m.low, floor)))
    return {
        "type": "data",
        "array": tops,
        "arrayminus": bottoms,
        "symmetric": False,
        "thickness": 1.4,
        "width": 4,
        "color": colour,
    }


def log_range(measures: Sequence[Measure], floor: float) -> list[float]:
    """Powers of ten between which all values and intervals lie, with a little room."""
    ends = [max(end, floor) for m in measures for end in (m.value, m.low, m.high) if end is not None]
    ends = [end for end in ends if end > 0] or [0.01, 1.0]
    low, high = math.log10(min(ends)), math.log10(max(ends))
    pad = max(0.12, 0.07 * (high - low))
    return [low - pad, high + pad]


def log_axis(bounds: list[float]) -> dict[str, object]:
    """A logarithmic axis whose ticks are whole numbers said in full: 0.05, 0.1, 0.2; only powers of ten when long."""
    span = bounds[1] - bounds[0]
    steps = (1,) if span > 3.5 else (1, 2, 5) if span > 0.8 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    powers = range(math.floor(bounds[0]), math.ceil(bounds[1]) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    shown = [tick for tick in ticks if bounds[0] <= math.log10(tick) <= bounds[1]]
    return {"type": "log", "range": bounds, "tickvals": shown, "ticktext": [f"{tick:.4g}" for tick in shown]}


def place(point: Layer, outside: int) -> int:
    """The block of a point; `outside`, the place behind all blocks, when it stands in none."""
    return outside if point.block is None else point.block


def block_axis(blocks: int, others: bool) -> dict[str, object]:
    """Ticks at every few blocks, and one for what stands outside of them (head, embeddings)."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 10**6) if blocks <= 12 * step)
    ticks = [tick for tick in range(0, blocks, step) if not others or blocks - tick > step / 2]
    names = [str(tick) for tick in ticks]
    if others:
        ticks, names = [*ticks, blocks], [*names, "other"]
    return {"tickvals": ticks, "ticktext": names, "range": [-0.7, blocks - 0.3 + others]}


def offsets(n: int) -> list[float]:
    """Places side by side within one category, half a category wide in all."""
    return [0.0] if n < 2 else [0.5 * (index / (n - 1) - 0.5) for index in range(n)]
