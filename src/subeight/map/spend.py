"""A budget in the user's own unit, spent: what it decides about, the allocation, the nearest that can be met.

A budget in bits counts the linears of the blocks, and embeddings and head stay. One in bytes counts all places as they
are stored, one in milliseconds what was measured of them: both decide embeddings and head too. A budget in loss is one
of the whole model, so it is turned into a sum first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from subeight.errors import SubeightError
from subeight.map.allocation import Allocation, least_cost, least_loss, within_cost, within_loss
from subeight.map.budget import Budget
from subeight.map.choices import Unit, Wish, bytes_of, round_up, units_of
from subeight.map.mapfile import MapFile, MapPlace
from subeight.map.prediction import Prediction

_SLACK = 1e-9
_SCALES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Latency:
    """Measured seconds of one token: of every linear by name and format (None: kept), and of all that is no linear."""

    context: int
    rest: float
    linears: Mapping[tuple[str, str | None], float]

    def of(self, place: MapPlace, format: str | None) -> float:
        """The cost that budgets in milliseconds count."""
        return sum(self.linears[name, format] for name in place.linears)


def decidable(
    found: MapFile,
    budget: Budget,
    engine: str = "any",
    pins: Sequence[Wish] = (),
    forbids: Sequence[Wish] = (),
    latency: Latency | None = None,
) -> list[Unit]:
    """The units that this kind of budget decides; one in milliseconds needs what was measured.

    Raises:
        InputError: pins, forbiddings and engine leave a place no format.
    """
    outside = budget.kind in ("bytes", "latency")
    cost = bytes_of if latency is None else latency.of
    return units_of(found, engine=engine, pins=pins, forbids=forbids, outside=outside, cost=cost)


def limit_of(found: MapFile, budget: Budget, prediction: Prediction, latency: Latency | None = None) -> float:
    """The budget as bytes, as a sum of losses, or as what the linears may take of its seconds."""
    if latency is not None:
        return budget.value - latency.rest
    if budget.kind == "bits":
        return budget.value * found.weights / 8 - found.kept_bytes
    return budget.value - found.kept_bytes if budget.kind == "bytes" else prediction.sum_for(budget.value)


def spent(
    found: MapFile, units: Sequence[Unit], budget: Budget, prediction: Prediction, latency: Latency | None = None
) -> Allocation:
    """The best allocation within the budget.

    Raises:
        SubeightError: there is none; the message names the nearest budget that can be met.
    """
    limit = limit_of(found, budget, prediction, latency)
    least = least_loss(units) if budget.kind == "kl" else least_cost(units)
    if least > limit + abs(limit) * _SLACK:
        raise SubeightError(
            f"The budget of {budget.text} is infeasible with the map's formats, the engine and what was pinned and "
            f"forbidden; the nearest that can be met is "
            f"{_nearest(found, units, budget, prediction, latency)!r}."
        )
    return within_loss(units, limit) if budget.kind == "kl" else within_cost(units, limit)


def _nearest(
    found: MapFile, units: Sequence[Unit], budget: Budget, prediction: Prediction, latency: Latency | None
) -> str:
    """The smallest budget of this kind that can be met, as it would be typed."""
    if latency is not None:
        return f"latency {round_up(1e3 * (least_cost(units) + latency.rest)):.3f} ms"
    if budget.kind == "bits":
        return f"{round_up(8 * (least_cost(units) + found.kept_bytes) / found.weights):.3f} bits"
    if budget.kind == "bytes":
        least = least_cost(units) + found.kept_bytes
        name, scale = next(((n, s) for n, s in _SCALES if least >= s), ("B", 1.0))
        return f"{round_up(least / scale):.3f} {name}"
    formats = {
        place.name: min(unit.options, key=lambda option: option.loss).format for unit in units for place in unit.places
    }
    return f"kl {round_up(prediction.expected(formats).loss * (1 + 1e-6), 6):.6f}"
