"""The places that the layers' examination searches: every linear that is not the baseline's, and what is known."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from subeight.diagnose.case import Case
from subeight.errors import ModelError
from subeight.formats import Format, quantize
from subeight.models.model import Model
from subeight.probe.probe import Probe, aligned_weight
from subeight.probe.swaps import Swaps

_WORSE = 1.15  # times the median excess
_FAR = 1.4  # the same, for a place that might be the other half of a pair
_SAME = 1e-4  # relative difference below which a weight is the baseline's
_GUESSES = tuple(Format.parse(f"int{bits}:g64:sym") for bits in (8, 6, 5, 4, 3, 2))


@dataclass
class Sites:
    """The places, each with what is expected of it.

    Attributes:
        names: linears whose weight or input is not the baseline's.
        expected: the energy of each one's difference on the prompts; of places outside the blocks, an equal share.
        position: the block of each; those outside stand before the first or behind the last.
        formats: how each is stored, None where that is not known.
        errors: relative difference of the weights.
        hints: what forensics say of some: `scales`, `zeros`.
        excess: how many times as far from the baseline each weight is as plain rounding would put it.
        sensitive: places that carry much of the loss without being broken, with their share.
    """

    names: tuple[str, ...]
    expected: dict[str, float]
    position: dict[str, int]
    formats: dict[str, Format | None]
    errors: dict[str, float]
    rounded_inputs: frozenset[str]
    counts: dict[str, int]
    hints: Mapping[str, str] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)
    guess: Format | None = None
    sensitive: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, probe: Probe) -> "Sites":
        """The places of a case; runs the candidate once, watched."""
        assert case.gauge is not None
        model, done = case.candidate, case.swaps.names
        inputs = frozenset(_rounded_inputs(model))
        differences = case.gauge.differences
        listed = [
            linear
            for linear in model.linears
            if linear.name not in done
            and linear.kind != "tied"
            and (differences.get(linear.name, 0.0) > _SAME or linear.name in inputs)
        ]
        energy = probe.effects().energy
        blocks = len(model.skeleton.blocks)
        outside = sum(energy.values()) / max(len(energy), 1)
        embedding = {linear.name for linear in listed if linear.kind == "embedding"}
        formats = {linear.name: stored_format(model, linear.name) for linear in listed}
        sites = cls(
            names=tuple(linear.name for linear in listed),
            expected={linear.name: energy.get(linear.name, outside) for linear in listed},
            position={
                x.name: x.block if x.block is not None else -1 if x.name in embedding else blocks for x in listed
            },
            formats=formats,
            errors={linear.name: differences.get(linear.name, 0.0) for linear in listed},
            rounded_inputs=inputs,
            counts={linear.name: linear.count for linear in listed},
            hints=case.notes.get("forensics", {}),
            excess=case.notes.get("excess", {}),
        )
        if sites.names and not any(formats.values()):
            sites.guess = _guessed(probe, sites)
        return sites

    @property
    def ordered(self) -> list[str]:
        """The likeliest first."""
        return sorted(self.names, key=lambda name: (-self.expected[name], name))

    def swaps(self, names: Collection[str]) -> Swaps:
        """What restoring these places means: their weights, and their inputs unrounded."""
        chosen = frozenset(names)
        return Swaps(weights=chosen, inputs=chosen & self.rounded_inputs)

    def format(self, name: str) -> Format | None:
        """How a linear is stored, or most likely is."""
        return self.formats.get(name) or self.guess

    @property
    def usual(self) -> Format | None:
        """The format of most of the linears."""
        known = Counter(str(self.format(name)) for name in self.names if self.format(name) is not None)
        return Format.parse(known.most_common(1)[0][0]) if known else None

    @property
    def usual_words(self) -> str | None:
        """The usual format in words."""
        return None if self.usual is None else str(self.usual)

    def stands_out(self, name: str) -> bool:
        """Whether a weight is worse than the others, for its format: where all are alike, no one is broken."""
        known = [self.excess[other] for other in self.names if other in self.excess]
        if name not in self.excess or len(known) < 2:
            return True
        return self.excess[name] >= _WORSE * median(known)

    def is_far(self, name: str) -> bool:
        """Whether a weight is much worse than the others, though not so much that it cannot be a rounding."""
        known = [self.excess[other] for other in self.names if other in self.excess]
        return len(known) > 1 and self.excess.get(name, 0.0) >= _FAR * median(known)

    def added(self, names: Iterable[str]) -> int:
        """Bytes that keeping these linears in 16 bits would add."""
        extra = 0.0
        for name in names:
            format = self.format(name)
            extra += self.counts[name] * (16.0 - (format.code_bits if format is not None else 16.0)) / 8
        return round(extra)


def stored_format(model: Model, name: str) -> Format | None:
    """The format in which a linear is stored; None where it is not quantized, or cannot be said as one of ours."""
    if model.codes is None or name not in model.codes:
        return None
    try:
        return model.codes.read(name).format
    except ModelError:
        return None


def _rounded_inputs(model: Model) -> Iterable[str]:
    if model.codes is None:
        return []
    return [linear.name for linear in model.linears if model.codes.inputs(linear.name) is not None]


def _guessed(probe: Probe, sites: Sites) -> Format | None:
    """The width whose rounding error is nearest to the middle linear's: what dense or foreign weights were made at."""
    inside = [name for name in sites.names if sites.errors[name] > 0]
    if not inside:
        return None
    middle = sorted(inside, key=lambda name: sites.errors[name])[len(inside) // 2]
    weight = aligned_weight(probe, middle)
    size = weight.norm()

    def miss(format: Format) -> float:
        error = float((quantize(weight, format, search="mse").dequantize() - weight).norm() / size)
        return abs(error - sites.errors[middle])

    return min(_GUESSES, key=miss)
