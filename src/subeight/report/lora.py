"""Facts of `train qlora` records: ways of merging, the bases before training, the loss by update, the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subeight.records import Record
from subeight.report.facts import Measure, mapping, mappings, measure, number, text, whole

WORDS = {
    "apart": "kept apart",
    "16-bit": "merged onto the 16-bit base",
    "dequantized": "merged onto the dequantized base",
    "requantized": "merged and quantized again",
}
STATUSES = ("quantized", "frozen", "trained")


@dataclass(frozen=True)
class Way:
    """One way of merging, or a base that was not trained; what was not measured says why."""

    name: str
    label: str
    bytes: float | None
    loss: Measure
    exact: Measure
    accuracy: Measure
    kl: Measure
    kept: Measure
    verdict: str
    skipped: str | None


@dataclass(frozen=True)
class Total:
    """All parameters of one status."""

    status: str
    parameters: int | None
    count: int | None
    bytes: float | None

    @property
    def bits(self) -> float | None:
        """Bits for each number."""
        return None if not self.count or self.bytes is None else 8 * self.bytes / self.count


def ways(record: Record) -> list[Way]:
    """The ways of merging, in the order of the record."""
    rows = mappings(record.numbers.get("merges"))
    return [_way(row, text(row.get("mode"), "?"), WORDS.get(text(row.get("mode")), "?")) for row in rows]


def bases(record: Record) -> list[Way]:
    """The bases before training."""
    rows = mappings(record.numbers.get("untrained"))
    return [_way(row, text(row.get("base"), "?"), f"untrained, {text(row.get('base'), '?')}") for row in rows]


def _way(row: Mapping[str, Any], name: str, label: str) -> Way:
    loss, exact, accuracy, kl, kept = (measure(row, key) for key in ("loss", "exact", "accuracy", "kl", "kept"))
    skipped = text(row.get("skipped")) or None
    return Way(
        name, label, number(row.get("bytes")), loss, exact, accuracy, kl, kept, text(row.get("verdict")), skipped
    )


def curve(record: Record) -> list[tuple[int, float]]:
    """The loss of each update."""
    found = []
    for row in mappings(mapping(record.numbers.get("training")).get("curve")):
        step, loss = whole(row.get("step")), number(row.get("loss"))
        if step is not None and loss is not None:
            found.append((step, loss))
    return found


def totals(record: Record) -> list[Total]:
    """The manifest by status, and in all."""
    found = mapping(mapping(record.numbers.get("manifest")).get("totals"))
    return [_total(name, mapping(found.get(name))) for name in (*STATUSES, "all") if found.get(name)]


def _total(name: str, row: Mapping[str, Any]) -> Total:
    return Total(name, whole(row.get("parameters")), whole(row.get("count")), number(row.get("bytes")))


def parameters(record: Record) -> list[Mapping[str, Any]]:
    """The manifest's rows."""
    return mappings(mapping(record.numbers.get("manifest")).get("parameters"))


def best(record: Record) -> Way | None:
    """The way that the record calls best by its bytes."""
    chosen = record.numbers.get("best")
    return next((way for way in ways(record) if chosen is not None and way.name == chosen), None)
