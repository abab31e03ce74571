"""A budget in the user's own unit, spent: what it decides about, the allocation, the nearest that can be met.

A budget in bits counts the linears of the blocks, and embeddings and head stay; a budget in bytes counts all places as
they are stored, and they are decided too; a budget in loss is one of the whole model, so it is turned into a sum first.
"""

from collections.abc import Sequence

from subeight.errors import SubeightError
from subeight.map.allocation import Allocation, least_cost, least_loss, within_cost, within_loss
from subeight.map.budget import Budget
from subeight.map.choices import Unit, Wish, round_up, units_of
from subeight.map.mapfile import MapFile
from subeight.map.prediction import Prediction

_SLACK = 1e-9
_SCALES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def decidable(
    found: MapFile, budget: Budget, engine: str = "any", pins: Sequence[Wish] = (), forbids: Sequence[Wish] = ()
) -> list[Unit]:
    """The units that this kind of budget decides."""
    return units_of(found, engine=engine, pins=pins, forbids=forbids, outside=budget.kind == "bytes")


def limit_of(found: MapFile, budget: Budget, prediction: Prediction) -> float:
    """The budget as bytes, or as a sum of losses."""
    if budget.kind == "bits":
        return budget.value * found.weights / 8
    return budget.value if budget.kind == "bytes" else prediction.sum_for(budget.value)


def spent(found: MapFile, units: Sequence[Unit], budget: Budget, prediction: Prediction) -> Allocation:
    """The best allocation within the budget.

    Raises:
        SubeightError: there is none; the message names the nearest budget that can be met.
    """
    limit = limit_of(found, budget, prediction)
    least = least_loss(units) if budget.kind == "kl" else least_cost(units)
    if least > limit * (1 + _SLACK):
        raise SubeightError(
            f"The budget of {budget.text} is infeasible with the map's formats, the engine and what was pinned and "
            f"forbidden; the nearest that can be met is {_nearest(found, units, budget, prediction)!r}."
        )
    return within_loss(units, limit) if budget.kind == "kl" else within_cost(units, limit)


def _nearest(found: MapFile, units: Sequence[Unit], budget: Budget, prediction: Prediction) -> str:
    """The smallest budget of this kind that can be met, as it would be typed."""
    if budget.kind == "bits":
        return f"{round_up(8 * least_cost(units) / found.weights):.3f} bits"
    if budget.kind == "bytes":
        least = least_cost(units)
        name, scale = next(((n, s) for n, s in _SCALES if least >= s), ("B", 1.0))
        return f"{round_up(least / scale):.3f} {name}"
    formats = {
        place.name: min(unit.options, key=lambda option: option.loss).format for unit in units for place in unit.places
    }
    return f"kl {round_up(prediction.expected(formats).loss * (1 + 1e-6), 6):.6f}"
