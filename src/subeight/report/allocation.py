"""What a record of `allocate` says, as small nouns: which format each place got and why, what is expected, the front.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subeight.records import Record
from subeight.report.facts import Measure, mapping, mappings, measure, number, text
from subeight.report.places import Spot, spots_of

KEPT = "kept"


@dataclass(frozen=True)
class Choice:
    """What one place got, and what the next wider format would bring for how many bytes."""

    spot: Spot
    format: str
    bits: float | None
    bytes: float | None
    loss: Measure
    next: str
    price: float | None
    gain: float | None
    reason: str
    doubts: tuple[str, ...]

    @property
    def rate(self) -> float:
        """What a byte more would gain here."""
        return self.gain / self.price if self.gain is not None and self.price else -math.inf


@dataclass(frozen=True)
class Point:
    """A recipe by its size and its loss; `measured` tells if the loss was measured or is expected."""

    name: str
    bits: float | None
    bytes: float | None
    loss: Measure
    counts: Mapping[str, Any]
    measured: bool

    @property
    def uniform(self) -> bool:
        """Whether it is one format for all places, by its name; the others are heuristics."""
        name = self.name.lower()
        return (
            not re.search("heur|first|last|ends", name) and re.match(r"(uniform\W*)?([a-z]+\d|kept)", name) is not None
        )


@dataclass(frozen=True)
class Pair:
    """Two places and what they lose together beyond what each loses alone."""

    a: str
    b: str
    alone: tuple[float | None, ...]
    together: float | None
    interaction: Measure


@dataclass(frozen=True)
class Verified:
    """The recipe applied to the whole model and measured."""

    loss: Measure
    heldout: Measure
    within: bool | None
    heldout_within: bool | None
    ratio: float | None
    additivity: float | None
    pairs: tuple[Pair, ...]
    corrected: Mapping[str, Any]


@dataclass(frozen=True)
class Allocation:
    """All of an allocation."""

    budget: str
    engine: str
    pins: tuple[str, ...]
    forbids: tuple[str, ...]
    choices: tuple[Choice, ...]
    bits: float | None
    bytes: float | None
    sum: float | None
    predicted: Measure
    additivity: float | None
    front: tuple[Point, ...]
    measured: tuple[Point, ...]
    rivals: tuple[Point, ...]
    prices: tuple[tuple[str, float | None], ...]
    verified: Verified | None
    recipe: str

    @property
    def formats(self) -> list[tuple[str, int]]:
        """Every format that was given with how many places got it, the narrowest first, the kept last."""
        found = Counter(choice.format for choice in self.choices)
        bits: dict[str, float] = {}
        for choice in self.choices:
            bits[choice.format] = min(bits.get(choice.format, math.inf), choice.bits or math.inf)
        return sorted(found.items(), key=lambda pair: (pair[0] == KEPT, bits[pair[0]], pair[0]))

    @property
    def closest(self) -> list[Choice]:
        """The places where a byte more would gain most: the next that a larger budget would widen."""
        known = [choice for choice in self.choices if choice.rate > -math.inf]
        return sorted(known, key=lambda choice: -choice.rate)

    def interpolated(self) -> tuple[float, Point, Point] | None:
        """What a uniform recipe of this size would lose: log loss between the two neighbours, and these."""
        known = [p for p in self.rivals if p.bits is not None and (p.loss.value or 0) > 0 and p.uniform]
        below = max((p for p in known if (p.bits or 0) <= (self.bits or 0)), key=lambda p: p.bits or 0, default=None)
        above = min((p for p in known if (p.bits or 0) > (self.bits or 0)), key=lambda p: p.bits or 0, default=None)
        if self.bits is None or below is None or above is None:
            return None
        way = (self.bits - (below.bits or 0)) / ((above.bits or 0) - (below.bits or 0))
        logs = [math.log(point.loss.value or 1) for point in (below, above)]
        return math.exp(logs[0] + way * (logs[1] - logs[0])), below, above


def allocation(record: Record) -> Allocation:
    """The allocation of a record."""
    numbers = record.numbers
    predicted = mapping(numbers.get("predicted"))
    budget = mapping(numbers.get("budget"))
    choices = [item for item in mappings(numbers.get("choices")) if item.get("place")]
    spots = spots_of(choices, "place")
    return Allocation(
        budget=text(budget.get("text")) or text(budget.get("value")),
        engine=text(numbers.get("engine")),
        pins=_texts(numbers.get("pins")),
        forbids=_texts(numbers.get("forbids")),
        choices=tuple(_choice(item, spots) for item in choices),
        bits=number(numbers.get("bits_per_weight")),
        bytes=number(numbers.get("bytes")),
        sum=number(predicted.get("sum")),
        predicted=_or_sum(predicted),
        additivity=number(predicted.get("additivity")),
        front=tuple(_point(item) for item in mappings(numbers.get("front"))),
        measured=tuple(_point(item) for item in mappings(numbers.get("measured"))),
        rivals=tuple(_point(item) for item in mappings(numbers.get("rivals"))),
        prices=tuple(
            (text(row.get("pin")) or text(row.get("forbid")), number(row.get("price")))
            for row in mappings(numbers.get("price_of_pins"))
        ),
        verified=_verified(mapping(numbers.get("verified"))),
        recipe=text(numbers.get("recipe")),
    )


def _choice(item: Mapping[str, Any], spots: Mapping[str, Spot]) -> Choice:
    wider = mapping(item.get("next"))
    return Choice(
        spots[text(item.get("place"))],
        text(item.get("format")) or KEPT,
        number(item.get("bits")),
        number(item.get("bytes")),
        measure(item, "kl"),
        text(wider.get("format")) or (KEPT if wider else ""),
        number(wider.get("price")),
        number(wider.get("gain")),
        text(item.get("reason")),
        _texts(item.get("doubts")),
    )


def _point(item: Mapping[str, Any]) -> Point:
    """A measured loss may stand beside the expected one or in its place, with `measured: true`."""
    seen = item.get("measured")
    found = _or_sum(item)
    if isinstance(seen, Mapping):
        found = measure(seen, "kl")
    elif (value := number(seen)) is not None:
        found = Measure(value)
    return Point(
        text(item.get("name"), "?"),
        number(item.get("bits_per_weight")),
        number(item.get("bytes")),
        found,
        mapping(item.get("counts")),
        bool(seen),
    )


def _or_sum(item: Mapping[str, Any]) -> Measure:
    found = measure(item, "kl")
    return found if found.value is not None else Measure(number(item.get("sum")))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text(item) for item in value if item) if isinstance(value, list) else ()


def _verified(item: Mapping[str, Any]) -> Verified | None:
    if not item:
        return None
    pairs = [_pair(pair) for pair in mappings(item.get("pairs"))]
    heldout = mapping(item.get("heldout"))
    return Verified(
        measure(item, "kl"),
        measure(heldout, "kl"),
        _said(item.get("within")),
        _said(heldout.get("within")),
        number(item.get("ratio")),
        number(item.get("additivity")),
        tuple(sorted(pairs, key=lambda pair: -abs(pair.interaction.value or 0))),
        mapping(item.get("corrected")),
    )


def _said(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _pair(item: Mapping[str, Any]) -> Pair:
    alone = item.get("alone")
    return Pair(
        text(item.get("a"), "?"),
        text(item.get("b"), "?"),
        tuple(number(loss) for loss in alone[:2]) if isinstance(alone, list) else (),
        number(item.get("together")),
        measure(item, "interaction"),
    )
