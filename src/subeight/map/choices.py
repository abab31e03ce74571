"""What may be chosen where: the options of every unit after the engine, the pins and the forbiddings have spoken.

A unit is a place, or several that the engine loads as one matrix. A place that is kept loses nothing and costs what it
takes now. Losses are made monotone first: where noise says that a wider format loses more, both get their mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from subeight.errors import InputError
from subeight.map.mapfile import MapFile, MapPlace

KEEP = "keep"
FUSING = ("vllm", "sglang")  # they load q/k/v and gate/up as one matrix of one format
EXPERTS = "all experts"
CostOf = Callable[[MapPlace, str | None], float]


@dataclass(frozen=True)
class Option:
    """One format of a unit (None: kept), what it costs and what it loses."""

    format: str | None
    bits: float
    cost: float
    loss: float


@dataclass(frozen=True)
class Unit:
    """Places that are decided together. `counted` tells whether its bytes are in the budget."""

    places: tuple[MapPlace, ...]
    options: tuple[Option, ...]  # the narrowest first
    counted: bool
    pinned: str | None = None

    @property
    def name(self) -> str:
        if len(self.places) == 1:
            return self.places[0].name
        fusions = {place.fusion for place in self.places}
        return str(self.places[0].fusion) if len(fusions) == 1 else EXPERTS

    def at(self, format: str | None) -> int:
        """The number of the option with this format."""
        return next(number for number, option in enumerate(self.options) if option.format == format)


@dataclass(frozen=True)
class Wish:
    """A pin or a forbidding: `GLOB=FORMAT` as it was typed; `format` None is kept."""

    text: str
    glob: str
    format: str | None

    def names(self, place: MapPlace) -> bool:
        """Whether it means this place, by its own name or by that of one of its linears."""
        return any(fnmatchcase(name, self.glob) for name in (place.name, *place.linears))


def bytes_of(place: MapPlace, format: str | None) -> float:
    """The cost that budgets are given in."""
    return place.bytes(format)


def wishes(texts: Sequence[str], found: MapFile, option: str) -> tuple[Wish, ...]:
    """Pins or forbiddings, read strictly.

    Raises:
        InputError: not GLOB=FORMAT, a format that the map does not have, a glob that matches nothing.
    """
    return tuple(_wish(text, found, option) for text in texts)


def _wish(text: str, found: MapFile, option: str) -> Wish:
    glob, equals, format = (part.strip() for part in text.rpartition("="))
    if not equals or not glob or not format:
        raise InputError(
            f"{option} was given {text!r}; say GLOB=FORMAT, for instance '*.down_proj={found.formats[0]}'."
        )
    wish = Wish(text, glob, _format(format, found, option))
    if not any(wish.names(place) for place in found.places):
        raise InputError(
            f"{option} was given {text!r}, which matches no place of the map; patterns are globs on full names such "
            f"as {found.places[0].linears[0]}."
        )
    return wish


def _format(text: str, found: MapFile, option: str) -> str | None:
    if text == KEEP:
        return None
    close = [format for format in found.formats if format == text] or [
        format for format in found.formats if format.startswith(f"{text}:")
    ]
    if len(close) != 1:
        allowed = ", ".join(found.formats)
        raise InputError(f"{option} was given the format {text!r}; the map has {allowed}, and {KEEP} is allowed too.")
    return close[0]


def monotone(place: MapPlace, found: MapFile) -> dict[str, float]:
    """The losses of a place by format, none larger than that of a narrower one; formats not measured are left out."""
    measured = {format: cell for format in found.formats if (cell := found.cell(place.name, format)) is not None}
    best: dict[float, str] = {}
    for format, cell in measured.items():
        width = place.bits[format]
        if width not in best or cell.loss < measured[best[width]].loss:
            best[width] = format
    order = [best[width] for width in sorted(best)]  # the narrowest first: losses must fall
    weights = [1 / max(measured[format].relative, 1e-3) ** 2 for format in order]
    values = falling([max(measured[format].loss, 0.0) for format in order], weights)
    clean = dict(zip(order, values, strict=True))
    for format, cell in measured.items():
        clean.setdefault(format, max(cell.loss, clean[best[place.bits[format]]]))
    return clean


def falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest falling sequence by weighted squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (b, v, n), (a, w, m) = pools.pop(), pools.pop()
            pools.append(((a * w + b * v) / (w + v), w + v, m + n))
    return [value for value, _, count in pools for _ in range(count)]


def units_of(
    found: MapFile,
    *,
    engine: str = "any",
    pins: Sequence[Wish] = (),
    forbids: Sequence[Wish] = (),
    outside: bool = False,
    cost: CostOf = bytes_of,
) -> list[Unit]:
    """All that is to be decided. With `outside` embeddings and head are too; else they stay unless they are pinned.

    Raises:
        InputError: pins, forbiddings and engine leave a place no format.
    """
    groups: dict[str, list[MapPlace]] = {}
    for place in found.places:
        together = _together(place, engine)
        groups.setdefault(f"fusion {together}" if together else f"place {place.name}", []).append(place)
    return [_unit(tuple(places), found, engine, pins, forbids, outside, cost) for places in groups.values()]


def _together(place: MapPlace, engine: str) -> str | None:
    """What a place shares its format with.

    What the engine fuses; all experts, for which checkpoints say one format; of a GGUF the experts of a block, kind by
    kind, which are one tensor.
    """
    if not place.inside or engine not in (*FUSING, "gguf"):
        return None
    if engine == "gguf":
        kinds = sorted({name.rpartition(".")[2] for name in place.linears})
        return f"{place.fusion} {'+'.join(kinds)}" if place.kind == "expert" else None
    return EXPERTS if place.kind == "expert" else place.fusion


def _unit(
    places: tuple[MapPlace, ...],
    found: MapFile,
    engine: str,
    pins: Sequence[Wish],
    forbids: Sequence[Wish],
    outside: bool,
    cost: CostOf,
) -> Unit:
    pin = next((wish for wish in reversed(pins) if any(wish.names(place) for place in places)), None)
    losses = [monotone(place, found) for place in places]
    allowed: list[str | None] = [
        f for f in found.formats if all(f in own for own in losses) and _runs(places, f, engine)
    ]
    if pin is not None or engine not in FUSING or places[0].kind != "expert" or not allowed:
        allowed.append(None)  # experts in full precision beside quantized linears are loaded by no such engine
    banned = {wish.format for wish in forbids if any(wish.names(place) for place in places)}
    asked = [format for format in allowed if format not in banned]
    if pin is not None:
        asked = [format for format in asked if format == pin.format]
    elif not outside and not places[0].inside:
        asked = [None]
    if not asked:
        raise InputError(_nothing_left(places[0], pin, allowed, engine))
    weights = sum(place.weights for place in places)
    options = [
        Option(
            format,
            sum(place.width(format) * place.weights for place in places) / weights,
            sum(cost(place, format) for place in places),
            0.0 if format is None else sum(own[format] for own in losses),
        )
        for format in asked
    ]
    counted = outside or places[0].inside
    ordered = tuple(sorted(options, key=lambda option: (option.bits, option.loss)))
    return Unit(places, ordered, counted, None if pin is None else pin.text)


def _runs(places: Sequence[MapPlace], format: str, engine: str) -> bool:
    return engine == "any" or all(engine in place.runs_in.get(format, ()) for place in places)


def _nothing_left(place: MapPlace, pin: Wish | None, allowed: Sequence[str | None], engine: str) -> str:
    can = ", ".join(format or KEEP for format in allowed)
    if pin is None:
        return f"--forbid leaves no format for {place.name}, which could be {can} in {engine}; forbid less."
    return (
        f"--pin {pin.text} asks {place.name} for a format that the engine {engine} cannot run there or --forbid takes "
        f"away; without --forbid it could be {can}."
    )


def arrays(units: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every option in order: its unit's number, its cost inside the budget, its loss."""
    owner = np.concatenate([np.full(len(unit.options), number) for number, unit in enumerate(units)])
    cost = np.asarray([option.cost if unit.counted else 0.0 for unit in units for option in unit.options])
    loss = np.asarray([option.loss for unit in units for option in unit.options])
    return owner, cost, loss


def round_up(value: float, digits: int = 3) -> float:
    """A shown budget that is enough: never below `value`."""
    return math.ceil(value * 10**digits - 1e-9) / 10**digits
