"""Is it the calibration? Static ranges that clip, experts that no token fed, a category that the text left out.

Local causes come first, for they are cheap to try: ranges set anew, experts restored. What is left is put to the
experiment on the text: the same recipe calibrated again with a share of the failing category, half of whose prompts
are held out for the measurement, against the same recipe with its own text.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from subeight.diagnose.case import Case, Examined
from subeight.diagnose.clipping import Ranges, examine_ranges
from subeight.diagnose.experts import (
    Experts,
    examine_experts,
    members,
    unfed_by_record,
    unfed_by_text,
    unfed_by_weights,
)
from subeight.diagnose.finding import Cause, Finding, Outcome
from subeight.diagnose.reaching import Confinement, Reached, confinement, reached_of
from subeight.diagnose.recalibrate import Known, again, known_of, mixed, write_text
from subeight.diagnose.trial import Trial, is_guilty
from subeight.evals.loss import Loss
from subeight.evals.stats import Interval
from subeight.models.align import align
from subeight.models.model import Model
from subeight.text import read_documents
from subeight.text.tokens import encode

LEFT = 0.5  # of the loss must be left after local repairs for the text itself to be suspected
# More text of what is measured helps any model: 3-bit smollm2 got back 16 % of its loss in German although a quarter of
# its calibration was German, and 61 % where none was.
MISSED = 0.25


@dataclass
class _Text:
    """What the experiment on the calibration text said."""

    words: str = ""
    causes: list[Cause] = field(default_factory=list)
    candidate: Model | None = None
    loss: Loss | None = None
    details: dict[str, Any] | None = None
    undecided: bool = False


def examine(case: Case) -> Examined:
    """Examines calibration: cleared or guilty by experiment, with what it cost."""
    began = time.monotonic()
    trial = Trial(case)
    known = known_of(case)
    control = None if case.control is None else case.measure(case.candidate, case.control)
    trial.spent.evaluations += control is not None
    confined = confinement(case.loss, control, case.settings.seed)
    reached = None
    if known.ids is not None:
        reached = reached_of(case, known.ids, trial.prompts, confined.worst)
    ranges = examine_ranges(trial)
    if ranges.loss is not None:
        case = case.with_repair(ranges.loss, swaps=case.swaps | ranges.swaps)
        trial = Trial(case, trial.spent)
    experts = examine_experts(trial, _unfed(trial, known, reached))
    if experts.loss is not None:
        case = case.with_repair(experts.loss, swaps=case.swaps | experts.swaps)
        trial = Trial(case, trial.spent)
    # what the text left out is then the expert: one cause, told once
    text = _Text() if experts.causes else _examine_text(trial, known, confined, reached)
    if text.candidate is not None and text.loss is not None:
        gauge = align(case.baseline, text.candidate, device=case.computing.device)
        case = case.with_repair(text.loss, candidate=text.candidate, gauge=gauge)
    finding = _finding(trial, known, confined, reached, (ranges, experts, text))
    return replace(finding, seconds=time.monotonic() - began), case


def _unfed(trial: Trial, known: Known, reached: Reached | None) -> dict[str, str]:
    """Experts that calibration did not feed, by the best evidence that there is."""
    experts = members(trial.case.candidate)
    if not experts or known.reads_text is False:
        return {}
    if reached is not None and reached.tokens["calibration"]:
        return unfed_by_text(reached.experts, reached.tokens)
    recorded = (known.record.get("numbers") or {}).get("linears")
    return unfed_by_record(recorded) if recorded else unfed_by_weights(trial, experts)


def _examine_text(trial: Trial, known: Known, confined: Confinement, reached: Reached | None) -> _Text:
    """Whether the text left the failing category out, tried where something points there."""
    case = trial.case
    if known.reads_text is False:
        return _Text("It was made without calibration text.")
    if case.loss.value < LEFT * case.whole.value:
        return _Text()
    suspicious = confined.is_confined if reached is None else reached.is_beyond
    if not suspicious:
        return _Text("So nothing points at the calibration text, and no recalibration was tried.")
    if not known.can_repeat:
        return _Text(f"It could not be calibrated again: {known.why_not}.", undecided=True)
    return _recalibrated(trial, known, confined.worst)


def _recalibrated(trial: Trial, known: Known, worst: str) -> _Text:
    """The experiment: the recipe with a share of the category, and where that helps, with its own text once more."""
    case = trial.case
    assert known.ids is not None
    mask = trial.held & (case.loss.category == worst)
    fitted = [sample for sample in trial.prompts if sample.category == worst and sample.document in trial.fitted]
    if not fitted or mask.sum() < 2:
        return _Text(f"Too few prompts of {worst} to calibrate on one half and measure on the other.", undecided=True)
    ids, count = mixed(known.ids, fitted, _packaged(case, worst), case)
    target = again(case, known, ids, "recalibrated")
    after = trial.measure(target, remade=True)
    share = trial.share(after, mask=mask)
    details = {"category": worst, "windows": count, "of": len(ids), "recovered": share.value, "recovered_ci": share.ci}
    if not _is_missed(share):
        words = f"Calibrated again with half of its windows of {worst}, it recovered {share.value:.0%} of the loss."
        return _Text(words, details=details)
    before = trial.measure(again(case, known, known.ids, "repeated"), remade=True)
    against = trial.share(after, before=before, mask=mask)
    details |= {"own_text": before.value, "recovered": against.value, "recovered_ci": against.ci}
    if not _is_missed(against):
        words = (
            f"Made again with half of its windows of {worst} it recovered {share.value:.0%} of the loss, made again "
            f"on its own text {share.value - against.value:.0%}: the candidate is not what its recipe makes."
        )
        return _Text(words, details=details)
    text = write_text(case, ids, target.directory.with_name(f"{target.directory.name}.jsonl"))
    repair = {"category": worst, "source": str(text), "share": count / len(ids), "checkpoint": str(target.directory)}
    cause = Cause(
        "calibration", "category", (worst,), _guilty_words(known, worst, against), against, {"recalibrate": repair}
    )
    return _Text("", [cause], target, after, details)


def _is_missed(share: Interval) -> bool:
    return is_guilty(share) and share.value >= MISSED


def _guilty_words(known: Known, worst: str, share: Interval) -> str:
    recipe = "its recipe" if known.is_own else "the nearest recipe of ours"
    return (
        f"It was calibrated on text ({known.source}) that lacks {worst}: {recipe} with half of its windows of {worst} "
        f"recovers {share.value:.0%} of the loss on the prompts of {worst} that were held out, against the same recipe "
        "on its own text."
    )


def _packaged(case: Case, category: str) -> list[list[int]]:
    """Packaged calibration text of a category, where there is some of this name."""
    tokenizer = case.baseline.tokenizer()
    documents = read_documents("builtin", part="calibration")
    texts = [document.text for document in documents if document.category == category]
    return [encode(text, tokenizer) for text in texts if text]


def _finding(
    trial: Trial,
    known: Known,
    confined: Confinement,
    reached: Reached | None,
    results: tuple[Ranges, Experts, _Text],
) -> Finding:
    ranges, experts, text = results
    causes = (*ranges.causes, *experts.causes, *text.causes)
    verdict: Outcome = "guilty" if causes else "unknown" if text.undecided else "cleared"
    said = [confined.words()]
    if known.reads_text is not False:
        said.append(reached.words(confined.worst) if reached is not None else f"{_sentence(known.why_not)}")
    said += [ranges.words(), experts.words(), text.words, *(cause.sentence for cause in causes)]
    details = {
        "categories": confined.categories,
        "ranges": ranges.rows(),
        "channels": [] if reached is None else reached.channels,
        "experts": [expert.to_dict() for expert in experts.suspects],
        "text": None if reached is None else reached.text,
        "recalibrated": text.details,
    }
    return Finding(
        "calibration",
        verdict,
        " ".join(line for line in said if line),
        causes,
        trial.spent.evaluations,
        trial.spent.block_forwards,
        command=" ".join(trial.case.settings.command),
        details=details,
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""
