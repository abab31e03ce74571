"""`map`: what every place loses in every format, quantized alone, and what it gives back, restored alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from subeight.engine.job import Job
from subeight.engine.loop import run as run_loop
from subeight.engine.rounding import methods_of
from subeight.errors import InputError
from subeight.evals.loss import METRICS
from subeight.evals.scoring import ask
from subeight.export import exporter_for
from subeight.formats import Format
from subeight.map.content import map_numbers
from subeight.map.course import Cells, Course, Effort, rounds_of
from subeight.map.ledger import Ledger
from subeight.map.mapfile import map_of
from subeight.map.mixtures import next_mixtures
from subeight.map.places import Place, kept_of, places_of
from subeight.map.prediction import Formats
from subeight.map.summary import sentences
from subeight.map.work import MapJob
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.recipes import Plan, Recipe, load_recipe
from subeight.recipes.recipe import Rule
from subeight.records import Coordinates, Run, human_bytes
from subeight.records.progress import progress
from subeight.sweep import Where, hire
from subeight.text import Calibration, EvaluationSet
from subeight.verbs.evaluate import evaluation_settings
from subeight.verbs.feeding import feed
from subeight.verbs.forecast import mapping
from subeight.verbs.options import Options
from subeight.verbs.planning import checkpoint_bytes, planned_recipe, predicted, target_of
from subeight.verbs.quantize import keep_plan, loop_settings, require_full_precision
from subeight.verbs.session import Result, Session, calibration_settings, finish, where

FORMATS = ("int8", "int4", "int3", "int2")
_THOUSAND = 1000
_ALWAYS = 18  # passes of the whole text that every map needs: the prior, mixtures


def map(
    model: str,
    formats: Sequence[str] = FORMATS,
    *,
    recipe: str = "rtn-int4",
    by: str = "group",
    every: int = 1,
    metric: str = "kl",
    rescue: Sequence[str] | None = None,
    share: float = 0.1,
    workers: Where | None = None,
    options: Options | None = None,
) -> Result:
    """Measures every place of `model` in every format, one at a time, against the exact baseline.

    The codes come from the recipe's own methods with its formats replaced. `rescue` names the formats in which the
    other view is measured too (default: the lowest). With `every` above 1 the map is sampled: one block of every so
    many is measured and stands for those around it (first and last for themselves). `share` bounds the work as a share
    of the naive way's. Computes in float32 unless `options.dtype` says otherwise: a single 8-bit linear is nearer to
    the baseline than bfloat16 is.

    Raises:
        InputError: a format, metric, `by`, `every` or text that cannot be; a model that is quantized already.
    """
    options = options or Options()
    session = Session("map", replace(options, dtype="float32" if options.dtype == "auto" else options.dtype))
    parsed = _parsed(formats, metric, share)
    restored = _restored(rescue, parsed)
    opened = session.model(model)
    require_full_precision(opened)
    places = places_of(opened, by, every)
    planned = [_planned(opened, load_recipe(recipe), format, places, session.options) for format in parsed]
    calibration = feed(session, opened, *planned[0]).calibration
    evaluation = session.evaluation(opened)
    if options.dry_run:
        return _dry(session, opened, places, planned, evaluation, share)
    point = _point(session, opened, planned, calibration, evaluation)
    identity = {
        "coordinates": point.model_dump(),
        "by": by,
        "metric": metric,
        "share": share,
        **({"every": every} if every > 1 else {}),
        "rescue": map_text(restored),
    }
    with session.run(opened, identity, _candidate_bytes(planned)) as run:
        candidates = _quantized(session, opened, planned, calibration, run)
        text = _samples(session, opened, evaluation, metric)
        job = _job(session, opened, where(model), places, planned, candidates, text, metric, workers)
        effort = Effort(share, tuple(parsed.index(format) for format in restored))
        asked: dict[str, Any] = {"formats": map_text(parsed), "by": by, "every": every, "metric": metric}
        asked |= {"recipe": recipe, "kept": kept_of(opened)}
        asked["methods"] = [use.plain() for use in planned[0][0].methods]
        numbers = _measured(session, opened, job, parsed, run, effort, workers, asked)
        subject = {"model": opened.label, "paths": {"model": where(model)}}
        settings = calibration_settings(calibration) | evaluation_settings(options, text.tokens)
        settings["eval_cap"] = options.eval_tokens
        record = session.record(point, numbers, subject=subject, settings=settings)
        return finish(run, record, sentences(numbers))


def _restored(rescue: Sequence[str] | None, formats: Sequence[Format]) -> list[Format]:
    """The formats of the other view; the lowest where none is named."""
    found = [formats[-1]] if rescue is None else [Format.parse(text) for text in rescue]
    if missing := [str(format) for format in found if format not in formats]:
        known = ", ".join(map_text(formats))
        raise InputError(
            f"--rescue was given {missing[0]}, which is not among the formats {known}; add it to --formats."
        )
    return found


def _job(
    session: Session,
    model: Model,
    baseline: str,
    places: Sequence[Place],
    planned: Sequence[tuple[Recipe, Plan]],
    candidates: Sequence[Path],
    text: EvaluationSet,
    metric: str,
    workers: Where | None,
) -> MapJob:
    """What every worker is given."""
    options = session.options
    pairs = zip(candidates, planned, strict=True)
    return MapJob(
        baseline=baseline,
        candidates=tuple(str(path.resolve()) for path in candidates),
        gauges=tuple(align(model, Model(path)) if _moves(plan) else None for path, (_, plan) in pairs),
        places=tuple(places),
        rounds=rounds_of(text),
        computing=session.computing_in(workers),
        metric=metric,
        threads=options.threads,
        trust_remote_code=options.trust_remote_code,
    )


def map_text(formats: Sequence[Format]) -> list[str]:
    """Formats as a record names them."""
    return [str(format) for format in formats]


def _parsed(formats: Sequence[str], metric: str, share: float) -> list[Format]:
    """The formats, the widest first, each once."""
    if metric not in METRICS:
        raise InputError(f"--metric was given {metric!r}; give one of {', '.join(METRICS)}.")
    if not 0 < share <= 1:
        raise InputError(f"--share was given {share:g}; give a share of the naive way's work, above 0 and up to 1.")
    found = {str(format): format for format in (Format.parse(text) for text in formats if text.strip())}
    if not found:
        raise InputError("--formats names no format; give some, such as int8,int4,int3,int2.")
    return sorted(found.values(), key=lambda format: -format.bits((1024, 1024)))


def _planned(
    model: Model, recipe: Recipe, format: Format, places: Sequence[Place], options: Options
) -> tuple[Recipe, Plan]:
    """The recipe with this format everywhere, embeddings and head included."""
    if recipe.inputs is not None:
        raise InputError(
            f"The recipe {recipe.name} rounds inputs too, and a map is of weights; leave its `inputs` out."
        )
    outside = [place for place in places if place.linears[0].block is None]
    rules = [Rule(match=name, weights=str(format)) for place in outside for name in place.names]
    changed = {"name": f"map-{format}".replace(":", "-"), "weights": str(format), "rules": rules}
    return planned_recipe(model, recipe.model_copy(update=changed), options, tap="exact")


def _moves(plan: Plan) -> bool:
    return any(method.move == "move" for site in plan.quantized for method in methods_of(site))


def _point(
    session: Session,
    model: Model,
    planned: Sequence[tuple[Recipe, Plan]],
    calibration: Calibration | None,
    evaluation: EvaluationSet,
) -> Coordinates:
    return Coordinates(
        baseline=model.coordinate,
        recipe="+".join(plan.fingerprint[:8] for _, plan in planned),
        calibration=None if calibration is None else calibration.hash,
        evaluation=evaluation.hash,
        stack=session.stack.hash,
    )


def _dry(
    session: Session,
    model: Model,
    places: Sequence[Place],
    planned: Sequence[tuple[Recipe, Plan]],
    evaluation: EvaluationSet,
    share: float,
) -> Result:
    """What the map will take, nothing written; the record has no baseline, whose hash would read every weight."""
    cells, disk = len(places) * len(planned), _candidate_bytes(planned)
    passes = max(
        share * cells, _ALWAYS + 2 * len(planned) + cells / 32
    )  # every cell half the blocks, a sixteenth of text
    runs = passes * evaluation.tokens * len(model.skeleton.blocks)
    made = [predicted(model, recipe, plan, session) for recipe, plan in planned]
    quantize = sum(one["seconds"] for one in made)
    found = mapping(session, model, evaluation.tokens, len(planned), runs, len({place.at for place in places}))
    numbers = {
        "predicted": {
            "cells": cells,
            "block_runs": round(runs),
            "disk_bytes": disk + found["disk_bytes"],
            "memory_bytes": max(found["memory_bytes"], *(one["memory_bytes"] for one in made)),
            "seconds": quantize + found["seconds"],
        }
    }
    lines = (
        f"{len(places)} places in {len(planned)} formats: {cells:,} cells on {evaluation.tokens:,} tokens, about "
        f"{runs / _THOUSAND:,.0f} thousand block runs of a token ({passes / cells:.0%} of the naive way's).",
        f"Before that the model is quantized in every format: about {quantize:,.0f} s, {human_bytes(disk)} of disk.",
    )
    coordinates = Coordinates(stack=session.stack.hash)
    return Result(session.record(coordinates, numbers, subject={"model": model.label}), lines=lines)


def _candidate_bytes(planned: Sequence[tuple[Recipe, Plan]]) -> int:
    """What the model in every format takes on disk."""
    return sum(checkpoint_bytes(plan, dense=target_of(plan) == "dense") for _, plan in planned)


def _quantized(
    session: Session,
    model: Model,
    planned: Sequence[tuple[Recipe, Plan]],
    calibration: Calibration | None,
    run: Run,
) -> list[Path]:
    """The model in every format, in one pass over the calibration text; what is finished is not done again."""
    jobs = []
    for recipe, plan in planned:
        directory = run.directory / "candidates" / recipe.name
        Run.create(directory, "quantize", {"plan": plan.fingerprint, "calibration": calibration and calibration.hash})
        keep_plan(directory, recipe, plan)
        jobs.append(Job(plan, directory, exporter_for(target_of(plan))))
    settings = replace(loop_settings(session, calibration), dtype=compute_dtype("auto", session.device))
    run_loop(model, jobs, None if calibration is None else calibration.ids, settings)
    return [job.directory for job in jobs]


def _samples(session: Session, model: Model, evaluation: EvaluationSet, metric: str) -> EvaluationSet:
    """What is measured: questions with choices, or everything that has a token to score, answers included."""
    if metric == "choices":
        kept = tuple(s for s in evaluation.samples if s.choices is not None and s.answer is not None)
    else:
        sequences = ask(model, evaluation, session.computing, session.cache).sequences
        kept = tuple(sample for sample in sequences.samples[: sequences.scored] if sample.count)
    if not kept:
        raise InputError(
            f"The metric is {metric}, but the evaluation text has nothing that it can score; give other text."
        )
    return EvaluationSet(kept, evaluation.hash)


def _measured(
    session: Session,
    model: Model,
    job: MapJob,
    formats: Sequence[Format],
    run: Run,
    effort: Effort,
    workers: Where | None,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """The numbers of the record: `asked`, and all that was measured."""
    bytes = np.asarray([[place.bits(format) * place.weights / 8 for format in formats] for place in job.places])
    kept = np.asarray([float(place.weights * place.linears[0].dtype.itemsize) for place in job.places])
    ledger = Ledger(job, run.directory / ".cells")
    with hire(job, workers) as crew:
        course = Course(ledger, len(model.skeleton.blocks), (bytes, kept), crew, effort)
        with progress(
            course.most / _THOUSAND, f"Mapping {model.label}", "thousand block runs", quiet=session.options.quiet
        ) as advance:
            course.run(lambda count: advance(count / _THOUSAND))
            for count in course.mixture_rounds:
                known = map_of({**asked, **map_numbers(ledger, course, formats)})
                mixtures = [_cells(mixture, job.places, known.formats) for mixture in next_mixtures(known, count)]
                course.mix(mixtures, lambda count: advance(count / _THOUSAND))
        numbers = {**asked, **map_numbers(ledger, course, formats)}
        used = {"cpu_seconds": sum(crew.cpu_seconds.values()), "workers": len(crew.cpu_seconds), "deaths": crew.deaths}
    numbers["cost"] |= used
    return numbers


def _cells(mixture: Formats, places: Sequence[Place], formats: Sequence[str]) -> Cells:
    """What a mixture quantizes, by number."""
    return [(at, formats.index(format)) for at, place in enumerate(places) if (format := mixture[place.name])]
