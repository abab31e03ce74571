"""`allocate`: a map and a budget in, an ordinary recipe out, with the reason of every decision; measured if asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subeight.advise.latency import kept_latencies, token_seconds
from subeight.errors import InputError, RecordError
from subeight.evals.passes import require_context
from subeight.formats import Format
from subeight.map.budget import parse_budget
from subeight.map.choices import wishes
from subeight.map.decision import Decision
from subeight.map.interactions import Pair
from subeight.map.mapfile import MapFile, read_map
from subeight.map.spend import Latency
from subeight.map.summary import allocated
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.recipes.engines import ENGINES
from subeight.recipes.recipe import did_you_mean
from subeight.records import atomic_write
from subeight.verbs.options import Options
from subeight.verbs.planning import planned_recipe
from subeight.verbs.session import Result, Session, finish, where
from subeight.verbs.verification import verification

_KEPT_SETTINGS = ("calibration", "evals", "eval_tokens", "eval_window", "eval_cap")  # of the map, as it was asked


def allocate(
    map: str,
    budget: str,
    *,
    engine: str = "any",
    pins: Sequence[str] = (),
    forbids: Sequence[str] = (),
    verify: bool = False,
    model: str | None = None,
    context: int = 1024,
    options: Options | None = None,
) -> Result:
    """Spends `budget` ("3.5 bits", "90 MB", "kl 0.05" or "latency 20 ms") where the map says that it saves most loss.

    Milliseconds are those of one token of one sequence after `context` others on this machine: every linear is timed in
    each of the map's formats first (kept for this stack).

    `engine` allows only what that engine runs; `pins` and `forbids` are GLOB=FORMAT (or GLOB=keep), and the record says
    what each costs. `verify` quantizes by the recipe and measures it on the map's text and on text that the map did not
    see; where pairs of places interact, it allocates again with them, and the better of both is the recipe. `model`
    says where the map's model lies now (default: where it lay). A dry run writes nothing.

    Raises:
        InputError: no map, a map of another model, a budget, engine, pin or format that is not known.
        SubeightError: the budget is infeasible; the nearest that can be met is named.
    """
    options = options or Options()
    found, asked = read_map(map), parse_budget(budget)
    if engine not in ("any", *ENGINES):
        raise InputError(f"{engine!r} is not an engine; give any, {', '.join(ENGINES)}.{did_you_mean(engine, ENGINES)}")
    pinned, forbidden = wishes(pins, found, "--pin"), wishes(forbids, found, "--forbid")
    session = Session("allocate", replace(options, dtype=_dtype(found, options)))
    opened = session.model(model or _model_of(found))
    _require_model(found, opened)
    latency = _latency(session, opened, found, context) if asked.kind == "latency" else None
    decision = Decision(found, asked, engine, pinned, forbidden, options.seed, latency)
    _, plan = planned_recipe(opened, decision.recipe, options, engine=engine)
    point = found.coordinates.model_copy(update={"recipe": plan.fingerprint, "stack": session.stack.hash})
    subject = {"model": opened.label, "map": str(map), "paths": {"model": where(model or _model_of(found))}}
    settings = {key: found.settings.get(key) for key in _KEPT_SETTINGS}
    if options.dry_run:
        numbers = decision.numbers(plan)
        return Result(session.record(point, numbers, subject=subject, settings=settings), lines=allocated(numbers))
    identity = {"coordinates": point.model_dump(), "map": found.hash, "budget": asked.text, "verify": verify}
    identity |= {"engine": engine, "pins": list(pins), "forbids": list(forbids)}
    identity |= {"context": context} if latency else {}
    with session.run(opened, identity) as run:
        verified: dict[str, Any] | None = None
        pairs: list[Pair] = []
        if verify:
            decision, pairs, verified = verification(session, opened, decision, run)
            if latency is not None:
                verified["seconds"] = _seconds(session, verified["checkpoint"], context)
            _, plan = planned_recipe(opened, decision.recipe, options, engine=engine)
            point = point.model_copy(update={"recipe": plan.fingerprint})
        atomic_write(run.directory / "recipe.yaml", decision.recipe.to_yaml())
        recipe = {"recipe": str(run.directory / "recipe.yaml")}
        numbers = {**decision.numbers(plan, pairs), **recipe, "verified": verified}
        record = session.record(point, numbers, subject=subject, settings=settings)
        return finish(run, record, allocated(numbers))


def _latency(session: Session, model: Model, found: MapFile, context: int) -> Latency:
    """What was measured of this model on this stack, or is now, in the precision that it would run in."""
    require_context(model, context)
    formats = [Format.parse(format) for format in found.formats]
    dtype = compute_dtype("auto", session.device)
    timed = kept_latencies(session.cache, model, formats, context, dtype, session.device)
    return Latency(timed.context, timed.rest, timed.linears)


def _seconds(session: Session, checkpoint: str, context: int) -> float:
    """Of one token of what was quantized, on its kernels."""
    return token_seconds(session.model(checkpoint), context, compute_dtype("auto", session.device), session.device)


def _dtype(found: MapFile, options: Options) -> str:
    """The map's own precision, unless another is asked for: what is compared is measured alike."""
    return str(found.settings.get("dtype") or "float32") if options.dtype == "auto" else options.dtype


def _model_of(found: MapFile) -> str:
    path = (found.subject.get("paths") or {}).get("model")
    if not path:
        raise RecordError(f"The map {found.path} does not say where its model lies; give it with --model.")
    return str(path)


def _require_model(found: MapFile, model: Model) -> None:
    """Refuses a map that was measured on another model."""
    if found.coordinates.baseline != model.coordinate:
        raise RecordError(
            f"The map {found.path} was measured on another model than {model.label} (baseline "
            f"{found.coordinates.baseline} and {model.coordinate}); give the map's own with --model, or map this one."
        )
