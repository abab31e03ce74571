"""`allocate`: a map and a budget in, an ordinary recipe out, with the reason of every decision; measured if asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subeight.errors import InputError, RecordError
from subeight.map.budget import parse_budget
from subeight.map.choices import wishes
from subeight.map.decision import Decision
from subeight.map.interactions import Pair
from subeight.map.mapfile import MapFile, read_map
from subeight.models.model import Model
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
    options: Options | None = None,
) -> Result:
    """Spends `budget` ("3.5 bits", "90 MB" or "kl 0.05") where the map says that it saves most loss.

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
    decision = Decision(found, asked, engine, pinned, forbidden, options.seed)
    session = Session("allocate", replace(options, dtype=_dtype(found, options)))
    opened = session.model(model or _model_of(found))
    _require_model(found, opened)
    _, plan = planned_recipe(opened, decision.recipe, options, engine=engine)
    point = found.coordinates.model_copy(update={"recipe": plan.fingerprint, "stack": session.stack.hash})
    subject = {"model": opened.label, "map": str(map), "paths": {"model": where(model or _model_of(found))}}
    settings = {key: found.settings.get(key) for key in _KEPT_SETTINGS}
    if options.dry_run:
        numbers = decision.numbers(plan)
        return Result(session.record(point, numbers, subject=subject, settings=settings), lines=_lines(numbers))
    identity = {"coordinates": point.model_dump(), "map": found.hash, "budget": asked.text, "verify": verify}
    identity |= {"engine": engine, "pins": list(pins), "forbids": list(forbids)}
    with session.run(opened, identity) as run:
        verified: dict[str, Any] | None = None
        pairs: list[Pair] = []
        if verify:
            decision, pairs, verified = verification(session, opened, decision, run)
            _, plan = planned_recipe(opened, decision.recipe, options, engine=engine)
            point = point.model_copy(update={"recipe": plan.fingerprint})
        atomic_write(run.directory / "recipe.yaml", decision.recipe.to_yaml())
        recipe = {"recipe": str(run.directory / "recipe.yaml")}
        numbers = {**decision.numbers(plan, pairs), **recipe, "verified": verified}
        record = session.record(point, numbers, subject=subject, settings=settings)
        return finish(run, record, _lines(numbers))


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


def _lines(numbers: dict[str, Any]) -> tuple[str, ...]:
    counts = Counter(choice["format"] or "kept" for choice in numbers["choices"])
    shared = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    expected = numbers["predicted"]
    low, high = expected["kl_ci"]
    lines = [
        f"{numbers['budget']['text']}: {numbers['bits_per_weight']:.3f} bits per weight, {shared}; expected loss "
        f"{expected['kl']:.4g} [{low:.4g}, {high:.4g}].",
        *(
            f"{row.get('pin') or row.get('forbid')} costs {row['price']:.3g} in expected loss."
            for row in numbers["price_of_pins"]
        ),
    ]
    if seen := numbers.get("verified"):
        inside = "within" if seen["within"] else "outside of"
        lines.append(f"Measured: {seen['kl']:.4g}, {inside} the expected interval, {seen['ratio']:.3g} times expected.")
        lines += _corrected(seen["corrected"])
    return (*lines, f"The recipe is {numbers['recipe']}.") if numbers.get("recipe") else tuple(lines)


def _corrected(row: dict[str, Any] | None) -> list[str]:
    """What allocating again with the pairs brought; nothing where it was not tried."""
    if row is None:
        return []
    told = f"Allocated again with the pairs that interact, {len(row['changes'])} places change"
    losses = f"{row['kl']:.4g} instead of {row['before']['kl']:.4g}"
    return [f"{told} and it loses {losses}: {'taken' if row['taken'] else 'not taken'}."]
