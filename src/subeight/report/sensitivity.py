"""What a record of `map` says, as small nouns: what each place loses in each format, and how well that is known.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from subeight.records import Record
from subeight.report import words
from subeight.report.diagnosis import METRICS
from subeight.report.facts import Measure, mapping, mappings, measure, number, text, whole
from subeight.report.places import Spot, spots_of

_MANY = 3000


@dataclass(frozen=True)
class Cell:
    """One place in one format: the loss, and what it was expected to be before it was measured."""

    spot: Spot
    format: str
    bits: float | None
    loss: Measure
    tokens: int | None
    prior: float | None
    output_error: float | None
    categories: Mapping[str, float]

    @property
    def value(self) -> float:
        """The loss; only cells that have one are kept."""
        return self.loss.value or 0.0


@dataclass(frozen=True)
class Whole:
    """A model with many places quantized: the sum of what they lose alone, and what it loses."""

    format: str | None  # of all places; None where each has its own
    sum: float
    loss: Measure


@dataclass(frozen=True)
class Sensitivity:
    """All of a map. `damage` and `rescue` are by place and format; rescue is what the rest still loses."""

    formats: tuple[str, ...]
    by: str
    metric: str
    methods: tuple[str, ...]
    spots: Mapping[str, Spot]
    damage: Mapping[tuple[str, str], Cell]
    rescue: Mapping[tuple[str, str], Cell]
    whole: Mapping[str, Measure]
    mixtures: tuple[tuple[Mapping[str, Any], Measure], ...]
    controls: Mapping[str, Any]
    cost: Mapping[str, Any]
    ranks: Mapping[str, Mapping[str, Any]]

    @property
    def axis(self) -> str:
        """What the loss is, for an axis."""
        return METRICS.get(self.metric.split(":")[0], self.metric)

    @property
    def outside(self) -> list[Spot]:
        """Embeddings and head."""
        return [spot for spot in self.spots.values() if spot.block is None]

    @property
    def narrowest(self) -> str | None:
        """The last format in which anything was measured."""
        return next((format for format in reversed(self.formats) if self.ranked(format)), None)

    def ranked(self, format: str) -> list[Cell]:
        """The damages in this format, the largest first."""
        mine = [cell for (_, of), cell in self.damage.items() if of == format]
        return sorted(mine, key=lambda cell: -cell.value)

    def middle(self, format: str) -> float | None:
        """The median damage of the format."""
        cells = self.ranked(format)
        return median(cell.value for cell in cells) if cells else None

    def concentration(self, format: str) -> tuple[int, float] | None:
        """How many places of the blocks are the worst tenth, and which share of the summed damage they hold."""
        losses = [max(0.0, cell.value) for cell in self.ranked(format) if cell.spot.block is not None]
        few = math.ceil(len(losses) / 10)
        return (few, sum(losses[:few]) / sum(losses)) if len(losses) >= 10 and sum(losses) > 0 else None

    def added(self) -> list[Whole]:
        """The uniform models and the mixtures beside the sums of their cells."""
        blocks = {name for name, spot in self.spots.items() if spot.block is not None}
        uniform = [(format, dict.fromkeys(blocks, format), loss) for format, loss in self.whole.items()]
        found = []
        for name, formats, loss in [*uniform, *((None, formats, loss) for formats, loss in self.mixtures)]:
            cells = [self.damage.get((place, text(format))) for place, format in formats.items() if format]
            total = sum(cell.spot.stands_for * max(0.0, cell.value) for cell in cells if cell is not None)
            if loss.value is not None and loss.value > 0 and total > 0:
                found.append(Whole(name, total, loss))
        return found

    def regained(self, cell: Cell) -> Measure | None:
        """What restoring the place gives back, where everything in the blocks is in the format of this damage."""
        left, all_ = self.rescue.get((cell.spot.name, cell.format)), self.whole.get(cell.format)
        if left is None or all_ is None or all_.value is None:
            return None
        ends = [None if end is None else all_.value - end for end in (left.loss.high, left.loss.low)]
        return Measure(all_.value - left.value, ends[0], ends[1])


def sensitivity(record: Record) -> Sensitivity:
    """The map of a record."""
    numbers = record.numbers
    cells = mappings(numbers.get("cells"))
    places = mappings(numbers.get("places"))
    spots = spots_of([*({"name": cell.get("place")} for cell in cells), *places], "name")
    bits = {text(place.get("name")): mapping(place.get("bits")) for place in places}
    listed = [text(format) for format in _list(numbers.get("formats"))]
    formats = list(dict.fromkeys([*listed, *(text(cell.get("format")) for cell in cells if cell.get("format"))]))
    read = [(text(item.get("view")), _cell(item, spots, bits)) for item in cells if item.get("place")]
    return Sensitivity(
        formats=tuple(formats),
        by=text(numbers.get("by")),
        metric=text(numbers.get("metric"), "kl"),
        methods=tuple(_method(method) for method in _list(numbers.get("methods"))),
        spots={name: spot for name, spot in spots.items() if name},
        damage=_view(read, "damage"),
        rescue=_view(read, "rescue"),
        whole={text(format): measure(mapping(v), "kl") for format, v in mapping(numbers.get("whole")).items()},
        mixtures=tuple((mapping(m.get("formats")), measure(m, "kl")) for m in mappings(numbers.get("mixtures"))),
        controls=mapping(numbers.get("controls")),
        cost=mapping(numbers.get("cost")),
        ranks={text(format): mapping(found) for format, found in mapping(numbers.get("priors")).items()},
    )


def hover(cell: Cell, axis: str) -> list[str]:
    """What is said of a cell, a line each; escaped by who draws it."""
    ends = words.interval(cell.loss.value, cell.loss.low, cell.loss.high)
    lines = [f"{cell.format}: {words.significant(cell.loss.value)}" + (f" ({ends})" if ends else ""), axis]
    if cell.tokens is not None:
        lines.append(f"on {cell.tokens:,} tokens")
    if cell.prior is not None:
        lines.append(f"expected {words.significant(cell.prior)}")
    if cell.categories:
        name = max(cell.categories, key=lambda name: cell.categories[name])
        lines.append(f"worst on {name}: {words.significant(cell.categories[name])}")
    return lines


def worst_of_each(cells: Sequence[Cell]) -> list[Cell]:
    """All cells, or the largest of each block, role and format when a figure cannot show so many (experts)."""
    if len(cells) <= _MANY:
        return list(cells)
    largest: dict[tuple[int | None, str, str], Cell] = {}
    for cell in cells:
        key = (cell.spot.block, cell.spot.role, cell.format)
        if key not in largest or cell.value > largest[key].value:
            largest[key] = cell
    return list(largest.values())


def _cell(item: Mapping[str, Any], spots: Mapping[str, Spot], bits: Mapping[str, Mapping[str, Any]]) -> Cell:
    name, format = text(item.get("place")), text(item.get("format"))
    stored = number(bits.get(name, {}).get(format))
    named = re.match(r"[a-z]+(\d+)", format)
    categories = {text(k): number(v) for k, v in mapping(item.get("categories")).items()}
    return Cell(
        spots[name],
        format,
        float(named.group(1)) if stored is None and named else stored,
        measure(item, "kl"),
        whole(item.get("tokens")),
        number(item.get("prior")),
        number(item.get("output_error")),
        {name: value for name, value in categories.items() if value is not None},
    )


def _view(read: Sequence[tuple[str, Cell]], view: str) -> dict[tuple[str, str], Cell]:
    known = [cell for of, cell in read if of == view and cell.loss.value is not None and cell.format]
    return {(cell.spot.name, cell.format): cell for cell in known}


def _method(method: Any) -> str:
    return "+".join(text(name) for name in method) if isinstance(method, Mapping) else text(method)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
