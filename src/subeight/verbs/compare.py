"""`compare`: several recipes on one model, measured on the same text against the same baseline."""

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from subeight.engine.job import Job
from subeight.engine.lane import Lane
from subeight.engine.loop import run as run_loop
from subeight.engine.spread import Work, run_spread
from subeight.errors import RecipeError
from subeight.evals.contest import best_row, categories_of, pairs_of
from subeight.evals.scoring import Question, Scored, ask, score
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe
from subeight.records import Coordinates, Run, peak_rss_bytes, require_comparable
from subeight.sweep import Crew, Where
from subeight.text import Calibration
from subeight.verbs.evaluate import evaluate_numbers, evaluation_settings
from subeight.verbs.feeding import feed
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import planned, predicted, target_of
from subeight.verbs.quantize import (
    coordinates_of,
    keep_plan,
    loop_settings,
    quantize_numbers,
    require_full_precision,
    warnings_of,
)
from subeight.verbs.session import Result, Session, calibration_settings, finish, finished
from subeight.verbs.strategies import strategies_of


@dataclass(frozen=True)
class Entry:
    """One recipe in the comparison."""

    recipe: Recipe
    plan: Plan
    target: str
    calibration: Calibration | None
    forecast: dict[str, Any]

    @property
    def name(self) -> str:
        return self.recipe.name


def compare(
    model: str,
    recipes: Sequence[str],
    *,
    shared: bool = False,
    workers: Where | None = None,
    options: Options | None = None,
) -> Result:
    """Quantizes `model` by every recipe, measures each, and prints one table.

    With `shared` the statistics of all recipes are taken of the baseline's own activations in one pass (`tap: exact`),
    which is cheaper; otherwise each recipe taps what its own quantized blocks produce, as `quantize` does.
    `workers` quantize by a recipe each (then every recipe has a pass of its own), and share the evaluation's batches.

    Raises:
        InputError: as for `quantize` and `evaluate`; recipes whose calibration differs, unless `across` names it.
    """
    options = options or Options()
    session = Session("compare", options)
    opened = session.model(model)
    require_full_precision(opened)
    entries = [_entry(session, opened, name, shared) for name in recipes]
    warnings = _require_comparison(entries, options.across)
    evaluation = session.evaluation(opened)
    if options.dry_run:
        return _dry(session, opened, entries)
    identity = [coordinates_of(session, opened, e.plan, e.calibration, evaluation.hash).model_dump() for e in entries]
    whole = {"rows": identity, "names": [entry.name for entry in entries], "generate": options.generate}
    with session.run(opened, whole, sum(entry.forecast["disk_bytes"] for entry in entries)) as run:
        if before := finished(run, [run.directory / entry.name for entry in entries]):
            return before
        lanes = _quantize_all(session, opened, entries, run, workers)
        with session.crew(workers) as crew:
            question = ask(opened, evaluation, session.computing, session.cache, generate=options.generate, crew=crew)
            rows, scores = _measured(session, run, question, list(zip(entries, lanes, strict=True)), crew)
        warnings += _warnings(entries, lanes, scores)
        result = _concluded(session, run, question, entries, rows, scores, warnings)
    for entry in entries:
        shutil.rmtree(run.directory / entry.name / ".blocks", ignore_errors=True)
    return result


def _entry(session: Session, model: Model, name: str, shared: bool) -> Entry:
    recipe, plan = planned(model, name, session.options, tap="exact" if shared else None)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", recipe.name):
        raise RecipeError(
            f"The recipe {name} is called {recipe.name!r}, which cannot name a directory; use letters, digits, '.', "
            "'_' and '-'."
        )
    fed = feed(session, model, recipe, plan)
    plan, calibration = fed.plan, fed.calibration
    target = target_of(plan)
    exporter_for(target).require(plan.sites)
    forecast = predicted(model, recipe, plan, session, dense=target == "dense")
    return Entry(recipe, plan, target, calibration, forecast)


def _require_comparison(entries: Sequence[Entry], across: Sequence[str]) -> list[str]:
    """Recipes of different names that saw the same calibration text; returns the warnings."""
    names = [entry.name for entry in entries]
    if not names:
        raise RecipeError("No recipe was given to compare; name two or more, separated by commas.")
    if len(set(names)) < len(names):
        raise RecipeError(f"The recipes {', '.join(names)} are not all different; give each name once.")
    points = [Coordinates(calibration=e.calibration.hash if e.calibration else None) for e in entries]
    found = [w for a, b in combinations(points, 2) for w in require_comparable(a, b, moving="recipe", across=across)]
    return sorted(set(found))


def _quantize_all(
    session: Session, model: Model, entries: Sequence[Entry], run: Run, workers: Where | None
) -> list[Lane]:
    works: dict[str, Work] = {}
    together: dict[str | None, list[str]] = {}  # the recipes of one calibration text
    for entry in entries:
        directory = run.directory / entry.name
        identity = coordinates_of(session, model, entry.plan, entry.calibration).model_dump()
        Run.create(directory, "quantize", {"coordinates": identity, "to": entry.target})
        keep_plan(directory, entry.recipe, entry.plan)
        job = Job(entry.plan, directory, exporter_for(entry.target))
        works[entry.name] = Work(job, entry.calibration.ids if entry.calibration else None)
        together.setdefault(entry.calibration.hash if entry.calibration else None, []).append(entry.name)
    settings = loop_settings(session)
    if workers is not None and workers != Where():
        return run_spread(model, list(works.values()), settings, workers)
    lanes: dict[str, Lane] = {}
    for names in together.values():
        jobs = [works[name].job for name in names]
        lanes |= zip(names, run_loop(model, jobs, works[names[0]].ids, settings), strict=True)
    return [lanes[entry.name] for entry in entries]


def _measured(
    session: Session, run: Run, question: Question, done: Sequence[tuple[Entry, Lane]], crew: Crew[Any] | None
) -> tuple[list[dict[str, Any]], dict[str, Scored]]:
    """The rows of the table, and every candidate's outcomes by its recipe's name."""
    rows, scores = [], {}
    for entry, lane in done:
        candidate = session.model(str(lane.job.directory))
        _record_of(session, question.baseline, entry, lane, verified(lane.job.directory, session))
        scored = score(question, candidate, seed=session.options.seed, crew=crew)
        rows.append(_row(entry, lane, candidate, scored))
        scores[entry.name] = scored
        run.write_samples(scored.rows, entry.name)
    # The page shows one recipe in detail, the closest; the others keep theirs in their own checkpoints.
    closest = min(rows, key=lambda row: math.inf if row.get("kl") is None else row["kl"])
    run.write_record(Run.open(closest["checkpoint"]).read(), closest["recipe"])
    return rows, scores


def _concluded(
    session: Session,
    run: Run,
    question: Question,
    entries: Sequence[Entry],
    rows: list[dict[str, Any]],
    scores: dict[str, Scored],
    warnings: list[str],
) -> Result:
    """The comparison's own record: the rows, who is better than whom, and whether one is the best."""
    options, evaluation = session.options, question.evaluation
    pairs = pairs_of(scores, seed=options.seed)
    best, why = best_row(rows, pairs)
    plans = {entry.name: entry.plan for entry in entries}
    strategies = strategies_of(session, question.baseline, plans, rows, pairs)
    texts = {entry.calibration.hash: entry.calibration for entry in entries if entry.calibration}
    coordinates = Coordinates(
        baseline=question.baseline.coordinate,
        calibration=next(iter(texts)) if len(texts) == 1 else None,
        evaluation=evaluation.hash,
        stack=session.stack.hash,
    )
    exact = all(entry.plan.tap == "exact" for entry in entries)
    record = session.record(
        coordinates,
        {
            "rows": rows,
            "best": best,
            "why": why,
            "pairs": pairs,
            "strategies": strategies,
            "categories": categories_of(scores, seed=options.seed),
            "settings_note": options.note,
        },
        subject={"model": question.baseline.label},
        settings={
            **calibration_settings(next(iter(texts.values()), None)),
            **evaluation_settings(options, evaluation.tokens),
            "statistics": "one pass of the baseline, shared" if exact else "each recipe's own",
        },
        warnings=warnings,
    )
    return finish(run, record, (why, *(strategy["why"] for strategy in strategies)))


def _record_of(session: Session, model: Model, entry: Entry, lane: Lane, parity: dict[str, Any] | None) -> None:
    """Writes the quantize record of one recipe into its own checkpoint."""
    directory: Path = lane.job.directory
    record = session.record(
        coordinates_of(session, model, entry.plan, entry.calibration),
        quantize_numbers(entry.plan, lane, directory, parity, entry.forecast),
        subject={"model": model.label, "recipe": entry.name, "checkpoint": str(directory)},
        settings={**calibration_settings(entry.calibration), "to": entry.target},
        warnings=warnings_of(lane),
    ).model_copy(update={"kind": "quantize", "seconds": lane.seconds})
    Run.open(directory).write_record(record)


def _warnings(entries: Sequence[Entry], lanes: Sequence[Lane], scores: dict[str, Scored]) -> list[str]:
    rounding = [f"{e.name}: {word}" for e, lane in zip(entries, lanes, strict=True) for word in warnings_of(lane)]
    return [*rounding, *sorted({word for s in scores.values() for word in s.numbers.get("warnings", [])})]


def _row(entry: Entry, lane: Lane, candidate: Model, scored: Scored) -> dict[str, Any]:
    numbers = evaluate_numbers(candidate, scored)
    return {
        **numbers,
        "recipe": entry.name,
        "label": entry.name,
        "bits_per_weight": entry.plan.bits_per_weight,
        "bytes": entry.plan.bytes,
        "stored": entry.target,
        "checkpoint": str(lane.job.directory),
        "plan": entry.plan.fingerprint,
        "calibration": entry.calibration.hash if entry.calibration else None,
        "quantize_seconds": lane.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _dry(session: Session, model: Model, entries: Sequence[Entry]) -> Result:
    lines: list[str] = []
    for entry in entries:
        lines += [f"{entry.name}:", *(f"  {line}" for line in entry.plan.summary())]
    forecasts = {entry.name: entry.forecast for entry in entries}
    coordinates = Coordinates(stack=session.stack.hash)  # the baseline's hash would read every weight
    record = session.record(coordinates, {"predicted": forecasts}, subject={"model": model.label})
    return Result(record, lines=tuple(lines))
