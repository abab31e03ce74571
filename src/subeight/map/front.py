"""The whole Pareto front in one call, and its rivals: uniform recipes, and wider first and last blocks.

Every point of the front is an exact solution. Budgets are spread evenly in bits up to the widest format, where
decisions are, and thinly from there to everything kept.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subeight.map.allocation import Allocation, least_cost, within_cost
from subeight.map.choices import Unit
from subeight.map.mapfile import MapFile, WholeLoss
from subeight.map.prediction import Expected, Formats, Prediction, uniform

POINTS = 60
_WIDE = 0.15  # the share of the points above the widest format
KEPT = "kept"


@dataclass(frozen=True)
class Point:
    """One recipe by its size and what it is expected to lose."""

    name: str
    bits: float
    bytes: float
    expected: Expected
    formats: Formats
    measured: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "name": self.name,
            "bits_per_weight": self.bits,
            "bytes": round(self.bytes),
            **self.expected.to_dict(),
            "counts": dict(Counter(format or KEPT for format in self.formats.values())),
            "measured": self.measured,
        }


def front(units: Sequence[Unit], prediction: Prediction, points: int = POINTS) -> list[Point]:
    """The best at every size, the narrowest first; losses fall from one to the next."""
    best: list[Point] = []
    least = np.inf
    for budget in _budgets(units, points):
        made = within_cost(units, budget)
        if made.loss < least:
            least = made.loss
            best.append(point_of(f"{made.inside(prediction.kept)[1]:.2f} bits", made, prediction))
    return best


def point_of(name: str, made: Allocation, prediction: Prediction) -> Point:
    """An allocation as a point."""
    size, bits = made.inside(prediction.kept)
    return Point(name, bits, size, prediction.expected(made.formats()), made.formats())


def measured(found: MapFile, prediction: Prediction) -> list[Point]:
    """The allocations that the map measured as wholes."""
    return [_measured("measured by the map", found, prediction, dict(m.formats), m.whole) for m in found.mixtures]


def rivals(found: MapFile, prediction: Prediction, bits: float) -> list[Point]:
    """The uniform recipes as they were measured, and the heuristic at this size where one fits."""
    points = [
        _measured(format, found, prediction, uniform(found, format), found.whole[format]) for format in found.formats
    ]
    heuristic = _heuristic(found, prediction, bits)
    return [*points, heuristic] if heuristic is not None else points


def _budgets(units: Sequence[Unit], points: int) -> list[float]:
    counted = [unit for unit in units if unit.counted]
    low = least_cost(units)
    high = sum(max(option.cost for option in unit.options) for unit in counted)
    wide = sum(
        max((option.cost for option in unit.options if option.format is not None), default=unit.options[0].cost)
        for unit in counted
    )
    below = max(2, round(points * (1 - _WIDE)))
    wide = min(max(wide, low), high)
    budgets = [*np.linspace(low, wide, below), *np.linspace(wide, high, max(2, points - below + 1))[1:]]
    return sorted({float(budget) for budget in budgets})


def _size(found: MapFile, formats: Formats) -> tuple[float, float]:
    size = found.kept_bytes + sum(place.bytes(formats[place.name]) for place in found.places if place.inside)
    return size, 8 * size / found.weights


def _measured(name: str, found: MapFile, prediction: Prediction, formats: Formats, whole: WholeLoss) -> Point:
    size, bits = _size(found, formats)
    loss = Expected(prediction.expected(formats).sum, whole.loss, whole.low, whole.high, (whole.low, whole.high))
    return Point(name, bits, size, loss, formats, measured=True)


def _heuristic(found: MapFile, prediction: Prediction, bits: float) -> Point | None:
    """The widest uniform recipe that fits, and as many blocks one format wider, from both ends, as fit too."""
    order: list[str | None] = [None, *found.formats]  # the widest first
    sizes = [_size(found, uniform(found, format))[1] for format in order]
    at = next((number for number, size in enumerate(sizes) if number and size <= bits + 1e-9), None)
    if at is None:
        return None
    blocks = sorted({place.block for place in found.places if place.block is not None})
    ends = [block for pair in zip(blocks, reversed(blocks), strict=True) for block in pair][: len(blocks)]
    formats = uniform(found, order[at])
    taken = 0
    for block in ends:
        wider = formats | {place.name: order[at - 1] for place in found.places if place.block == block}
        if _size(found, wider)[1] > bits + 1e-9:
            break
        formats, taken = wider, taken + 1
    size, used = _size(found, formats)
    name = f"first and last blocks wider ({taken} of {len(blocks)})"
    return Point(name, used, size, prediction.expected(formats), formats)
