"""What records of `advise` and `bench` say, as small nouns: a machine, steps of schemes, and timings.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subeight.records import Record
from subeight.report.facts import Measure, mapping, mappings, number, text, whole

BASE = "bf16"  # the scheme that others are compared with
PACKED, PLAIN = "packed", "dequantized"
STEPS = ("prefill", "decode")


@dataclass(frozen=True)
class Machine:
    """Rates of one device: bytes and operations per second, and the seconds of a call."""

    device: str
    threads: int | None
    bandwidth: float | None
    bf16: float | None
    int8: float | None
    call: float | None


@dataclass(frozen=True)
class Step:
    """The prefill (`batch` None) or a token of `batch` sequences: seconds, bytes that it reads, operations."""

    batch: int | None
    measured: float | None
    foretold: float | None
    bound: str
    bytes: float | None
    operations: float | None

    @property
    def intensity(self) -> float | None:
        """Operations for each byte."""
        return self.operations / self.bytes if self.operations and self.bytes else None


@dataclass(frozen=True)
class Scheme:
    """One way to store the model: bytes of its weights and of its cache by batch, its steps, and the kernels."""

    name: str
    weight_bytes: float | None
    cache_bytes: Mapping[int, float]
    steps: tuple[Step, ...]
    kernels: Mapping[str, str]

    def step(self, batch: int | None) -> Step | None:
        """The step of this batch."""
        return next((step for step in self.steps if step.batch == batch), None)


@dataclass(frozen=True)
class Advice:
    """All of a record of `advise`."""

    machine: Machine
    context: int | None
    goal: str
    schemes: tuple[Scheme, ...]
    sentences: tuple[str, ...]

    @property
    def batches(self) -> list[int]:
        """The batches, the smallest first."""
        return sorted({step.batch for scheme in self.schemes for step in scheme.steps if step.batch is not None})

    @property
    def base(self) -> Scheme | None:
        """The model as it is."""
        return next((scheme for scheme in self.schemes if scheme.name == BASE), None)


@dataclass(frozen=True)
class Timing:
    """How fast one model does a step: tokens per second with those of the quarters, and median seconds."""

    rate: Measure
    seconds: float | None


@dataclass(frozen=True)
class Bench:
    """One batch: the step of both models by name, and how many times faster the packed one is."""

    batch: int | None
    prompt: int | None
    timings: Mapping[tuple[str, str], Timing]  # by model and step
    ratio: Mapping[str, float | None]


def step_name(batch: int | None) -> str:
    """`token at batch 8`; without a batch the prefill."""
    return "prefill" if batch is None else f"token at batch {batch:,}"


def advice(record: Record) -> Advice:
    """The schemes of a record."""
    numbers = record.numbers
    sentences = numbers.get("advice")
    return Advice(
        _machine(mapping(numbers.get("machine"))),
        whole(numbers.get("context")),
        text(numbers.get("goal")),
        tuple(_scheme(row) for row in mappings(numbers.get("rows"))),
        tuple(text(line) for line in sentences if line) if isinstance(sentences, list) else (),
    )


def benches(record: Record) -> list[Bench]:
    """The batches of a record of `bench`."""
    return [_bench(row) for row in mappings(record.numbers.get("rows"))]


def _machine(item: Mapping[str, Any]) -> Machine:
    return Machine(
        text(item.get("device")),
        whole(item.get("threads")),
        *(_rate(item.get(name)) for name in ("bandwidth", "bf16", "int8", "call")),
    )


def _scheme(row: Mapping[str, Any]) -> Scheme:
    measured, foretold = mapping(row.get("measured")), mapping(row.get("foretold"))
    weights = _rate(row.get("weight_bytes"))
    held = {_batch(size): _rate(cache) for size, cache in mapping(row.get("cache_bytes")).items()}
    cache = {size: each for size, each in held.items() if size and each is not None}
    seconds, expected = mapping(measured.get("decode_seconds")), mapping(foretold.get("decode"))
    sizes = sorted({size for size in map(_batch, [*seconds, *expected]) if size})
    steps = [_step(None, measured.get("prefill_seconds"), mapping(foretold.get("prefill")))]
    steps += [_step(size, seconds.get(str(size)), mapping(expected.get(str(size)))) for size in sizes]
    kernels = {text(name): text(kernel) for name, kernel in mapping(measured.get("kernels")).items()}
    return Scheme(text(row.get("name"), "?"), weights, cache, tuple(steps), kernels)


def _step(batch: int | None, measured: Any, foretold: Mapping[str, Any]) -> Step:
    seconds, read, done = (_rate(foretold.get(name)) for name in ("seconds", "bytes", "operations"))
    return Step(batch, _rate(measured), seconds, text(foretold.get("bound")), read, done)


def _bench(row: Mapping[str, Any]) -> Bench:
    models = {name: mapping(row.get(name)) for name in (PACKED, PLAIN)}
    known: Sequence[Mapping[str, Any]] = list(models.values())
    return Bench(
        next((batch for item in known if (batch := whole(item.get("batch"))) is not None), None),
        next((prompt for item in known if (prompt := whole(item.get("prompt"))) is not None), None),
        {(name, step): _timing(item, step) for name, item in models.items() for step in STEPS},
        {step: _rate(mapping(row.get("ratio")).get(step)) for step in STEPS},
    )


def _timing(item: Mapping[str, Any], step: str) -> Timing:
    """The spread is of seconds; the same tokens in more seconds are fewer per second."""
    seconds, rate = _rate(item.get(f"{step}_seconds")), _rate(item.get(f"{step}_tokens_per_second"))
    spread = item.get(f"{step}_spread")
    ends = [_rate(end) for end in spread] if isinstance(spread, list) and len(spread) == 2 else [None, None]
    if seconds is None or rate is None:
        return Timing(Measure(rate), seconds)
    fast, slow = (None if end is None else rate * seconds / end for end in ends)
    return Timing(Measure(rate, slow, fast), seconds)


def _rate(value: Any) -> float | None:
    """A number above zero, as rates, seconds and bytes are."""
    found = number(value)
    return found if found is not None and found > 0 else None


def _batch(name: Any) -> int:
    return int(name) if text(name).isascii() and text(name).isdigit() else 0
