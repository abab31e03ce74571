"""`compare`: several recipes on one model, measured on the same text against the same baseline."""

import shutil
from dataclasses import dataclass
from typing import Any

from subeight.engine.job import Job
from subeight.engine.lane import Lane
from subeight.engine.loop import run as run_loop
from subeight.errors import RecipeError
from subeight.evals.contest import best_row, pairs_of
from subeight.evals.scoring import Scored, ask, score
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe
from subeight.records import Coordinates, Run, peak_rss_bytes
from subeight.text import Calibration
from subeight.verbs.evaluate import evaluate_numbers, evaluation_settings
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import calibration_of, planned, predicted, reads_text
from subeight.verbs.quantize import coordinates_of, keep_plan, loop_settings, quantize_numbers
from subeight.verbs.session import Result, Session, calibration_settings, finish


@dataclass(frozen=True)
class Entry:
    """One recipe in the comparison."""

    recipe: Recipe
    plan: Plan
    target: str
    calibration: Calibration | None


def compare(model: str, recipes: list[str], *, shared: bool = False, options: Options | None = None) -> Result:
    """Quantizes `model` by every recipe, measures each, and prints one table.

    With `shared` the statistics of all recipes are taken of the baseline's own activations in one pass (`tap: exact`),
    which is cheaper; otherwise each recipe taps what its own quantized blocks produce, as `quantize` does.

    Raises:
        InputError: as for `quantize` and `evaluate`; recipes whose calibration differs, with `shared`.
    """
    options = options or Options()
    session = Session("compare", options)
    opened = session.model(model)
    entries = [_entry(session, opened, name, shared) for name in recipes]
    evaluation = session.evaluation(opened)
    identity = [coordinates_of(session, opened, e.plan, e.calibration, evaluation.hash).model_dump() for e in entries]
    if options.dry_run:
        return _dry(session, opened, entries)
    run = session.run(opened, {"rows": identity})
    lanes = _quantize_all(session, opened, entries, run)
    question = ask(opened, evaluation, session.computing, options.cache, generate=options.generate)
    rows, scores = [], {}
    for entry, lane in zip(entries, lanes, strict=True):
        candidate = Model(lane.job.directory)
        parity = verified(lane.job.directory, session)
        scored = score(question, candidate, seed=options.seed)
        _record_of(session, run, opened, entry, lane, parity)
        rows.append(_row(entry, lane, candidate, scored))
        scores[entry.recipe.name] = scored
        run.write_samples(scored.rows, entry.recipe.name)
    pairs = pairs_of(scores, seed=options.seed)
    best, why = best_row(rows, pairs)
    first = entries[0].calibration
    record = session.record(
        Coordinates(baseline=opened.coordinate, evaluation=evaluation.hash, stack=session.stack.hash),
        {"rows": rows, "best": best, "why": why, "pairs": pairs, "settings_note": options.note},
        subject={"model": opened.label},
        settings={
            **calibration_settings(first),
            **evaluation_settings(options, evaluation.tokens),
            "statistics": "one pass of the baseline, shared" if shared else "each recipe's own",
        },
        warnings=sorted({w for s in scores.values() for w in s.numbers.get("warnings", [])}),
    )
    return finish(run, record, (why,))


def _entry(session: Session, model: Model, name: str, shared: bool) -> Entry:
    recipe, plan = planned(model, name, session.options, tap="exact" if shared else None)
    calibration = calibration_of(session, model, recipe) if reads_text(plan) else None
    target = "compressed-tensors" if all("transformers" in site.runs_in for site in plan.quantized) else "dense"
    exporter_for(target).require(plan.sites)
    return Entry(recipe, plan, target, calibration)


def _quantize_all(session: Session, model: Model, entries: list[Entry], run: Run) -> list[Lane]:
    names = [entry.recipe.name for entry in entries]
    if len(set(names)) < len(names):
        raise RecipeError(f"The recipes {', '.join(names)} are not all different; give each name once.")
    lanes: dict[str, Lane] = {}
    batches: dict[str | None, list[Entry]] = {}
    for entry in entries:
        batches.setdefault(entry.calibration.hash if entry.calibration else None, []).append(entry)
    for same in batches.values():
        jobs = []
        for entry in same:
            directory = run.directory / entry.recipe.name
            directory.mkdir(exist_ok=True)
            keep_plan(directory, entry.recipe, entry.plan)
            jobs.append(Job(entry.plan, directory, exporter_for(entry.target)))
        ids = same[0].calibration.ids if same[0].calibration else None
        for entry, lane in zip(same, run_loop(model, jobs, ids, loop_settings(session)), strict=True):
            lanes[entry.recipe.name] = lane
    return [lanes[name] for name in names]


def _record_of(
    session: Session, run: Run, model: Model, entry: Entry, lane: Lane, parity: dict[str, Any] | None
) -> None:
    """The quantize record of one recipe, in its own checkpoint and beside the comparison's."""
    tokens = 0 if entry.calibration is None else entry.calibration.ids.numel()
    forecast = predicted(model, entry.plan, tokens, session)
    record = session.record(
        coordinates_of(session, model, entry.plan, entry.calibration),
        quantize_numbers(entry.plan, lane, lane.job.directory, parity, forecast),
        subject={"model": model.label, "recipe": entry.recipe.name, "checkpoint": str(lane.job.directory)},
        settings=calibration_settings(entry.calibration),
    ).model_copy(update={"kind": "quantize", "seconds": lane.seconds})
    Run.create(lane.job.directory, "quantize", record.coordinates.model_dump()).write_record(record)
    run.write_record(record, entry.recipe.name)
    shutil.rmtree(lane.job.directory / ".blocks", ignore_errors=True)


def _row(entry: Entry, lane: Lane, candidate: Model, scored: Scored) -> dict[str, Any]:
    numbers = evaluate_numbers(candidate, scored)
    return {
        **numbers,
        "recipe": entry.recipe.name,
        "label": entry.recipe.name,
        "bits_per_weight": entry.plan.bits_per_weight,
        "bytes": entry.plan.bytes,
        "stored": entry.target,
        "checkpoint": str(lane.job.directory),
        "plan": entry.plan.fingerprint,
        "calibration": entry.calibration.hash if entry.calibration else None,
        "quantize_seconds": lane.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _dry(session: Session, model: Model, entries: list[Entry]) -> Result:
    lines: list[str] = []
    forecasts = {}
    for entry in entries:
        tokens = 0 if entry.calibration is None else entry.calibration.ids.numel()
        forecasts[entry.recipe.name] = predicted(model, entry.plan, tokens, session)
        lines += [f"{entry.recipe.name}:", *(f"  {line}" for line in entry.plan.summary())]
    record = session.record(
        Coordinates(baseline=model.coordinate), {"predicted": forecasts}, subject={"model": model.label}
    )
    return Result(record, lines=tuple(lines))
