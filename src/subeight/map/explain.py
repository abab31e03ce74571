"""Why a place got its bits, in words: its curve, the price of one more bit, what would change the decision, and doubts.

The measure of all decisions is what a byte (or a second) is worth at this budget (the price in the relaxed program): a
place is widened where that gains more than a byte does elsewhere. A doubt is where the map's own numbers speak against
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from subeight.map.allocation import Allocation
from subeight.map.choices import Option, Unit
from subeight.map.mapfile import RESCUE, Cell, MapFile

KEPT = "kept"
_CATEGORY = 2.0  # times the place's own mean, and
_UNUSUAL = 1.5  # times what that category is worse by elsewhere
_RANKS = 0.5  # of all places: between the rank by damage and the rank by rescue
_EDGE = 1e-6  # relative: what is tied at the price of a byte
_FEW = 4  # places: with fewer, ranks and medians say nothing


@dataclass(frozen=True)
class Explainer:
    """Explains the choices of one allocation; `worth` is what a byte more would save in summed loss.

    Costs are seconds in place of bytes where they are `timed`.
    """

    found: MapFile
    made: Allocation
    worth: float
    timed: bool = False

    def choices(self) -> list[dict[str, Any]]:
        """Every place with what it got and why, as it stands in a record."""
        pairs = zip(self.made.units, self.made.picks, strict=True)
        return [row for unit, pick in pairs for row in self._rows(unit, pick)]

    def _rows(self, unit: Unit, pick: int) -> list[dict[str, Any]]:
        option = unit.options[pick]
        reason, wider = self._reason(unit, pick), _wider(unit, pick)
        step = None
        if wider is not None:
            cost, gain = wider.cost - option.cost, option.loss - wider.loss
            step = {"format": wider.format, "price": cost, "gain": gain}
        rows = []
        for place in unit.places:
            cell = None if option.format is None else self.found.cell(place.name, option.format)
            doubts = self._doubts(unit, pick) + self._own_doubts(place.name, option.format, cell)
            rows.append(
                {
                    "place": place.name,
                    "format": option.format,
                    "bits": place.width(option.format),
                    "bytes": round(place.bytes(option.format)),
                    "kl": cell.loss if cell else 0.0,
                    "kl_ci": [cell.low, cell.high] if cell else [0.0, 0.0],
                    "next": step,
                    "reason": reason,
                    "doubts": doubts,
                }
            )
        return rows

    def _reason(self, unit: Unit, pick: int) -> str:
        option = unit.options[pick]
        got = option.format or KEPT
        if unit.pinned is not None:
            return f"{got}: pinned by {unit.pinned}."
        if len(unit.options) == 1:
            if not unit.places[0].inside and option.format is None:
                return "kept: it lies outside of the blocks, which budgets in bytes or milliseconds alone decide about."
            return f"{got}: nothing else is allowed here."
        together = f" ({len(unit.places)} places that the engine loads as one matrix)" if len(unit.places) > 1 else ""
        parts = [self._curve(unit, pick), self._widening(unit, pick), self._narrowing(unit, pick)]
        return f"{got}{together}: " + " ".join(part for part in parts if part)

    def _curve(self, unit: Unit, pick: int) -> str:
        steps = [
            f"{option.format or KEPT} {option.loss:.3g}{' (chosen)' if number == pick else ''}"
            for number, option in enumerate(unit.options)
        ]
        return f"it loses {', '.join(steps)}."

    def _widening(self, unit: Unit, pick: int) -> str:
        """The step to more bits that comes nearest to being worth it, and what would make it so."""
        steps = _steps(unit, pick, wider=True)
        if not steps:
            return ""
        step = max(steps, key=lambda one: one[1] / one[2])
        other, gain, cost = step
        bits = (other.bits - unit.options[pick].bits) or 1.0
        lead = f"Wider ({other.format or KEPT}) would gain"
        price = f"{self._size(cost)} ({self._size(cost / bits)} for one more bit)"
        if self.worth <= 0:
            return f"{lead} {gain:.3g} for {price}, and the budget is not what limits it."
        if gain <= 0:
            return f"{lead} nothing for {price}."
        needed = self.worth * cost
        if gain >= needed:
            return (
                f"{lead} {gain:.3g} for {price}, no less than elsewhere ({needed:.3g}): a little more would widen it."
            )
        return (
            f"{lead} {gain:.3g} for {price}, where as much gains {needed:.3g} elsewhere: it would change if the "
            f"gain were {needed / gain:.3g} times as large."
        )

    def _narrowing(self, unit: Unit, pick: int) -> str:
        steps = _steps(unit, pick, wider=False)
        if not steps or self.worth <= 0:
            return ""
        other, more, saved = min(steps, key=lambda one: one[1] / one[2])
        worth = self.worth * saved
        if more <= worth:
            return (
                f"Narrower ({other.format}) would lose {more:.3g} more and free {self._size(saved)}: it is on the edge."
            )
        return (
            f"Narrower ({other.format}) would lose {more:.3g} more and free {self._size(saved)}, worth {worth:.3g} "
            f"elsewhere: it would change if that were {worth / more:.2g} times what was measured."
        )

    def _size(self, cost: float) -> str:
        return f"{1e6 * cost:.3g} µs" if self.timed else _size(cost)

    def _doubts(self, unit: Unit, pick: int) -> list[str]:
        """Where the choice changes within the interval of one of its losses."""
        if unit.pinned is not None or len(unit.options) < 2 or self.worth <= 0:
            return []
        fine = {pick, *self._tied(unit)}
        changed = []
        for number, option in enumerate(unit.options):
            if option.format is None:
                continue
            for end in self._ends(unit, option.format):
                other = int(np.argmin(self._totals(unit, {number: end})))
                if other not in fine:
                    named = unit.options[other].format or KEPT
                    changed.append(f"{option.format} at {end:.3g} would make it {named}")
        if not changed:
            return []
        return [f"wide interval: the choice changes within it ({'; '.join(dict.fromkeys(changed))})"]

    def _tied(self, unit: Unit) -> list[int]:
        """The options that are best at what a byte is worth.

        Where the budget runs out they are two: that is an edge of the budget, not a doubt about the losses.
        """
        total = self._totals(unit, {})
        return np.flatnonzero(total <= total.min() + _EDGE * total.max()).tolist()

    def _totals(self, unit: Unit, changed: Mapping[int, float]) -> npt.NDArray[np.float64]:
        """Every option's loss and what its bytes are worth, with some losses changed."""
        losses = [changed.get(number, option.loss) for number, option in enumerate(unit.options)]
        return np.asarray(losses) + self.worth * np.asarray([option.cost for option in unit.options])

    def _ends(self, unit: Unit, format: str) -> tuple[float, float]:
        """The summed loss of a unit at the two ends of its interval, errors of its places taken as independent."""
        cells = [cell for place in unit.places if (cell := self.found.cell(place.name, format)) is not None]
        loss = unit.options[unit.at(format)].loss
        below = float(np.sqrt(sum((cell.loss - cell.low) ** 2 for cell in cells)))
        above = float(np.sqrt(sum((cell.high - cell.loss) ** 2 for cell in cells)))
        return max(loss - below, 0.0), loss + above

    def _own_doubts(self, place: str, format: str | None, cell: Cell | None) -> list[str]:
        found = []
        if cell is not None and format is not None and cell.loss > 0:
            usual = self._categories.get(format, {})
            for name, mean in sorted(cell.categories.items(), key=lambda item: -item[1]):
                factor = mean / cell.loss
                if factor > _CATEGORY and factor > _UNUSUAL * usual.get(name, factor):
                    found.append(f"{name} loses {factor:.2g} times the average here, which the average hides")
        if place in self._disagreement:
            found.append(self._disagreement[place])
        return found

    @cached_property
    def _categories(self) -> dict[str, dict[str, float]]:
        """By how much each category is usually worse than the mean, per format."""
        factors: dict[str, dict[str, list[float]]] = {}
        for (_, format, view), cell in self.found.cells.items():
            if view == RESCUE or cell.loss <= 0:
                continue
            for name, mean in cell.categories.items():
                factors.setdefault(format, {}).setdefault(name, []).append(mean / cell.loss)
        return {
            format: {name: median(values) for name, values in own.items() if len(values) >= _FEW}
            for format, own in factors.items()
        }

    @cached_property
    def _disagreement(self) -> dict[str, str]:
        """Places that lose much alone and give back little when they are restored, or the other way round."""
        words: dict[str, str] = {}
        for format in self.found.formats:
            rows = [
                (place.name, damage.loss, self.found.whole[format].loss - rescue.loss)
                for place in self.found.places
                if (rescue := self.found.cell(place.name, format, RESCUE)) is not None
                and (damage := self.found.cell(place.name, format)) is not None
            ]
            if len(rows) < _FEW:
                continue
            alone = _ranks([row[1] for row in rows])
            back = _ranks([row[2] for row in rows])
            for (name, damage_loss, given), a, b in zip(rows, alone, back, strict=True):
                if abs(a - b) > _RANKS:
                    words[name] = (
                        f"damage and rescue disagree at {format}: alone it loses {damage_loss:.3g} (more than "
                        f"{a:.0%} of the places), restored it gives back {given:.3g} (more than {b:.0%})"
                    )
        return words


def _wider(unit: Unit, pick: int) -> Option | None:
    """The next option with more bits that loses less."""
    here = unit.options[pick]
    return next((o for o in unit.options[pick + 1 :] if o.cost > here.cost and o.loss < here.loss), None)


def _steps(unit: Unit, pick: int, *, wider: bool) -> list[tuple[Option, float, float]]:
    """Other options with what they differ by in loss and in cost, both counted from the chosen one."""
    here = unit.options[pick]
    sign = 1 if wider else -1
    pairs = [(o, sign * (here.loss - o.loss), sign * (o.cost - here.cost)) for o in unit.options]
    return [pair for pair in pairs if pair[2] > 0]


def _ranks(values: Sequence[float]) -> list[float]:
    """The share of the others that are smaller."""
    ordered = np.sort(np.asarray(values))
    return [float(np.searchsorted(ordered, value)) / max(len(values) - 1, 1) for value in values]


def _size(count: float) -> str:
    for name, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {name}"
    return f"{count:.0f} B"
