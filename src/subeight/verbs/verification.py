"""An allocation put to the test: quantized by its recipe, measured on the map's own text and on text it did not see.

The pairs of its worst places are measured too; where some interact, it is decided again with half of each interaction
in either cell, quantized and measured again, and the better of both stays.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from subeight.engine.job import Job
from subeight.engine.loop import run as run_loop
from subeight.errors import RecordError, TextError
from subeight.evals.loss import Loss
from subeight.evals.passes import context_length
from subeight.evals.scoring import ANSWER_TOKENS, Question, ask, measure
from subeight.export import exporter_for
from subeight.map.decision import Decision
from subeight.map.interactions import Pair, interactions, with_pairs
from subeight.map.mapfile import MapFile
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.probe.probe import Probe
from subeight.records import Run, fingerprint
from subeight.records.progress import progress
from subeight.text import EvaluationSet, Sample, evaluate_set
from subeight.verbs.feeding import feed
from subeight.verbs.planning import planned_recipe, target_of
from subeight.verbs.quantize import keep_plan, loop_settings
from subeight.verbs.session import Session

_HELD_OUT, _HELD_TOKENS = "builtin", 4096
_PAIRED = 6  # places whose pairs are measured


@dataclass(frozen=True)
class _Tested:
    """A decision, its checkpoint, and what that lost on the map's text."""

    decision: Decision
    directory: Path
    candidate: Model
    loss: Loss


def verification(
    session: Session, model: Model, decision: Decision, run: Run
) -> tuple[Decision, list[Pair], dict[str, Any]]:
    """The decision that stays, the pairs, and the numbers of `verified`; the checkpoints stay in the run.

    Raises:
        RecordError: the map's evaluation text cannot be made again.
    """
    found, seed = decision.found, session.options.seed
    evaluation = _same_text(session, model, found)
    heldout = _other_text(session, model, found)
    question = ask(model, evaluation, session.computing, session.cache)
    tested = _tested(session, question, decision, run, "checkpoint")
    pairs = _pairs(session, question, tested)
    corrected = None
    again = replace(decision, found=with_pairs(found, pairs, decision.formats))
    if changes := decision.changes(again):
        before, other = tested, _tested(session, question, again, run, "checkpoint-corrected")
        taken = other.loss.value < before.loss.value
        tested = other if taken else before
        said = {"kl": before.loss.value, "kl_ci": before.loss.interval(seed).ci}
        corrected = {**_said(other.loss, seed), "before": said, "changes": changes, "taken": taken}
    expected, loss = tested.decision.expected, tested.loss
    numbers = {
        **_said(loss, seed),
        "within": expected.low <= loss.value <= expected.high,
        "ratio": loss.value / expected.loss if expected.loss else None,
        "additivity": loss.value / expected.sum if expected.sum else None,
        "heldout": _held(session, model, tested, heldout),
        "pairs": [pair.to_dict() for pair in pairs],
        "corrected": corrected,
        "checkpoint": str(tested.directory),
    }
    return tested.decision, pairs, numbers


def _tested(session: Session, question: Question, decision: Decision, run: Run, name: str) -> _Tested:
    """Quantizes by the decision's recipe, and measures."""
    model = question.baseline
    recipe, plan = planned_recipe(model, decision.recipe, session.options, engine=decision.engine)
    fed = feed(session, model, recipe, plan, decision.engine)
    plan, calibration = fed.plan, fed.calibration
    exporter = exporter_for(target_of(plan))
    exporter.require(plan.sites)
    directory = run.directory / name
    Run.create(directory, "quantize", {"plan": plan.fingerprint, "calibration": calibration and calibration.hash})
    keep_plan(directory, recipe, plan)
    settings = replace(loop_settings(session, calibration), dtype=compute_dtype("auto", session.device))
    run_loop(model, [Job(plan, directory, exporter)], None if calibration is None else calibration.ids, settings)
    candidate = session.model(str(directory))
    return _Tested(decision, directory, candidate, measure(question, candidate, decision.found.metric))


def _pairs(session: Session, question: Question, tested: _Tested) -> list[Pair]:
    """How the places that lose most hurt each other, two by two, as the allocation stores them."""
    found, formats = tested.decision.found, tested.decision.formats
    known = [(place, found.cell(place.name, format)) for place in found.places if (format := formats[place.name])]
    inside = [(place, cell) for place, cell in known if place.inside and cell is not None]
    worst = sorted(inside, key=lambda item: (-item[1].loss, item[0].name))[:_PAIRED]
    if len(worst) < 2:
        return []
    gauge = align(question.baseline, tested.candidate)
    probe = Probe(
        question.baseline,
        tested.candidate,
        gauge,
        question,
        session.computing,
        metric=found.metric,
        max_memory=session.computing.room // 2,
    )
    groups = [(place.name, place.linears) for place, _ in worst]
    count = len(groups) * (len(groups) + 1) // 2
    with progress(count, "Measuring pairs", "swaps", quiet=session.options.quiet) as advance:
        return interactions(probe, groups, session.options.seed, advance)


def _held(session: Session, model: Model, tested: _Tested, evaluation: EvaluationSet | None) -> dict[str, Any] | None:
    metric = tested.decision.found.metric
    if evaluation is None or metric == "choices":  # the packaged text has no choices
        return None
    loss = measure(ask(model, evaluation, session.computing, session.cache), tested.candidate, metric)
    low, high = tested.decision.expected.other
    said = {**_said(loss, session.options.seed), "within": low <= loss.value <= high}
    return {**said, "source": _HELD_OUT, "tokens": evaluation.tokens}


def _said(loss: Loss, seed: int) -> dict[str, Any]:
    return {"kl": loss.value, "kl_ci": loss.interval(seed).ci}


def _same_text(session: Session, model: Model, found: MapFile) -> EvaluationSet:
    """The evaluation text of the map, checked by its hash."""
    sources = found.settings.get("evals") or [_HELD_OUT]
    evaluation = _text(session, model, found, sources, found.settings.get("eval_cap"))
    if evaluation.hash != found.coordinates.evaluation:
        raise RecordError(
            f"The evaluation text of the map {found.path} cannot be made again from {', '.join(sources)}; put it back "
            "as it was, or make the map again."
        )
    return evaluation


def _other_text(session: Session, model: Model, found: MapFile) -> EvaluationSet | None:
    """Packaged evaluation text out of documents that the map did not see; None where nothing is left."""
    seen = {sample.document for sample in found.samples}
    if _HELD_OUT not in (found.settings.get("evals") or [_HELD_OUT]):
        seen = set()
    whole = _text(session, model, found, [_HELD_OUT], None)
    kept: list[Sample] = []
    for sample in whole.samples:
        if sample.document not in seen and sum(len(one.ids) for one in kept) < _HELD_TOKENS:
            kept.append(sample)
    if not any(sample.count or sample.needs_answer for sample in kept):
        return None
    return EvaluationSet(tuple(kept), fingerprint([whole.hash, sorted(seen), _HELD_TOKENS]))


def _text(session: Session, model: Model, found: MapFile, sources: list[str], tokens: int | None) -> EvaluationSet:
    """Text cut as the map cut it."""
    longest = context_length(model)
    window = int(found.settings.get("eval_window") or session.options.eval_window)
    try:
        return evaluate_set(
            list(sources),
            model.tokenizer(),
            window=min(window, longest),
            tokens=tokens,
            longest=max(longest - ANSWER_TOKENS, longest // 2),
        )
    except TextError as error:
        raise RecordError(f"The evaluation text of the map {found.path} cannot be made again: {error}") from error
