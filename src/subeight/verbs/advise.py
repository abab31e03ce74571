"""`advise`: which scheme pays on this machine for this model, measured, beside what a roofline foretells."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from subeight.advise.advice import GOALS, advice
from subeight.advise.candidates import Measured, time_schemes
from subeight.advise.machine import Machine, this_machine
from subeight.advise.schemes import SCHEMES, Scheme, Sizes, decode, prefill
from subeight.errors import InputError
from subeight.evals.passes import require_context
from subeight.kv.memory import cache_bytes
from subeight.records import Coordinates
from subeight.verbs.options import Options
from subeight.verbs.quantize import require_full_precision
from subeight.verbs.session import Result, Session, finish


def advise(
    model: str,
    *,
    batch: Sequence[int] = (1, 8),
    context: int = 1024,
    goal: str = "latency",
    options: Options | None = None,
) -> Result:
    """Measures the machine once (kept for its stack), then every scheme on one real block of the model.

    Raises:
        InputError: an unknown goal, or a context longer than the model's; a model that is quantized already.
    """
    if goal not in GOALS:
        raise InputError(f"--goal was given {goal!r}; allowed are {', '.join(GOALS)}.")
    options = options or Options()
    session = Session("advise", options)
    opened = session.model(model)
    require_full_precision(opened)
    require_context(opened, context)
    coordinates = Coordinates(baseline=opened.coordinate, stack=session.stack.hash)
    identity = {"coordinates": coordinates.model_dump(), "batch": list(batch), "context": context, "goal": goal}
    with session.run(opened, identity) as run:
        machine = this_machine(session.device, session.cache)
        sizes = Sizes.of(opened)
        timed = time_schemes(opened, SCHEMES, context, batch, session.dtype, session.device)
        rows = [_row(machine, sizes, scheme, timed[scheme.name], context, batch) for scheme in SCHEMES]
        sentences = advice(rows, goal, batch, context)
        numbers = {"machine": asdict(machine), "context": context, "goal": goal, "rows": rows, "advice": sentences}
        record = session.record(coordinates, numbers, subject={"model": opened.label})
        return finish(run, record, (*(_line(row) for row in rows), *sentences))


def _row(
    machine: Machine, sizes: Sizes, scheme: Scheme, measured: Measured, context: int, batch: Sequence[int]
) -> dict[str, Any]:
    steps = {str(size): asdict(decode(machine, sizes, scheme, context, size)) for size in batch}
    return {
        "name": scheme.name,
        "weight_bytes": sizes.weight_bytes(scheme),
        "cache_bytes": {str(size): cache_bytes(sizes.cache, scheme.kv, context, size) for size in batch},
        "foretold": {"prefill": asdict(prefill(machine, sizes, scheme, context)), "decode": steps},
        "measured": measured.numbers(),
    }


def _line(row: dict[str, Any]) -> str:
    measured, foretold = row["measured"], row["foretold"]
    steps = [
        f"token at batch {size} {1e3 * seconds:.1f} ms (roofline {1e3 * foretold['decode'][size]['seconds']:.1f})"
        for size, seconds in measured["decode_seconds"].items()
    ]
    prompt = f"prefill {1e3 * measured['prefill_seconds']:.0f} ms (roofline {1e3 * foretold['prefill']['seconds']:.0f})"
    return f"{row['name']}: {row['weight_bytes'] / 1e6:.0f} MB, {prompt}, {', '.join(steps)}."
