"""What records say, as small nouns: pure functions from the numbers of a record, without drawing or HTML.

Records of other versions may lack a number; it is None here and a dash on the page, never an error.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from subeight.records import Record

DECIDED = 0.05  # of a corrected p-value below which two recipes are told apart


@dataclass(frozen=True)
class Measure:
    """A measured value with its 95 % interval, as far as it is known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Choices:
    """Multiple-choice questions: accuracy of both models, answers that flipped, and if that is chance."""

    accuracy: float | None
    accuracy_baseline: float | None
    flips: int | None
    mcnemar_p: float | None
    questions: int | None


@dataclass(frozen=True)
class Candidate:
    """One measured quantization: a row of the table of methods."""

    label: str
    recipe: str
    kl: Measure
    kl_p99: float | None
    kl_max: float | None
    ppl: Measure
    ppl_baseline: float | None
    top1: Measure
    bits: float | None
    bytes: float | None
    tokens: int | None
    samples: int | None
    categories: dict[str, Measure]
    positions: tuple[tuple[int, int, float], ...]
    choices: Choices | None
    generation: Measure | None
    quantize_seconds: float | None
    evaluate_seconds: float | None
    peak_bytes: float | None
    checkpoint: str | None


@dataclass(frozen=True)
class Pair:
    """The paired difference in KL of two candidates on the same text: below zero, `a` is the better one.

    `p` counts all comparisons (Holm); `only_a` and `only_b` are the tokens on which just one has the baseline's choice.
    """

    a: str
    b: str
    difference: Measure
    p: float | None = None
    only_a: int | None = None
    only_b: int | None = None

    @property
    def verdict(self) -> str:
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return "no interval, so undecided"
        if self.p is not None and self.p >= DECIDED and (low > 0 or high < 0):
            return "not told apart, as many were compared"
        if high < 0:
            return f"{self.a} is closer to the baseline"
        if low > 0:
            return f"{self.b} is closer to the baseline"
        return "not told apart by this text"


@dataclass(frozen=True)
class Kind:
    """One kind of text: the KL of every recipe on it, and which one is the best there, where that can be said."""

    name: str
    kl: dict[str, float | None]
    best: str | None


@dataclass(frozen=True)
class Layer:
    """One value of one linear or input, by block and role: a point of the figures by layer."""

    name: str
    block: int | None
    role: str
    value: float
    note: str = ""


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    found = number(value)
    return None if found is None else int(found)


def text(value: Any, missing: str = "") -> str:
    """A text, or what stands for a missing one."""
    return missing if value is None else str(value)


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list; nothing when it is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping; empty when it is none."""
    return value if isinstance(value, Mapping) else {}


def measure(numbers: Mapping[str, Any], name: str) -> Measure:
    """The value `name` with its `name_ci`."""
    ends = numbers.get(f"{name}_ci")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return Measure(number(numbers.get(name)), number(low), number(high))


def candidate(numbers: Mapping[str, Any], label: str, recipe: str = "") -> Candidate:
    """The numbers of one evaluation as a row."""
    categories = {
        str(name): measure(mapping(values), "kl") for name, values in mapping(numbers.get("categories")).items()
    }
    generation = mapping(numbers.get("generation"))
    return Candidate(
        label=label,
        recipe=recipe or label,
        kl=measure(numbers, "kl"),
        kl_p99=number(numbers.get("kl_p99")),
        kl_max=number(numbers.get("kl_max")),
        ppl=measure(numbers, "ppl"),
        ppl_baseline=number(numbers.get("ppl_baseline")),
        top1=measure(numbers, "top1"),
        bits=number(numbers.get("bits_per_weight")),
        bytes=number(numbers.get("bytes")),
        tokens=whole(numbers.get("tokens")),
        samples=whole(numbers.get("samples")),
        categories={name: value for name, value in categories.items() if value.value is not None},
        positions=_positions(numbers),
        choices=_choices(mapping(numbers.get("choices"))),
        generation=measure(generation, "agreement") if generation else None,
        quantize_seconds=number(numbers.get("quantize_seconds")),
        evaluate_seconds=number(numbers.get("evaluate_seconds")),
        peak_bytes=number(numbers.get("peak_rss_bytes")),
        checkpoint=text(numbers.get("checkpoint")) or None,
    )


def candidates(record: Record) -> list[Candidate]:
    """The rows of a `compare` record."""
    rows = mappings(record.numbers.get("rows"))
    return [candidate(row, text(row.get("label") or row.get("recipe"), "?"), text(row.get("recipe"))) for row in rows]


def best(record: Record, rows: Iterable[Candidate]) -> Candidate | None:
    """The row that a `compare` record calls the best one."""
    chosen = record.numbers.get("best")
    return next((row for row in rows if chosen is not None and chosen in (row.recipe, row.label)), None)


def compared_pairs(record: Record) -> list[Pair]:
    """The paired comparisons of a `compare` record."""
    return [
        Pair(
            text(pair.get("a"), "?"),
            text(pair.get("b"), "?"),
            measure(pair, "kl_difference"),
            number(pair.get("p_holm")),
            whole(pair.get("only_a")),
            whole(pair.get("only_b")),
        )
        for pair in mappings(record.numbers.get("pairs"))
    ]


def strategies(record: Record) -> list[str]:
    """For every size at which outlier strategies differ, which one won and why."""
    return [why for one in mappings(record.numbers.get("strategies")) if (why := text(one.get("why")))]


def by_kind(record: Record) -> list[Kind]:
    """The kinds of text of a `compare` record, where there are several."""
    found = record.numbers.get("categories")
    kinds = found.items() if isinstance(found, Mapping) and len(found) > 1 else ()
    return [
        Kind(
            text(name),
            {text(recipe): number(kl) for recipe, kl in one["kl"].items()},
            text(one.get("best")) or None,
        )
        for name, one in kinds
        if isinstance(one, Mapping) and isinstance(one.get("kl"), Mapping)
    ]


def roles(names: Iterable[str]) -> dict[str, str]:
    """What each linear does in its block: the last part of its name, or more where that is not telling.

    `model.layers.3.self_attn.q_proj` is `q_proj`; GPT-2's two `c_proj` are `attn.c_proj` and `mlp.c_proj`.
    """
    inside = {name: _inside(name) for name in names}
    full: dict[str, set[str]] = {}
    for path in inside.values():
        full.setdefault(path.rsplit(".", 1)[-1], set()).add(path)
    return {name: last if len(full[last := path.rsplit(".", 1)[-1]]) == 1 else path for name, path in inside.items()}


def layers(items: Iterable[Mapping[str, Any]], value: str, name: str = "name", note: str = "means") -> list[Layer]:
    """The number `value` of every item as a point; items without it are left out."""
    items = list(items)
    role = roles(text(item.get(name)) for item in items)
    return [
        Layer(
            text(item.get(name)),
            whole(item.get("block")),
            role[text(item.get(name))],
            found,
            text(item.get(note)),
        )
        for item in items
        if (found := number(item.get(value))) is not None
    ]


def worst_of_each(points: list[Layer], limit: int = 3000) -> list[Layer]:
    """All points, or the largest of each block and role when a figure cannot show so many (experts)."""
    if len(points) <= limit:
        return points
    largest: dict[tuple[int | None, str], Layer] = {}
    for point in points:
        key = (point.block, point.role)
        if key not in largest or point.value > largest[key].value:
            largest[key] = point
    return list(largest.values())


def label_of(record: Record) -> str:
    """What a record is about, in a few words: its recipe, its candidate or its model."""
    for key in ("label", "recipe", "candidate", "model", "name"):
        if found := record.subject.get(key):
            return last_part(str(found))
    return record.kind


def last_part(name: str) -> str:
    """The end of a path or hub id, which names a model well enough where there is little room."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def model_of(records: Iterable[Record]) -> str | None:
    """The model that the records are about."""
    for record in records:
        for key in ("model", "baseline", "name", "candidate"):
            if found := record.subject.get(key):
                return str(found)
    return None


def _positions(numbers: Mapping[str, Any]) -> tuple[tuple[int, int, float], ...]:
    found = []
    for item in mappings(numbers.get("positions")):
        start, stop, kl = whole(item.get("from")), whole(item.get("to")), number(item.get("kl"))
        if start is not None and stop is not None and kl is not None:
            found.append((start, stop, kl))
    return tuple(found)


def _choices(values: Mapping[str, Any]) -> Choices | None:
    if not values:
        return None
    return Choices(
        number(values.get("accuracy")),
        number(values.get("accuracy_baseline")),
        whole(values.get("flips")),
        number(values.get("mcnemar_p")),
        whole(values.get("n")),
    )


def _inside(name: str) -> str:
    """The name within its block, without numbers: `self_attn.q_proj`, `mlp.experts.down_proj`."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if re.fullmatch(r"\d+", part)), None)
    if first is not None and first + 1 < len(parts):
        parts = parts[first + 1 :]
    return ".".join(part for part in parts if not re.fullmatch(r"\d+", part)) or name
