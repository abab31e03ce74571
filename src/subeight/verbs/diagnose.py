"""`diagnose`: why a quantized model got worse, found by experiments that change one variable at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subeight.diagnose.baseline import guess_baseline
from subeight.diagnose.case import Case, Settings
from subeight.diagnose.course import examine_all, require_suspects
from subeight.diagnose.cutting import as_used
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.prescription import Prescription, prescribe, recipe_of
from subeight.diagnose.words import story
from subeight.errors import InputError
from subeight.evals.checks import PREFIX
from subeight.evals.loss import METRICS, Loss, recovered
from subeight.evals.scoring import Question, ask, require_same_vocabulary, with_check
from subeight.evals.stats import Interval
from subeight.models.model import Model
from subeight.records import UNKNOWN, Coordinates, Run, atomic_write
from subeight.verbs import forecast
from subeight.verbs.evaluate import own_record
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish

_OUTSIDE = ("stack", "kernels")
TOKENS = 4096  # of the packaged text, where no prompts are given


@dataclass(frozen=True)
class Complaint:
    """What is wrong, and what the user knows of it.

    `prompts` and `control` are JSONL or text files (failing and healthy; default: the packaged text), `calibration`
    the text that the candidate was calibrated on, `last_good` an older checkpoint or a lock, `served` the URL of a
    server, `metric` one of kl, nll, choices, or `check:COMMAND`, `only` the suspects to examine, `python` the
    interpreter of the environment that runs the packed model.
    """

    prompts: str | None = None
    control: str | None = None
    calibration: str | None = None
    last_good: str | None = None
    served: str | None = None
    metric: str = "kl"
    replay: bool = False
    python: str | None = None
    only: tuple[str, ...] = ()
    thorough: bool = False


def diagnose(
    candidate: str,
    baseline: str | None = None,
    *,
    complaint: Complaint | None = None,
    options: Options | None = None,
) -> Result:
    """Examines baseline, stack, kernels, calibration and layers, names what is guilty, and measures what mends it.

    `candidate` is any quantized checkpoint that can be read; `baseline` is guessed from its metadata where it is not
    given, and checked either way.

    Raises:
        InputError: two different architectures, prompts without text, a lock of another model, an unknown metric.
    """
    options, complaint = options or Options(), complaint or Complaint()
    require_suspects(complaint.only)
    _require_metric(complaint.metric)
    session = Session("diagnose", options)
    opened = session.model(candidate)
    reference = session.model(baseline or guess_baseline(opened))
    require_same_vocabulary(reference, opened)
    case_of = _Opening(session, complaint, opened, reference)
    if options.dry_run:
        numbers = {"predicted": forecast.diagnosis(session, reference, case_of.evaluation)}
        dry = session.record(Coordinates(stack=session.stack.hash), numbers, subject={"candidate": opened.label})
        return Result(dry, lines=(f"{opened.label} against {reference.label}: predicted, nothing was measured",))
    identity = {
        "candidate": opened.coordinate,
        "baseline": reference.coordinate,
        "evaluation": case_of.evaluation.hash,
        "complaint": {key: str(value) for key, value in vars(complaint).items()},
    }
    with session.run(opened, identity) as run:
        case = case_of.case()
        findings, repaired = examine_all(case, complaint.only)
        return _concluded(session, run, case, repaired, findings)


def _require_metric(metric: str) -> None:
    if metric not in METRICS and not metric.startswith(PREFIX):
        raise InputError(f"--metric was given {metric!r}; allowed are {', '.join(METRICS)} and check:COMMAND.")


class _Opening:
    """From what the user gave to a case: the prompts cut, the baseline's answers, the loss as it is met."""

    def __init__(self, session: Session, complaint: Complaint, candidate: Model, baseline: Model) -> None:
        self.complaint, self.candidate, self.baseline = complaint, candidate, baseline
        self._session = session
        options = session.options
        self.sources = (complaint.prompts,) if complaint.prompts else options.evals
        cap = None if complaint.prompts else options.eval_tokens or TOKENS
        self.evaluation = session.evaluation(baseline, self.sources, cap)

    def case(self) -> Case:
        session, complaint = self._session, self.complaint
        question = ask(self.baseline, self.evaluation, session.computing, session.cache)
        if complaint.metric.startswith(PREFIX):
            question = with_check(question, complaint.metric)
        whole = as_used(question, self.sources, self.candidate, complaint.metric)
        return Case(
            candidate=self.candidate,
            baseline=self.baseline,
            sources=self.sources,
            evaluation=self.evaluation,
            question=question,
            computing=session.computing,
            cache=session.cache,
            settings=self._settings(),
            whole=whole,
            loss=whole,
            control=self._control(),
        )

    def _control(self) -> Question | None:
        if self.complaint.control is None:
            return None
        evaluation = self._session.evaluation(self.baseline, (self.complaint.control,))
        return ask(self.baseline, evaluation, self._session.computing, self._session.cache)

    def _settings(self) -> Settings:
        asked, options = self.complaint, self._session.options
        return Settings(
            metric=asked.metric,
            seed=options.seed,
            calibration=asked.calibration or options.calibration,
            last_good=Path(asked.last_good) if asked.last_good else None,
            served=asked.served,
            replay=asked.replay,
            python=asked.python,
            max_memory=options.max_memory,
            command=options.command,
            thorough=asked.thorough,
        )


def _concluded(session: Session, run: Run, case: Case, repaired: Case, findings: Sequence[Finding]) -> Result:
    """The verdict, the prescription applied and measured, and the record of it all."""
    causes = [cause for finding in findings for cause in finding.causes]
    # A kernel's or a package's fault is not in the streamed loss: its finding has its own before and after.
    inside = [cause for cause in causes if cause.suspect not in _OUTSIDE]
    prescription = prescribe(repaired, causes) if inside else None
    recipe = None
    if prescription is not None:
        recipe = atomic_write(run.directory / "prescription.yaml", recipe_of(repaired, prescription))
    numbers = {
        **_loss_numbers(case),
        "findings": [finding.to_dict() for finding in findings],
        "verdict": _verdict(repaired, causes, findings, prescription, recipe),
        "prescription": None if prescription is None else prescription.to_dict(repaired),
    }
    lines = tuple(story(numbers))
    numbers["verdict"]["words"] = list(lines)
    record = session.record(
        _coordinates(session, case),
        json.loads(json.dumps(numbers, default=str)),
        subject={"candidate": case.candidate.label, "baseline": case.baseline.label},
        settings={"prompts": list(case.sources), "metric": case.settings.metric},
    )
    run.write_samples(_rows(case, repaired))
    return finish(run, record, lines)


def _loss_numbers(case: Case) -> dict[str, Any]:
    seed = case.settings.seed
    control = None if case.control is None else _numbers(case.measure(case.candidate, case.control), seed)
    return {
        "metric": case.settings.metric,
        **_numbers(case.whole, seed),
        "tokens": int(case.whole.count.sum()),
        "categories": {name: _numbers(part, seed) for name, part in case.whole.categories().items()},
        "control": control,
    }


def _numbers(loss: Loss, seed: int) -> dict[str, Any]:
    interval = loss.interval(seed)
    return {"loss": interval.value, "loss_ci": interval.ci, "prompts": len(loss.total)}


def _verdict(
    case: Case,
    causes: Sequence[Cause],
    findings: Sequence[Finding],
    prescription: Prescription | None,
    recipe: Path | None,
) -> dict[str, Any]:
    if prescription is not None:
        share: Interval | None = recovered(case.whole, prescription.after, seed=case.settings.seed)
    else:
        share = next((cause.recovered for cause in causes if cause.recovered is not None), None)
    untested = [f"{f.suspect}: {f.evidence}" for f in findings if f.verdict in ("skipped", "unknown")]
    return {
        "causes": [cause.to_dict() for cause in causes],
        "recovered": None if share is None else share.value,
        "recovered_ci": None if share is None else share.ci,
        "bytes_added": None if prescription is None else prescription.bytes_after - prescription.bytes_before,
        "bytes": None if prescription is None else prescription.bytes_before,
        "recipe": None if recipe is None else str(recipe),
        "words": [],
        "untested": untested,
    }


def _coordinates(session: Session, case: Case) -> Coordinates:
    record = own_record(case.candidate.directory)
    own = Coordinates(recipe=UNKNOWN, calibration=UNKNOWN) if record is None else record.coordinates
    return Coordinates(
        baseline=case.baseline.coordinate,
        recipe=own.recipe,
        calibration=own.calibration,
        evaluation=case.evaluation.hash,
        stack=session.stack.hash,
    )


def _rows(case: Case, repaired: Case) -> Mapping[str, Sequence[Any]]:
    """The loss of every prompt, as it was met and with what was found repaired."""
    found: dict[str, Sequence[Any]] = {
        "prompt": list(range(len(case.whole.total))),
        "category": case.whole.category.tolist(),
        "loss": (case.whole.total / case.whole.count).tolist(),
        "tokens": case.whole.count.tolist(),
    }
    if len(repaired.loss.total) == len(case.whole.total):
        found["loss_repaired"] = (repaired.loss.total / repaired.loss.count).tolist()
    return found
