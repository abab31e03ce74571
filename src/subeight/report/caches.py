"""What a record of `kv` says, as small nouns: what each policy costs on each checkpoint, and what a budget bought.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subeight.records import Record
from subeight.report import words
from subeight.report.facts import Measure, last_part, mapping, mappings, measure, number, text, whole

FULL, NONE = "full", "none"  # the names of full weights, and of full keys and values
SIDES = ("keys", "values")
_MOST = 10_000  # layers


@dataclass(frozen=True)
class Part:
    """A part of the context with its mean KL."""

    start: int
    stop: int
    kl: float

    @property
    def middle(self) -> float:
        """Where it is drawn."""
        return (self.start + self.stop) / 2


@dataclass(frozen=True)
class Asked:
    """Prompts with so many hidden numbers at one depth, and in how many of them all were found."""

    count: int
    depth: float
    found: int
    asked: int


@dataclass(frozen=True)
class Cell:
    """One checkpoint under one policy at one context."""

    weights: str
    policy: str
    context: int | None
    kl: Measure
    ppl: Measure
    cache: float | None
    parts: tuple[Part, ...]
    share: Measure
    asked: tuple[Asked, ...]
    agreement: float | None


@dataclass(frozen=True)
class Held:
    """Bits of keys and of values under a policy, bytes of its cache by context, and where it outweighs weights."""

    policy: str
    bits: float | None
    keys: float | None
    values: float | None
    bytes: Mapping[int, float]
    outweighs: Mapping[str, int | None]


@dataclass(frozen=True)
class Alone:
    """The loss of the keys or the values of one layer, rounded alone."""

    layer: int
    side: str
    format: str
    kl: Measure


@dataclass(frozen=True)
class Granted:
    """What a budget bought: formats by layer for keys and for values."""

    name: str
    policy: str
    bits: float | None
    expected: float | None
    sides: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Together:
    """Weights and cache of one combination against a budget of bytes."""

    weights: str
    policy: str
    weight_bytes: float | None
    cache_bytes: float | None
    fits: bool
    longest: int | None
    kl: float | None

    @property
    def bytes(self) -> float | None:
        """Both."""
        return None if self.weight_bytes is None or self.cache_bytes is None else self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Joint:
    """All combinations against one budget, `best` first among those that fit."""

    memory: float | None
    length: int | None
    batch: int | None
    measured_at: int | None
    rows: tuple[Together, ...]
    best: Together | None


@dataclass(frozen=True)
class Caches:
    """All of a record of `kv`."""

    cells: tuple[Cell, ...]
    batch: int | None
    weights: Mapping[str, float]
    held: tuple[Held, ...]
    serving: tuple[tuple[str, Mapping[str, Any]], ...]
    mapped_at: int | None
    alone: tuple[Alone, ...]
    granted: tuple[Granted, ...]
    joint: Joint | None
    findings: tuple[str, ...]

    @property
    def policies(self) -> list[str]:
        """The policies in their order, full precision among them."""
        return list(dict.fromkeys([*(cell.policy for cell in self.cells), *(row.policy for row in self.held)]))

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints in their order."""
        return list(dict.fromkeys([*(cell.weights for cell in self.cells), *self.weights]))

    @property
    def contexts(self) -> list[int]:
        """The contexts, the shortest first."""
        return sorted({cell.context for cell in self.cells if cell.context})

    def cell(self, weights: str, policy: str, context: int | None) -> Cell | None:
        """What was measured there."""
        asked = (weights, policy, context)
        return next((cell for cell in self.cells if (cell.weights, cell.policy, cell.context) == asked), None)

    def bits_of(self, policy: str) -> float | None:
        """Stored bits of a number under the policy, keys and values together."""
        return next((row.bits for row in self.held if row.policy == policy), None)


def caches(record: Record) -> Caches:
    """The policies of a record."""
    numbers = record.numbers
    memory, mapped, serving = (mapping(numbers.get(name)) for name in ("memory", "map", "serving"))
    weights = {text(name): number(size) for name, size in mapping(memory.get("weights")).items()}
    alone = [_alone(item) for item in mappings(mapped.get("rows"))]
    findings = numbers.get("findings")
    return Caches(
        cells=tuple(_cell(item) for item in mappings(numbers.get("cells"))),
        batch=whole(memory.get("batch")),
        weights={name: size for name, size in weights.items() if size is not None and size > 0},
        held=tuple(_held(item) for item in mappings(memory.get("rows"))),
        serving=tuple((text(name), one) for name, all_ in serving.items() for one in mappings(all_)),
        mapped_at=whole(mapped.get("context")),
        alone=tuple(one for one in alone if one is not None),
        granted=tuple(_granted(item) for item in mappings(numbers.get("allocation"))),
        joint=_joint(mapping(numbers.get("joint"))),
        findings=tuple(text(line) for line in findings if line) if isinstance(findings, list) else (),
    )


def tokens(count: int | None) -> str:
    """`4,096 tokens`."""
    return words.DASH if count is None else words.count(count, "token")


def short(name: str) -> str:
    """The name of a checkpoint without its folders."""
    return words.shortened(last_part(name), 28)


def policy_words(policy: str, limit: int = 40) -> str:
    """A policy within a sentence."""
    return "full keys and values" if policy == NONE else words.shortened(policy, limit)


def _cell(item: Mapping[str, Any]) -> Cell:
    retrieval = mapping(item.get("retrieval"))
    return Cell(
        text(item.get("weights"), "?"),
        text(item.get("policy"), "?"),
        _positive(item.get("context")),
        measure(item, "kl"),
        measure(item, "ppl"),
        number(item.get("cache_bytes")),
        _parts(mappings(item.get("kl_by_place"))),
        measure(retrieval, "share"),
        _asked(mappings(retrieval.get("cells"))),
        number(item.get("agreement")),
    )


def _parts(items: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    found = []
    for item in items:
        start, stop, kl = whole(item.get("from")), whole(item.get("to")), number(item.get("mean"))
        if start is not None and stop is not None and kl is not None and 0 <= start < stop:
            found.append(Part(start, stop, kl))
    return tuple(found)


def _asked(items: Sequence[Mapping[str, Any]]) -> tuple[Asked, ...]:
    found = []
    for item in items:
        count, depth = whole(item.get("numbers")), number(item.get("depth"))
        right, asked = whole(item.get("found")), _positive(item.get("asked"))
        if count is not None and depth is not None and right is not None and asked is not None:
            found.append(Asked(count, depth, right, asked))
    return tuple(found)


def _held(item: Mapping[str, Any]) -> Held:
    pair = item.get("bits")
    keys, values = map(number, pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
    sizes = {_context(name): number(size) for name, size in mapping(item.get("bytes")).items()}
    return Held(
        text(item.get("policy"), "?"),
        None if keys is None or values is None else (keys + values) / 2,
        keys,
        values,
        {context: size for context, size in sorted(sizes.items()) if context > 0 and size is not None and size > 0},
        {text(name): _positive(where) for name, where in mapping(item.get("outweighs_from")).items()},
    )


def _alone(item: Mapping[str, Any]) -> Alone | None:
    layer, kl = _layer(item), measure(item, "kl")
    if layer is None or kl.value is None or item.get("side") not in SIDES or not item.get("format"):
        return None
    return Alone(layer, text(item.get("side")), text(item.get("format")), kl)


def _granted(item: Mapping[str, Any]) -> Granted:
    rows = [(layer, row) for row in mappings(item.get("rows")) if (layer := _layer(row)) is not None]
    return Granted(
        text(item.get("name"), "?"),
        text(item.get("policy")),
        number(item.get("bits")),
        number(item.get("expected_kl")),
        {side: {layer: text(row.get(side)) or NONE for layer, row in rows} for side in SIDES} if rows else {},
    )


def _joint(item: Mapping[str, Any]) -> Joint | None:
    rows = tuple(_together(row) for row in mappings(item.get("rows")))
    if not rows:
        return None
    best = whole(item.get("best"))
    return Joint(
        number(item.get("memory")),
        whole(item.get("length")),
        whole(item.get("batch")),
        whole(item.get("measured_at")),
        rows,
        rows[best] if best is not None and 0 <= best < len(rows) else None,
    )


def _together(row: Mapping[str, Any]) -> Together:
    return Together(
        text(row.get("weights"), "?"),
        text(row.get("policy"), "?"),
        number(row.get("weight_bytes")),
        number(row.get("cache_bytes")),
        row.get("fits") is True,
        whole(row.get("longest")),
        number(row.get("kl")),
    )


def _layer(item: Mapping[str, Any]) -> int | None:
    layer = whole(item.get("layer"))
    return layer if layer is not None and 0 <= layer < _MOST else None


def _context(name: str) -> int:
    return int(name) if name.isascii() and name.isdigit() else 0


def _positive(value: Any) -> int | None:
    found = whole(value)
    return found if found is not None and found > 0 else None
