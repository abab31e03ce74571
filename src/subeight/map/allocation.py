"""The allocation: one option for every unit, the least summed loss at a cost, or the least cost at a loss.

An integer program, solved exactly by HiGHS (scipy.optimize.milp). Options that another of their unit beats in both are
left out first. Both sums are scaled, so that the solver's tolerances lie below a byte and below any loss that is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from subeight.errors import SubeightError
from subeight.map.choices import Option, Unit, arrays
from subeight.map.silence import silent_stdout

_SCALE = 1e4  # of the largest sum: HiGHS's tolerances are absolute, 1e-6
_SLACK = 1e-9  # relative: a sum of floats is not decided by its last digits
_TRIES = 4


@dataclass(frozen=True)
class Allocation:
    """What every unit got, by the number of its option."""

    units: tuple[Unit, ...]
    picks: tuple[int, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(unit.options[pick] for unit, pick in zip(self.units, self.picks, strict=True))

    @property
    def cost(self) -> float:
        """What the units in the budget cost."""
        return sum(o.cost for unit, o in zip(self.units, self.options, strict=True) if unit.counted)

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(option.loss for option in self.options)

    def inside(self, kept: tuple[int, float] = (0, 0.0)) -> tuple[float, float]:
        """Bytes and bits per weight of the blocks; `kept` are the weights and bytes of what is no place."""
        held = [(p, o.format) for u, o in zip(self.units, self.options, strict=True) for p in u.places if p.inside]
        size = kept[1] + sum(place.bytes(format) for place, format in held)
        return size, 8 * size / (kept[0] + sum(place.weights for place, _ in held))

    def formats(self) -> dict[str, str | None]:
        """The format of every place by its name; None is kept."""
        pairs = zip(self.units, self.options, strict=True)
        return {place.name: option.format for unit, option in pairs for place in unit.places}


def least_cost(units: Sequence[Unit]) -> float:
    """The smallest budget that can be met."""
    return sum(min(option.cost for option in unit.options) for unit in units if unit.counted)


def least_loss(units: Sequence[Unit]) -> float:
    """The smallest summed loss that can be met."""
    return sum(min(option.loss for option in unit.options) for unit in units)


def within_cost(units: Sequence[Unit], budget: float) -> Allocation:
    """The least summed loss at a cost of at most `budget`.

    Raises:
        SubeightError: even the cheapest options cost more.
    """
    if least_cost(units) > budget * (1 + _SLACK):
        raise SubeightError(f"The budget is infeasible: the least that can be met is {least_cost(units):,.0f}.")
    owner, cost, loss = arrays(units)
    return _solved(units, owner, loss, cost, budget)


def within_loss(units: Sequence[Unit], most: float) -> Allocation:
    """The least cost at a summed loss of at most `most`.

    Raises:
        SubeightError: even the most careful options lose more.
    """
    if least_loss(units) > most * (1 + _SLACK):
        raise SubeightError(f"The budget is infeasible: the least that can be lost is {least_loss(units):.4g}.")
    owner, cost, loss = arrays(units)
    return _solved(units, owner, cost, loss, most)


def worth(units: Sequence[Unit], budget: float) -> float:
    """What one more unit of cost would save in summed loss at this budget: the price in the relaxed program."""
    owner, cost, loss = arrays(units)
    top, scale = _largest(owner, cost), _largest(owner, loss)
    result = linprog(
        loss * (_SCALE / scale),
        A_ub=csr_array(cost[None, :] * (_SCALE / top)),
        b_ub=[budget * (_SCALE / top)],
        A_eq=_one_each(owner),
        b_eq=np.ones(len(units)),
        bounds=(0, 1),
        method="highs",
    )
    return 0.0 if result.status != 0 else float(-result.ineqlin.marginals[0]) * scale / top


def _solved(units: Sequence[Unit], owner: np.ndarray, goal: np.ndarray, spent: np.ndarray, limit: float) -> Allocation:
    """Minimises `goal` with `spent` at most `limit`; ties go to what spends less."""
    left = np.flatnonzero(_unbeaten(owner, goal, spent))
    top, scale = max(_largest(owner, spent), 1e-300), max(_largest(owner, goal), 1e-300)
    allowed = limit
    for _ in range(_TRIES):
        rows = vstack([_one_each(owner[left]), csr_array(spent[left][None, :] * (_SCALE / top))])
        ends = np.ones(len(units))
        with silent_stdout():
            result = milp(
                goal[left] * (_SCALE / scale),
                constraints=LinearConstraint(
                    rows, np.append(ends, -np.inf), np.append(ends, min(allowed * (_SCALE / top), 2 * _SCALE))
                ),
                integrality=np.ones(len(left)),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if result.status != 0:
            break
        taken = left[result.x > 0.5]
        over = float(spent[taken].sum()) - limit
        if over <= _SLACK * limit:
            return Allocation(tuple(units), tuple(_numbers(owner, taken)))
        allowed -= 2 * over  # the solver's own tolerance let it through
    raise SubeightError(f"The solver found no allocation ({result.message}); give a budget that is a little larger.")


def _numbers(owner: np.ndarray, taken: np.ndarray) -> list[int]:
    """The options taken, counted within their units."""
    first = np.searchsorted(owner, owner[taken])
    return [int(number) for number in taken - first]


def _one_each(owner: np.ndarray) -> csr_array:
    return csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(int(owner.max()) + 1, len(owner)))


def _largest(owner: np.ndarray, values: np.ndarray) -> float:
    most = np.zeros(int(owner.max()) + 1)
    np.maximum.at(most, owner, values)
    return float(most.sum()) or 1.0


def _unbeaten(owner: np.ndarray, goal: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """Options that no other of their unit beats in one sum without being worse in the other."""
    keep = np.ones(len(owner), dtype=bool)
    for number in range(int(owner.max()) + 1):
        mine = np.flatnonzero(owner == number)
        best = np.inf
        for at in mine[np.lexsort((goal[mine], spent[mine]))]:
            keep[at] = goal[at] < best
            best = min(best, goal[at])
    return keep
