"""`allocate`: a map and a budget in, an ordinary recipe out, with the reason of every decision; measured if asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subeight.errors import InputError, RecordError
from subeight.map.allocation import Allocation, worth
from subeight.map.budget import Budget, parse_budget
from subeight.map.choices import Unit, Wish, wishes
from subeight.map.explain import Explainer
from subeight.map.front import front, rivals
from subeight.map.mapfile import MapFile, read_map
from subeight.map.prediction import Expected, Prediction
from subeight.map.spend import decidable, spent
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe
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
    see. `model` says where the map's model lies now (default: where it lay).

    Raises:
        InputError: no map, a map of another model, a budget, engine, pin or format that is not known.
        SubeightError: the budget is infeasible; the nearest that can be met is named.
    """
    options = options or Options()
    found, asked = read_map(map), parse_budget(budget)
    if engine not in ("any", *ENGINES):
        raise InputError(f"{engine!r} is not an engine; give any, {', '.join(ENGINES)}.{did_you_mean(engine, ENGINES)}")
    pinned, forbidden = wishes(pins, found, "--pin"), wishes(forbids, found, "--forbid")
    prediction = Prediction(found, options.seed)
    units = decidable(found, asked, engine, pinned, forbidden)
    made = spent(found, units, asked, prediction)
    session = Session("allocate", replace(options, dtype=_dtype(found, options)))
    opened = session.model(model or _model_of(found))
    _require_model(found, opened)
    recipe, plan = planned_recipe(opened, recipe_of(found, made, asked), options, engine=engine)
    point = found.coordinates.model_copy(update={"recipe": plan.fingerprint, "stack": session.stack.hash})
    wished: dict[str, Any] = {"engine": engine, "pins": list(pins), "forbids": list(forbids)}
    identity = {"coordinates": point.model_dump(), "map": found.hash, "budget": asked.text, "verify": verify, **wished}
    with session.run(opened, identity) as run:
        atomic_write(run.directory / "recipe.yaml", recipe.to_yaml())
        numbers = {**_numbers(found, asked, units, made, prediction, plan), **wished}
        numbers["price_of_pins"] = _prices(found, asked, engine, pinned, forbidden, made, prediction)
        numbers["recipe"] = str(run.directory / "recipe.yaml")
        formats = made.formats()
        expected = prediction.expected(formats)
        numbers["verified"] = (
            verification(session, opened, found, recipe, plan, expected, formats, run) if verify else None
        )
        record = session.record(
            point,
            numbers,
            subject={"model": opened.label, "map": str(map), "paths": {"model": where(model or _model_of(found))}},
            settings={key: found.settings.get(key) for key in _KEPT_SETTINGS},
        )
        return finish(run, record, _lines(asked, plan, expected, numbers))


def recipe_of(found: MapFile, made: Allocation, budget: Budget) -> Recipe:
    """The allocation as a recipe: the commonest format, and a rule for every linear that gets another.

    Statistics are taken of the baseline, as the map took them: what is predicted is what was measured.
    """
    formats = made.formats()
    inside = Counter(formats[place.name] for place in found.places if place.inside for _ in place.linears)
    quantized = [(format, count) for format, count in inside.most_common() if format is not None]
    if not quantized:
        raise InputError(f"The budget of {budget.text} keeps every place as it is; give a smaller one.")
    common = quantized[0][0]
    rules: list[dict[str, Any]] = []
    for place in found.places:
        format = formats[place.name]
        if format == (common if place.inside else None):  # outside of the blocks nothing is quantized by default
            continue
        change: dict[str, Any] = {"keep": True} if format is None else {"weights": format}
        rules += [{"match": _exactly(name), **change} for name in place.linears]
    content: dict[str, Any] = {
        "name": "mixed-" + budget.text.replace(" ", "-").lower(),
        "weights": common,
        "methods": list(found.methods),
        "rules": rules,
        "tap": "exact",
    }
    if calibration := found.settings.get("calibration"):
        content["calibration"] = dict(calibration)
    return Recipe.from_dict(content, "The recipe of this allocation")


def _exactly(name: str) -> str:
    """A glob that matches this name and no other."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


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


def _numbers(
    found: MapFile,
    budget: Budget,
    units: Sequence[Unit],
    made: Allocation,
    prediction: Prediction,
    plan: Plan,
) -> dict[str, Any]:
    expected = prediction.expected(made.formats())
    price = worth(units, made.cost)
    return {
        "map": {"directory": str(found.path), "hash": found.hash},
        "budget": {"text": budget.text, "kind": budget.kind, "value": budget.value},
        "metric": found.metric,
        "choices": Explainer(found, made, price).choices(),
        "worth": price,
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "bytes_stored": sum(site.bytes for site in plan.sites if site.linear.kind != "tied"),
        "predicted": {**expected.to_dict(), "additivity": expected.loss / expected.sum if expected.sum else None},
        "front": [point.to_dict() for point in front(units, prediction)],
        "rivals": [point.to_dict() for point in rivals(found, prediction, made.inside[1])],
    }


def _prices(
    found: MapFile,
    budget: Budget,
    engine: str,
    pins: Sequence[Wish],
    forbids: Sequence[Wish],
    made: Allocation,
    prediction: Prediction,
) -> list[dict[str, Any]]:
    """What each pin and each forbidding costs: the allocation with all of them, minus the one without it."""
    loss = prediction.expected(made.formats()).loss
    rows = []
    for kind, wished in [*(("pin", wish) for wish in pins), *(("forbid", wish) for wish in forbids)]:
        units = decidable(
            found,
            budget,
            engine,
            [wish for wish in pins if wish is not wished],
            [wish for wish in forbids if wish is not wished],
        )
        without = spent(found, units, budget, prediction)
        price = loss - prediction.expected(without.formats()).loss
        rows.append({kind: wished.text, "price": price, "bytes": round(made.inside[0] - without.inside[0])})
    return rows


def _lines(budget: Budget, plan: Plan, expected: Expected, numbers: dict[str, Any]) -> tuple[str, ...]:
    counts = Counter(choice["format"] or "kept" for choice in numbers["choices"])
    shared = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    lines = [
        f"{budget.text}: {plan.bits_per_weight:.3f} bits per weight, {shared}; expected loss {expected.loss:.4g} "
        f"[{expected.low:.4g}, {expected.high:.4g}].",
        *(
            f"{row.get('pin') or row.get('forbid')} costs {row['price']:.3g} in expected loss."
            for row in numbers["price_of_pins"]
        ),
    ]
    if seen := numbers["verified"]:
        inside = "within" if seen["within"] else "outside of"
        lines.append(f"Measured: {seen['kl']:.4g}, {inside} the expected interval, {seen['ratio']:.3g} times expected.")
    return (*lines, f"The recipe is {numbers['recipe']}.")
