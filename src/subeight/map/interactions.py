"""Which places hurt each other: what two lose together beyond what each loses alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from subeight.evals.loss import Loss
from subeight.evals.stats import Interval
from subeight.map.mapfile import DAMAGE, MapFile
from subeight.probe.probe import Probe
from subeight.probe.swaps import Swaps

Group = tuple[str, tuple[str, ...]]  # a place's name, and its linears


@dataclass(frozen=True)
class Pair:
    """Two places, quantized as the candidate has them; `interaction` in nats per token (or in the metric)."""

    a: str
    b: str
    alone: tuple[float, float]
    together: float
    interaction: Interval

    @property
    def is_real(self) -> bool:
        """Whether the interval of the interaction leaves out 0."""
        low, high = self.interaction.ci or [0.0, 0.0]
        return low > 0 or high < 0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "a": self.a,
            "b": self.b,
            "alone": list(self.alone),
            "together": self.together,
            "interaction": self.interaction.value,
            "interaction_ci": self.interaction.ci,
            "real": self.is_real,
        }


def interactions(
    probe: Probe, groups: Sequence[Group], seed: int = 0, advance: Callable[[], None] = lambda: None
) -> list[Pair]:
    """All pairs of some places, the strongest first; each is quantized in the baseline, all else exact.

    `advance` is called after each of n (n + 1) / 2 measurements.
    """
    alone = {}
    for name, linears in groups:
        alone[name] = _damage(probe, linears)
        advance()
    pairs = []
    for (a, first), (b, second) in combinations(groups, 2):
        both = _damage(probe, (*first, *second))
        advance()
        extra = both.minus(alone[a]).minus(alone[b])
        pairs.append(Pair(a, b, (alone[a].value, alone[b].value), both.value, extra.interval(seed)))
    return sorted(pairs, key=lambda pair: -abs(pair.interaction.value))


def doubts_of(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """What the sum of single losses does not say of a place, by its name."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        for place, other in ((pair.a, pair.b), (pair.b, pair.a)) if pair.is_real else ():
            extra = pair.interaction.value
            how = "more" if extra > 0 else "less"
            said = f"strong interaction: with {other} it loses {abs(extra):.3g} {how} than both alone"
            found.setdefault(place, []).append(said)
    return found


def with_pairs(found: MapFile, pairs: Sequence[Pair], formats: Mapping[str, str | None]) -> MapFile:
    """The map with half of every real interaction in either cell, as these formats have it; no loss below 0."""
    cells = dict(found.cells)
    for pair in pairs:
        for place in (pair.a, pair.b) if pair.is_real else ():
            key = (place, str(formats[place]), DAMAGE)
            shift = pair.interaction.value / 2
            cell = cells[key]
            loss, low, high = (max(0.0, value + shift) for value in (cell.loss, cell.low, cell.high))
            cells[key] = replace(cell, loss=loss, low=low, high=high)
    return replace(found, cells=cells)


def _damage(probe: Probe, linears: Sequence[str]) -> Loss:
    return probe.damage(Swaps(weights=frozenset(linears)))
