"""What a record of `diagnose` says, as small nouns: the loss, the suspects in order, the tests, what repairs it.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from subeight.records import Record
from subeight.report import facts, words
from subeight.report.facts import Layer, Measure, mapping, mappings, measure, number, text, whole

SUSPECTS = {
    "baseline": "Is this the right full-precision model, and the same question?",
    "stack": "Did software, hardware or numerics change the result?",
    "kernels": "Does the packed model compute what its dequantized twin computes?",
    "calibration": "Did calibration miss what these prompts reach?",
    "layers": "Which linears carry the loss?",
}
VERDICTS = ("cleared", "guilty", "unknown", "skipped")
METRICS = {
    "kl": "KL (nats per token)",
    "nll": "rise of the NLL (nats per token)",
    "choices": "share of answers lost",
    "check": "share of checks failed",
}


@dataclass(frozen=True)
class Group:
    """The loss on some of the prompts: a category, or the control."""

    name: str
    loss: Measure
    prompts: int | None


@dataclass(frozen=True)
class Cause:
    """One thing that is guilty, where, and the share of the loss that its repair recovered."""

    suspect: str
    kind: str
    places: tuple[str, ...]
    sentence: str
    recovered: Measure
    repair: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """The examination of one suspect."""

    suspect: str
    verdict: str
    evidence: str
    causes: tuple[Cause, ...]
    evaluations: int | None
    block_forwards: float | None
    seconds: float | None
    command: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One test of the search through the layers: some linears restored, or quantized alone."""

    what: str
    places: int | None
    names: tuple[str, ...]
    loss: Measure
    recovered: Measure
    block_forwards: float | None


@dataclass(frozen=True)
class Prescription:
    """The repair, applied to the whole model and measured."""

    before: Measure
    after: Measure
    recovered: Measure
    bytes_before: float | None
    bytes_after: float | None
    formats: Mapping[str, Any]  # what is stored anew, by linear; None: in the baseline's precision


@dataclass(frozen=True)
class Diagnosis:
    """All of it, in the order it is told."""

    metric: str
    loss: Measure
    prompts: int | None
    tokens: int | None
    categories: tuple[Group, ...]
    control: Group | None
    steps: tuple[Step, ...]
    causes: tuple[Cause, ...]
    recovered: Measure
    bytes_added: float | None
    bytes: float | None
    recipe: str
    words: tuple[str, ...]
    untested: tuple[str, ...]
    prescription: Prescription | None

    @property
    def axis(self) -> str:
        """What the loss is, for an axis."""
        return METRICS.get(self.metric.split(":")[0], self.metric)

    @property
    def evaluations(self) -> int | None:
        """How often a whole model's loss was measured, over all suspects."""
        known = [step.evaluations for step in self.steps if step.evaluations is not None]
        return sum(known) if known else None

    @property
    def share_added(self) -> float | None:
        """The bytes that the repair adds, as a share of all bytes before it."""
        before = self.prescription.bytes_before if self.prescription else None
        base = before if before is not None else self.bytes
        return self.bytes_added / base if self.bytes_added is not None and base else None

    @property
    def places(self) -> tuple[str, ...]:
        """All places of all causes."""
        return tuple(place for cause in self.causes for place in cause.places)


def diagnosis(record: Record) -> Diagnosis:
    """The numbers of a `diagnose` record."""
    numbers = record.numbers
    verdict = mapping(numbers.get("verdict"))
    categories = [_group(str(name), values) for name, values in mapping(numbers.get("categories")).items()]
    control = mapping(numbers.get("control"))
    prescription = _prescription(mapping(numbers.get("prescription")))
    added = number(verdict.get("bytes_added"))
    if added is None and prescription and None not in (prescription.bytes_before, prescription.bytes_after):
        added = (prescription.bytes_after or 0) - (prescription.bytes_before or 0)
    return Diagnosis(
        metric=text(numbers.get("metric"), "loss"),
        loss=measure(numbers, "loss"),
        prompts=whole(numbers.get("prompts")),
        tokens=whole(numbers.get("tokens")),
        categories=tuple(sorted(categories, key=lambda group: -(group.loss.value or 0))),
        control=_group("control", control) if control else None,
        steps=tuple(_step(item) for item in mappings(numbers.get("findings"))),
        causes=_causes(verdict),
        recovered=measure(verdict, "recovered"),
        bytes_added=added,
        bytes=number(verdict.get("bytes")),
        recipe=text(verdict.get("recipe")),
        words=texts(verdict.get("words")),
        untested=texts(verdict.get("untested")),
        prescription=prescription,
    )


def texts(value: Any) -> tuple[str, ...]:
    """The texts in a list; nothing when it is no list."""
    return tuple(str(item) for item in value if item is not None) if isinstance(value, list) else ()


def trials(details: Mapping[str, Any]) -> list[Trial]:
    """The tests of the search, in the order they were made."""
    return [
        Trial(
            text(item.get("what"), "restore"),
            whole(item.get("places")),
            texts(item.get("names")),
            measure(item, "loss"),
            measure(item, "recovered"),
            number(item.get("block_forwards")),
        )
        for item in mappings(details.get("tests"))
    ]


def curve(details: Mapping[str, Any]) -> list[tuple[int, float, float | None]]:
    """How many linears were restored, the share recovered, and the bytes: from nothing to everything."""
    found = []
    for item in mappings(details.get("curve")):
        restored, share = whole(item.get("restored")), number(item.get("recovered"))
        if restored is not None and share is not None:
            found.append((restored, share, number(item.get("bytes"))))
    return sorted(found, key=lambda point: point[0])


def spread(details: Mapping[str, Any]) -> bool:
    """Whether the loss comes back in proportion to what is restored: the curve stays near a straight line."""
    points = curve(details)
    if len(points) < 4 or points[-1][1] < 0.5 or not points[-1][0]:
        return False
    last, whole_share, _ = points[-1]
    return any(0.2 <= restored / last <= 0.8 for restored, _, _ in points) and all(
        abs(share - whole_share * restored / last) <= 0.2 for restored, share, _ in points
    )


def by_name(values: Iterable[tuple[str, Any]]) -> list[Layer]:
    """A positive number of every tensor as a point, by the block that its name tells."""
    known = {str(name): found for name, value in values if (found := number(value)) is not None and found > 0}
    return facts.layers(
        ({"name": name, "block": block_of(name), "value": value} for name, value in known.items()), "value"
    )


def block_of(name: str) -> int | None:
    """The first number in a name: `model.layers.3.mlp.up_proj` is of block 3."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found.group(1)) if found else None


def forwards(count: float | None) -> str:
    """Block forwards, which may be parts of one, as a person counts them."""
    return words.significant(count) if count is None or count < 10 else f"{count:,.0f}"


def rank(points: list[Layer], name: str) -> int | None:
    """Which place a tensor takes when the largest value comes first."""
    order = [point.name for point in sorted(points, key=lambda point: -point.value)]
    return order.index(name) + 1 if name in order else None


def _group(name: str, values: Any) -> Group:
    return Group(name, measure(mapping(values), "loss"), whole(mapping(values).get("prompts")))


def _causes(holder: Mapping[str, Any]) -> tuple[Cause, ...]:
    return tuple(
        Cause(
            text(item.get("suspect")),
            text(item.get("kind")),
            texts(item.get("places")),
            text(item.get("sentence")),
            measure(item, "recovered"),
            mapping(item.get("repair")),
        )
        for item in mappings(holder.get("causes"))
    )


def _step(item: Mapping[str, Any]) -> Step:
    verdict = text(item.get("verdict"))
    return Step(
        text(item.get("suspect"), "?"),
        verdict if verdict in VERDICTS else "unknown",
        text(item.get("evidence")),
        _causes(item),
        whole(item.get("evaluations")),
        number(item.get("block_forwards")),
        number(item.get("seconds")),
        text(item.get("command")),
        mapping(item.get("details")),
    )


def _prescription(values: Mapping[str, Any]) -> Prescription | None:
    if not values:
        return None
    return Prescription(
        measure(values, "loss_before"),
        measure(values, "loss_after"),
        measure(values, "recovered"),
        number(values.get("bytes_before")),
        number(values.get("bytes_after")),
        mapping(values.get("formats")),
    )
