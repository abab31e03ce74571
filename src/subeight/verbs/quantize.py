"""`quantize`: a model and a recipe in, a checkpoint that was loaded again and compared out."""

import json
import shutil
from pathlib import Path
from typing import Any

from subeight.engine.job import CALIBRATION_BATCH, Job, Settings
from subeight.engine.lane import Lane
from subeight.engine.loop import run as run_loop
from subeight.errors import ModelError
from subeight.export import GGUF, exporter_for, require_gguf
from subeight.export.checkpoint import Exporter
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe
from subeight.records import Coordinates, atomic_write
from subeight.text import Calibration
from subeight.verbs.feeding import feed, with_outcomes
from subeight.verbs.ggufs import gguf_file
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import calibration_of, planned, predicted, target_of
from subeight.verbs.session import Result, Session, calibration_settings, finish, finished, where


def quantize(
    model: str,
    recipe: str = "gptq-int4",
    *,
    engine: str = "any",
    to: str | None = None,
    options: Options | None = None,
) -> Result:
    """Quantizes `model` by `recipe` (a shipped name or a YAML file) into a checkpoint directory.

    The directory is `options.out`; killed at any point, the same call resumes. What was written is loaded by plain
    transformers in a fresh process and its logits compared with what the loop computed. With `to="gguf"` the file
    `model.gguf`, for llama.cpp, is written beside the checkpoint.

    Raises:
        InputError: anything that the user can mend (model, recipe, text, directory, disk).
        ParityError: the written checkpoint computes something else; it is set aside.
    """
    options = options or Options()
    session = Session("quantize", options)
    opened = session.model(model)
    require_full_precision(opened)
    chosen, plan = planned(opened, recipe, options, engine=engine)
    if GGUF in (engine, to):
        require_gguf(opened, plan.sites)
    asked = to
    to, _ = _target(asked, plan)
    forecast = predicted(opened, chosen, plan, session, dense=to == "dense")
    if options.dry_run:
        return _dry(session, opened, plan, forecast, calibration_of(session, opened, chosen, plan))
    fed = feed(session, opened, chosen, plan, engine)
    plan, calibration = fed.plan, fed.calibration
    to, exporter = _target(asked, plan)
    coordinates = coordinates_of(session, opened, plan, calibration)
    identity = {"coordinates": coordinates.model_dump(), "to": asked or to, "batch": CALIBRATION_BATCH}
    needed = forecast["disk_bytes"] * (2 if asked == GGUF else 1)  # the file beside the checkpoint
    with session.run(opened, identity, needed) as run:
        if before := finished(run, [run.directory]):
            return before
        keep_plan(run.directory, chosen, plan)
        ids = None if calibration is None else calibration.ids
        (lane,) = run_loop(opened, [Job(plan, run.directory, exporter)], ids, loop_settings(session, calibration))
        parity = verified(run.directory, session)
        numbers = quantize_numbers(plan, lane, run.directory, parity, forecast)
        numbers["experts"] = with_outcomes(fed.experts, plan, lane.outcomes())
        warnings = [*fed.warnings, *warnings_of(lane)]
        lines = [f"{opened.label} at {plan.bits_per_weight:.3f} bits per weight in {run.directory}"]
        if asked == GGUF:
            file = gguf_file(session.model(str(run.directory)), plan, run.directory, session)
            numbers["gguf"] = {**file.numbers, "file": str(file.path)}
            warnings += file.warnings
            lines.append(f"for llama.cpp: {file.path}")
        subject: dict[str, Any] = {"model": opened.label, "recipe": chosen.name, "checkpoint": str(run.directory)}
        subject["paths"] = {"model": where(model)}
        settings = {**calibration_settings(calibration), "to": to, "engine": engine, "batch": CALIBRATION_BATCH}
        record = session.record(coordinates, numbers, subject=subject, settings=settings, warnings=warnings)
        result = finish(run, record, tuple(lines))
    shutil.rmtree(run.directory / ".blocks", ignore_errors=True)
    return result


def coordinates_of(
    session: Session, model: Model, plan: Plan, calibration: Calibration | None, evaluation: str | None = None
) -> Coordinates:
    """The five coordinates of a quantized model of ours."""
    return Coordinates(
        baseline=model.coordinate,
        recipe=plan.fingerprint,
        calibration=None if calibration is None else calibration.hash,
        evaluation=evaluation,
        stack=session.stack.hash,
    )


def _target(to: str | None, plan: Plan) -> tuple[str, Exporter]:
    """The target that was asked for, or the one that a plan's checkpoint is stored as; it can hold the plan.

    A GGUF file is written beside a checkpoint.
    """
    exporter = exporter_for(target_of(plan) if to in (None, GGUF) else to)
    exporter.require(plan.sites)
    return exporter.name, exporter


def loop_settings(session: Session, calibration: Calibration | None = None) -> Settings:
    """How the loop runs, as the options say."""
    options = session.options
    return Settings(
        session.dtype,
        session.device,
        CALIBRATION_BATCH,
        options.seed,
        _hessian_share(options.max_memory),
        options.scratch,
        options.quiet,
        session.computing.scratch,
        forced=calibration is not None and calibration.forced,
    )


def _hessian_share(limit: int | None) -> int | None:
    # A third: the solver holds a second copy and a factor beside each Hessian.
    return None if limit is None else limit // 3


def keep_plan(directory: Path, recipe: Recipe, plan: Plan) -> None:
    """Writes the recipe and the plan beside the checkpoint."""
    atomic_write(directory / "recipe.yaml", recipe.to_yaml())
    atomic_write(directory / "plan.json", json.dumps(plan.to_dict(), indent=1) + "\n")


def quantize_numbers(
    plan: Plan, lane: Lane, directory: Path, parity: dict[str, Any] | None, forecast: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of a quantize record."""
    outcomes = lane.outcomes()
    linears = []
    for site in plan.sites:
        outcome = outcomes.get(site.linear.name, {})
        row = site.to_dict()
        linears.append(
            {
                **{key: row[key] for key in ("name", "block", "group", "shape", "methods", "reason", "runs_in")},
                "format": row["weights"],  # None: kept as it is stored
                "dtype": row["dtype"],
                "inputs": row["inputs"],
                "bits": row["bits"],
                "bytes": row["bytes"],
                "weight_error": outcome.get("weight_error"),
                "output_error": outcome.get("output_error"),
                "notes": outcome.get("notes", {}),
            }
        )
    return {
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "linears": linears,
        "plan": plan.to_dict(),
        "checkpoint": str(directory),
        "parity": parity,
        "polish": lane.polish_notes(),
        "predicted": forecast,
    }


def warnings_of(lane: Lane) -> list[str]:
    """What a user should know of how the linears were rounded, and of what no number here is about."""
    outcomes = lane.outcomes().values()
    found = []
    if lane.plan.kv is not None:
        found.append(
            f"Keys and values in {lane.plan.kv} are for `generate`; what they cost is measured by `subeight kv`."
        )
    raised = [o["name"] for o in outcomes if o["notes"].get("damping", 0) > 0.01]
    if raised:
        found.append(f"GPTQ had to raise its damping for {len(raised)} linears, first {raised[0]}.")
    unfed = [o["name"] for o in outcomes if o["notes"].get("dead", 0) and o["output_error"] is None]
    if unfed:
        found.append(
            f"Calibration reached {len(unfed)} linears with no token (first {unfed[0]}): they were rounded plainly."
        )
    return found


def _dry(
    session: Session, model: Model, plan: Plan, forecast: dict[str, Any], calibration: Calibration | None
) -> Result:
    # The baseline's hash would read every weight, so a dry run leaves it out.
    coordinates = Coordinates(
        recipe=plan.fingerprint, calibration=calibration.hash if calibration else None, stack=session.stack.hash
    )
    numbers = {
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "plan": plan.to_dict(),
        "predicted": forecast,
    }
    record = session.record(coordinates, numbers, subject={"model": model.label, "recipe": plan.recipe})
    return Result(record, lines=tuple(plan.summary()))


def require_full_precision(model: Model) -> None:
    """Raises ModelError for a checkpoint that has codes already."""
    if model.quantization is not None and model.codes is not None:
        raise ModelError(
            f"{model.label} is quantized already; give the full-precision model, or export its codes with `export`."
        )
