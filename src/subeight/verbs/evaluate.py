"""`evaluate`: a candidate against its exact full-precision baseline, on the same tokens."""

from pathlib import Path
from typing import Any

from subeight.errors import InputError, ModelError, RecordError
from subeight.evals.experts import expert_numbers
from subeight.evals.scoring import Question, Scored, ask, require_same_vocabulary, score
from subeight.evals.tasks import run_tasks
from subeight.models.align import require_alike
from subeight.models.footprint import footprint
from subeight.models.model import Model
from subeight.probe.routing import is_mixture
from subeight.records import UNKNOWN, Coordinates, Record, require_comparable
from subeight.sweep import Where
from subeight.verbs import forecast
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish, where


def evaluate(candidate: str, against: str, *, workers: Where | None = None, options: Options | None = None) -> Result:
    """Measures KL(baseline || candidate), perplexity, agreement and flips, each with an interval, per category.

    `workers` run the text through the blocks, batch by batch; answers are written by this process.

    Raises:
        InputError: the candidate was made from another baseline (unless `across` names it), vocabularies differ,
            or the text cannot be used.
    """
    options = options or Options()
    session = Session("evaluate", options)
    baseline, opened = session.model(against), session.model(candidate)
    require_same_vocabulary(baseline, opened)
    evaluation = session.evaluation(baseline)
    if options.dry_run:
        numbers = {"predicted": forecast.evaluation(session, baseline, evaluation)}
        record = session.record(Coordinates(stack=session.stack.hash), numbers, subject={"candidate": opened.label})
        return Result(record, lines=(f"{opened.label} against {baseline.label} on {evaluation.tokens:,} tokens",))
    coordinates, warnings = candidate_coordinates(opened, baseline, session, evaluation.hash)
    identity = {
        "coordinates": coordinates.model_dump(),
        "candidate": opened.coordinate,
        "generate": options.generate,
        "tasks": options.tasks,
    }
    with session.run(opened, identity) as run:
        tasks = _tasks(opened, baseline, session)
        with session.crew(workers) as crew:
            question = ask(baseline, evaluation, session.computing, session.cache, generate=options.generate, crew=crew)
            scored = score(question, opened, seed=options.seed, crew=crew)
        experts = _experts(baseline, opened, question, session)
        record = session.record(
            coordinates,
            {**evaluate_numbers(opened, scored), **tasks, **({"experts": experts} if experts else {})},
            subject={
                "candidate": opened.label,
                "baseline": baseline.label,
                "paths": {"candidate": where(candidate), "baseline": where(against)},
            },
            settings=evaluation_settings(options, evaluation.tokens),
            warnings=[*warnings, *scored.numbers.get("warnings", [])],
        )
        run.write_samples(scored.rows)
        return finish(run, record, (sentence(opened.label, record.numbers),))


def _experts(baseline: Model, candidate: Model, question: Question, session: Session) -> dict[str, Any] | None:
    """What happened inside a mixture of experts; None for other models, and for two that are not of one shape."""
    if not is_mixture(baseline) or candidate.coordinate == baseline.coordinate:
        return None
    try:
        require_alike(baseline, candidate)
    except ModelError:
        return None
    return expert_numbers(baseline, candidate, question.sequences, session.computing, seed=session.options.seed)


def _tasks(candidate: Model, baseline: Model, session: Session) -> dict[str, Any]:
    if not session.options.tasks:
        return {}
    gguf = next((model for model in (candidate, baseline) if model.source.gguf is not None), None)
    if gguf is not None:
        raise InputError(f"{gguf.label} is a GGUF file, which lm-eval does not run here; give it as a directory.")
    tasks = list(session.options.tasks)
    device = str(session.device)
    return {
        "tasks": run_tasks(candidate.directory, baseline.directory, tasks, device=device, seed=session.options.seed)
    }


def evaluate_numbers(model: Model, scored: Scored) -> dict[str, Any]:
    """The numbers of an evaluate record, size included."""
    size = footprint(model)
    numbers = {key: value for key, value in scored.numbers.items() if key != "warnings"}
    return {"bits_per_weight": size.bits_per_weight, "bytes": size.bytes, **numbers}


def evaluation_settings(options: Options, tokens: int) -> dict[str, Any]:
    """What a record says of the evaluation text."""
    return {
        "evals": list(options.evals),
        "eval_tokens": tokens,
        "eval_window": options.eval_window,
        "generate": options.generate,
    }


def candidate_coordinates(
    candidate: Model, baseline: Model, session: Session, evaluation: str
) -> tuple[Coordinates, list[str]]:
    """The candidate's own coordinates where its directory has our record, checked against the baseline asked for."""
    here = Coordinates(baseline=baseline.coordinate, evaluation=evaluation, stack=session.stack.hash)
    if candidate.coordinate == baseline.coordinate:
        return here, []
    record = own_record(candidate.directory)
    if record is None:
        made = here.model_copy(update={"recipe": UNKNOWN, "calibration": UNKNOWN})
        return made, [f"{candidate.label} has no record of ours: its recipe, calibration and baseline are unknown."]
    own = record.coordinates
    warnings = require_comparable(
        Coordinates(baseline=own.baseline),
        Coordinates(baseline=here.baseline),
        moving=None,
        across=session.options.across,
    )
    return here.model_copy(update={"recipe": own.recipe, "calibration": own.calibration}), warnings


def own_record(directory: Path) -> Record | None:
    """The record that a quantize or an export of ours left in a checkpoint directory."""
    path = directory / "record.json"
    if not path.is_file():
        return None
    try:
        record = Record.read(path)
    except RecordError:
        return None
    return record if record.kind in {"quantize", "export", "train-qat"} else None


def sentence(label: str, numbers: dict[str, Any]) -> str:
    """One line that says how far a candidate is from its baseline."""
    if numbers.get("kl") is None:
        choices = numbers.get("choices") or {}
        return f"{label}: accuracy {choices.get('accuracy')} (baseline {choices.get('accuracy_baseline')})"
    low, high = numbers["kl_ci"] or (float("nan"), float("nan"))
    return (
        f"{label}: KL {numbers['kl']:.4f} [{low:.4f}, {high:.4f}], perplexity {numbers['ppl']:.2f} (baseline "
        f"{numbers['ppl_baseline']:.2f}), top-1 agreement {numbers['top1']:.3f}, {numbers['bits_per_weight']:.2f} bits"
    )
