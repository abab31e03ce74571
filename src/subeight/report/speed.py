"""What records of `advise` and `bench` say, as small nouns: a machine, steps of schemes, and timings.

Like all facts of the report: pure functions of a record's numbers. What is missing is None or empty, never an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from subeight.records import Record
from subeight.report.facts import Measure, mapping, mappings, number, text, whole

BASE = "bf16"  # the scheme that others are compared with
PACKED, PLAIN = "packed", "dequantized"
STEPS = ("prefill", "decode")
_WEIGHTS = re.compile(r"W(\d{1,2})A16")  # schemes that differ in the bits of their codes alone
_SURE = 1e-6  # by which multiplying must outlast reading to be read off the roofline


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
    operations: float | None = None

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
        return _base(self.schemes)


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
    """The schemes of a record, with the operations of their steps."""
    numbers = record.numbers
    machine, context = _machine(mapping(numbers.get("machine"))), whole(numbers.get("context"))
    schemes = [_scheme(row) for row in mappings(numbers.get("rows"))]
    count = operations(machine, schemes, context)
    sentences = numbers.get("advice")
    return Advice(
        machine,
        context,
        text(numbers.get("goal")),
        tuple(
            replace(scheme, steps=tuple(replace(step, operations=count.get(step.batch)) for step in scheme.steps))
            for scheme in schemes
        ),
        tuple(text(line) for line in sentences if line) if isinstance(sentences, list) else (),
    )


def operations(machine: Machine, schemes: Sequence[Scheme], context: int | None) -> dict[int | None, float]:
    """Operations of each step, the same in every scheme, derived: no record holds them.

    Every weight is two operations for each row that meets it; of a prompt the head meets only the last. Weights are
    counted by their two bytes in bf16, those of the blocks by what a scheme of one bit less saves. Attention is what
    the roofline's prefill has beyond that, where multiplying bounds it; where reading does, it counts as none.
    """
    base = _base(schemes)
    if base is None or not base.weight_bytes or not context or context < 0:
        return {}
    every = base.weight_bytes / 2
    blocks = min(_in_blocks(schemes) or every, every)
    prompt = 2 * context * blocks + 2 * (every - blocks)
    pairs = max(context * context // 2, 1)  # of a query and a key
    each = max(_multiplied(machine, base) - prompt, 0.0) / pairs
    found: dict[int | None, float] = {None: prompt + each * pairs}
    for step in base.steps:
        if step.batch is not None:
            found[step.batch] = step.batch * (2 * every + each * context)
    return found


def _base(schemes: Sequence[Scheme]) -> Scheme | None:
    return next((scheme for scheme in schemes if scheme.name == BASE), None)


def _in_blocks(schemes: Sequence[Scheme]) -> float | None:
    """How many weights are in the blocks: schemes that differ in their bits alone differ by as many bits for each."""
    bits = {int(named[1]): scheme.weight_bytes for scheme in schemes if (named := _WEIGHTS.fullmatch(scheme.name))}
    known = sorted((width, size) for width, size in bits.items() if size is not None)
    if len(known) < 2 or known[-1][1] <= known[0][1]:
        return None
    return 8 * (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def _multiplied(machine: Machine, base: Scheme) -> float:
    """Operations of the prefill by its foretold seconds; 0 where these do not say.

    They are those of multiplying and of calls; the calls are what a token takes beyond reading.
    """
    prompt = base.step(None)
    tokens = [step for step in base.steps if step.batch is not None and step.foretold is not None and step.bytes]
    if not machine.bandwidth or not machine.bf16 or prompt is None or not prompt.foretold or not prompt.bytes:
        return 0.0
    if not tokens:
        return 0.0
    least = min(tokens, key=lambda step: step.batch or 0)
    calls = max((least.foretold or 0.0) - (least.bytes or 0.0) / machine.bandwidth, 0.0)
    multiplying = prompt.foretold - calls
    return multiplying * machine.bf16 if multiplying > (1 + _SURE) * prompt.bytes / machine.bandwidth else 0.0


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
    one = next((each / size for size, each in cache.items()), None)  # the cache of a sequence: a prefill is of one
    steps = [_step(None, measured.get("prefill_seconds"), mapping(foretold.get("prefill")), weights, one)]
    steps += [
        _step(size, seconds.get(str(size)), mapping(expected.get(str(size))), weights, cache.get(size))
        for size in sizes
    ]
    kernels = {text(name): text(kernel) for name, kernel in mapping(measured.get("kernels")).items()}
    return Scheme(text(row.get("name"), "?"), weights, cache, tuple(steps), kernels)


def _step(
    batch: int | None, measured: Any, foretold: Mapping[str, Any], weights: float | None, cache: float | None
) -> Step:
    held = None if weights is None or cache is None else weights + cache
    return Step(batch, _rate(measured), _rate(foretold.get("seconds")), text(foretold.get("bound")), held)


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
