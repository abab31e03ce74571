"""Which allocations a map measures as wholes, so that what any other will lose is read off between them.

The ends of the range are the narrowest and the widest format everywhere. Each mixture is the best allocation in the
middle of the widest gap that is left: widest by the difference in bits times the difference in the log of the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from subeight.map.allocation import least_cost, within_cost
from subeight.map.choices import Wish, units_of
from subeight.map.mapfile import MapFile
from subeight.map.prediction import Formats, uniform

_FINE = 120  # allocations that the mixtures are chosen from
_NOTHING_KEPT = Wish("*=keep", "*", None)
_TINY = 1e-12


@dataclass(frozen=True)
class _Step:
    """An allocation of so many bytes."""

    size: float
    formats: Formats


@dataclass(frozen=True)
class _Known:
    """A measured size, and the log of its loss."""

    size: float
    log: float


def next_mixtures(found: MapFile, count: int) -> list[Formats]:
    """At most `count` more allocations to measure, by what was measured so far."""
    steps = _steps(found)
    wholes: list[tuple[Formats, Any]] = [
        (uniform(found, f), found.whole[f]) for f in (found.formats[-1], found.formats[0])
    ]
    wholes += [(dict(mixture.formats), mixture.whole) for mixture in found.mixtures]
    known = [_Known(_size(found, formats), math.log(max(whole.loss, _TINY))) for formats, whole in wholes]
    chosen: list[Formats] = []
    for _ in range(count):
        known.sort(key=lambda point: point.size)
        gaps = sorted(pairwise(known), key=lambda gap: -_area(*gap))
        step = next((step for low, high in gaps if (step := _middle(steps, low, high)) is not None), None)
        if step is None:
            break
        chosen.append(step.formats)
        known.append(_Known(step.size, _between(known, step.size)))
    return chosen


def _steps(found: MapFile) -> list[_Step]:
    """The best allocations at budgets evenly spread, nothing kept."""
    units = units_of(found, forbids=[_NOTHING_KEPT])
    widest = sum(max(option.cost for option in unit.options) for unit in units if unit.counted)
    made = (within_cost(units, budget) for budget in np.linspace(least_cost(units), widest, _FINE))
    return [_Step(one.inside()[0], one.formats()) for one in made]


def _size(found: MapFile, formats: Formats) -> float:
    return sum(place.bytes(formats[place.name]) for place in found.places if place.inside)


def _area(low: _Known, high: _Known) -> float:
    return (high.size - low.size) * abs(high.log - low.log)


def _middle(steps: Sequence[_Step], low: _Known, high: _Known) -> _Step | None:
    """The allocation nearest to the middle of a gap; None where nothing lies inside."""
    inside = [step for step in steps if low.size < step.size < high.size]
    middle = (low.size + high.size) / 2
    return min(inside, key=lambda step: abs(step.size - middle), default=None)


def _between(known: Sequence[_Known], size: float) -> float:
    """The log of the loss that is expected at a size until it is measured."""
    return float(np.interp(size, [point.size for point in known], [point.log for point in known]))
