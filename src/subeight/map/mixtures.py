"""Which allocations a map measures as wholes, so that what any other will lose is read off between them."""

import numpy as np

from subeight.map.allocation import Allocation, least_cost, within_cost
from subeight.map.choices import Wish, units_of
from subeight.map.mapfile import MapFile
from subeight.map.prediction import Formats

_FINE = 6  # budgets tried for each mixture
_NOTHING_KEPT = Wish("*=keep", "*", None)


def mixtures_of(found: MapFile, count: int) -> list[Formats]:
    """At most `count` allocations between the narrowest and the widest format, evenly spread in the log of the sum."""
    units = units_of(found, forbids=[_NOTHING_KEPT])
    widest = sum(max(option.cost for option in unit.options) for unit in units if unit.counted)
    budgets = np.linspace(least_cost(units), widest, count * _FINE + 2)
    made = [within_cost(units, budget) for budget in budgets]
    first, last = made[0].loss, made[-1].loss
    if not 0 < last < first:
        return []
    targets = np.geomspace(first, last, count + 2)
    chosen = {_nearest(made, target): None for target in targets[1:-1]}
    return [made[number].formats() for number in chosen if made[number].loss not in (first, last)]


def _nearest(made: list[Allocation], target: float) -> int:
    return int(np.argmin([abs(np.log(max(one.loss, 1e-300) / target)) for one in made]))
