"""The calibration text of a plan, and what each expert of a mixture gets of it: measured, topped up, what stays dry.

Measured on the baseline's own routing, before anything is quantized.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subeight.models.model import Model
from subeight.probe.forcing import forced_bias
from subeight.probe.routing import Routes, is_mixture, routes
from subeight.probe.topup import TopUp, top_up
from subeight.recipes import Calibration as Asked
from subeight.recipes import Plan, Recipe
from subeight.recipes.fallback import with_fallback
from subeight.text import Calibration, CalibrationSpec, further
from subeight.verbs.planning import calibration_of, length_of
from subeight.verbs.session import Session

POOL = 512  # sequences that are looked through for starved experts
MARGIN = 1.1  # more than is asked for: routing moves a little while the blocks before are quantized
_NAMED = 4


@dataclass(frozen=True)
class Fed:
    """A plan and its calibration as they are carried out; `experts` is what a record says of them."""

    plan: Plan
    calibration: Calibration | None
    experts: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def feed(session: Session, model: Model, recipe: Recipe, plan: Plan, engine: str = "any") -> Fed:
    """The calibration text of the recipe; for a mixture of experts with as much for each as the recipe asks.

    Experts that nothing reaches are rounded plainly, or in the recipe's `unreached` format, and the plan says so. A dry
    run reads no weight and leaves all of that out.
    """
    calibration = calibration_of(session, model, recipe, plan)
    if calibration is None or session.options.dry_run or not is_mixture(model):
        return Fed(plan, calibration)
    asked = recipe.calibration
    found = _routes(session, model, calibration.ids)
    before, short = len(calibration.ids), dict[str, int]()
    if asked.per_expert:
        calibration, found, short = _topped_up(session, model, asked, calibration, found)
    if asked.forced:
        numbers = _numbers(asked, found, before, short)
        return Fed(plan, calibration.shown_to_all(), _with_bias(session, model, calibration.ids, numbers))
    dry = {name for name, tokens in zip(found.experts, found.tokens.tolist(), strict=True) if not tokens}
    plan = with_fallback(plan, dry, recipe.unreached, engine)
    return Fed(plan, calibration, _numbers(asked, found, before, short), _warnings(asked, found, short))


def coverage_of(session: Session, model: Model, calibration: Calibration) -> dict[str, Any] | None:
    """What of a calibration text each expert gets, as a record keeps it; None where the model has no experts."""
    if not is_mixture(model):
        return None
    return _numbers(Asked(), _routes(session, model, calibration.ids), len(calibration.ids), {})


def with_outcomes(
    experts: dict[str, Any] | None, plan: Plan, outcomes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The numbers of experts with what rounding found: tokens that came, and the largest error of a linear's output.

    On the calibration text, of which an expert that got little of it shows too small an error: see `evaluate`.
    """
    if experts is None:
        return None
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for site in plan.quantized:
        if site.linear.expert is not None and site.linear.name in outcomes:
            found[site.linear.expert].append(outcomes[site.linear.name])
    rows = []
    for row in experts["rows"]:
        mine = found.get(row["expert"], [])
        errors = [one["output_error"] for one in mine if one["output_error"] is not None]
        came = [one["notes"]["tokens"] for one in mine if "tokens" in one["notes"]]
        rows.append({**row, "tapped": min(came, default=None), "calibration_error": max(errors, default=None)})
    return {**experts, "rows": rows}


def _routes(session: Session, model: Model, ids: torch.Tensor, what: str = "Watching the routers") -> Routes:
    computing = session.computing
    return routes(model, ids, dtype=computing.dtype, device=computing.device, quiet=computing.quiet, what=what)


def _topped_up(
    session: Session, model: Model, asked: Asked, calibration: Calibration, found: Routes
) -> tuple[Calibration, Routes, dict[str, int]]:
    """Calibration and routes with the sequences that starved experts need, and which stay short of the minimum."""
    if bool((found.tokens >= asked.per_expert).all()):
        return calibration, found, {}
    spec = CalibrationSpec(asked.pool or asked.source, 1, length_of(asked, model), asked.seed)
    windows = further(spec, model.tokenizer(), calibration.ids, POOL)
    if not windows:
        return calibration, found, _short(found, asked.per_expert)
    pool = _routes(session, model, torch.tensor([ids for _, ids in windows]), "Looking for text for starved experts")
    taken: TopUp = top_up(found.tokens, pool.counts, round(MARGIN * asked.per_expert))
    whole = found.followed_by(pool, taken.chosen)
    more = calibration.and_more([windows[number] for number in taken.chosen])
    return more, whole, _short(whole, asked.per_expert)


def _short(found: Routes, least: int) -> dict[str, int]:
    listed = zip(found.experts, found.tokens.tolist(), strict=True)
    return {name: tokens for name, tokens in listed if tokens < least}


def _numbers(asked: Asked, found: Routes, before: int, short: dict[str, int]) -> dict[str, Any]:
    return {
        "per_expert": asked.per_expert,
        "pool": asked.pool,
        "forced": asked.forced,
        "sequences": len(found.counts),
        "added": len(found.counts) - before,
        "tokens": len(found.counts) * found.length,
        "short": short,
        "rows": found.rows(before if len(found.counts) > before else None),
    }


def _warnings(asked: Asked, found: Routes, short: dict[str, int]) -> tuple[str, ...]:
    dry = [name for name, tokens in zip(found.experts, found.tokens.tolist(), strict=True) if not tokens]
    lines = []
    if dry:
        lines.append(f"Calibration reaches {len(dry)} experts with no token ({_named(dry)}): they are rounded plainly.")
    if short:
        lines.append(
            f"{len(short)} of {len(found.experts)} experts stay under the {asked.per_expert} tokens of `per_expert`: "
            f"{_named([f'{name} ({tokens})' for name, tokens in short.items()])}; nothing in the pool reaches them "
            "often enough. Give a `pool` of text that does, or `forced: true`."
        )
    return tuple(lines)


def _with_bias(session: Session, model: Model, ids: torch.Tensor, numbers: dict[str, Any]) -> dict[str, Any]:
    """How far what each expert is shown is from what it is sent."""
    computing = session.computing
    bias = forced_bias(model, ids, dtype=computing.dtype, device=computing.device, quiet=computing.quiet)
    return {**numbers, "rows": [{**row, "forced_bias": bias[row["expert"]]} for row in numbers["rows"]]}


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
