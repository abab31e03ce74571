"""Suspect 2, the stack: did another version of some package, or another machine, change what the same files compute?

With a lock (`--last-good FILE`) its evaluation is run again on today's stack, kernel probes included; with `--replay`
the old packages are rebuilt and flipped until the guilty one is named. Without a lock nothing can be found guilty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from subeight.diagnose import older
from subeight.diagnose.case import Case, Examined
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.trial import is_guilty
from subeight.evals.loss import TOKEN_METRICS, Loss, recovered
from subeight.evals.passes import Pass
from subeight.evals.scoring import measure, score
from subeight.evals.stats import Interval
from subeight.lock.lockfile import Lock, is_lock
from subeight.lock.measure import Remeasured, as_locked, checkpoint_record, lock_prompts, remeasure
from subeight.lock.outcomes import Outcome
from subeight.lock.replay import Replay, replay
from subeight.lock.rerun import Environment, Rerun
from subeight.lock.stacks import Change, changes, stack_today
from subeight.lock.verdict import overall
from subeight.lock.words import differences_in_words, probes_in_words, stack_in_words

_STOP = "this process runs on the stack that was found guilty; pin the package and diagnose again for what is left."


def examine(case: Case) -> Examined:
    """Today's stack against the one of a lock, an older checkpoint or the candidate's own record, whichever is known.

    Raises:
        RecordError: `last_good` is a damaged lock, or a lock of another model.
    """
    good = case.settings.last_good
    if good is None:
        return _against_own_record(case), case
    if is_lock(good):
        return _against_lock(case, good)
    return older.against_checkpoint(case, good), case


def _against_own_record(case: Case) -> Finding:
    """What changed since the checkpoint was made; nothing is measured, so nothing is guilty."""
    record = checkpoint_record(case.candidate.directory)
    if record is None or not record.stack:
        return Finding(
            "stack",
            "skipped",
            "Nothing is known of an older stack: the checkpoint has no record of ours, and no lock was given; "
            "--last-good takes one.",
        )
    changed = changes(record.stack, stack_today(case.computing).contents())
    details = {"changes": [change.to_dict() for change in changed], "probes": []}
    if not changed:
        return Finding("stack", "cleared", "The checkpoint was made on this very stack.", details=details)
    words = (
        f"Since the checkpoint was made, {stack_in_words(changed)}. Whether that changes a number is not tested; "
        "--last-good with a lock tests it."
    )
    return Finding("stack", "unknown", words, details=details)


def _against_lock(case: Case, path: Path) -> Examined:
    lock = Lock.read(path)
    with as_locked(lock, case.computing.device, case.computing.quiet) as computing:
        found = remeasure(path, lock, case.baseline, case.candidate, computing, case.cache)
    details: dict[str, Any] = {
        "changes": [change.to_dict() for change in found.changes],
        "probes": found.probes,
        "differences": [difference.to_dict() for difference in found.differences],
        "replay": None,
    }
    stack = stack_in_words(found.changes)
    said = f"{stack[0].upper()}{stack[1:]}. {probes_in_words(found)} {differences_in_words(found)}"
    if found.candidate_changes:
        words = f"The candidate is not the locked checkpoint, so the two stacks cannot be told from it. {said}"
        return Finding("stack", "unknown", words, evaluations=1, details=details), case
    verdict = overall(found.differences, [])
    if found.is_same or (verdict == "pass" and not case.settings.replay):
        words = f"The locked evaluation gives today what it gave, within its tolerance. {said}"
        return Finding("stack", "cleared", words, evaluations=1, details=details), case
    if not case.settings.replay:
        words = f"The same files and tokens do not give the locked numbers ({verdict}). {said} --replay finds out why."
        return Finding("stack", "unknown", words, evaluations=1, details=details), case
    return _replayed(case, path, found, details, said)


def _replayed(case: Case, path: Path, found: Remeasured, details: dict[str, Any], said: str) -> Examined:
    """The old packages rebuilt and flipped; what is guilty is then tried on the failing prompts."""
    with TemporaryDirectory(prefix="subeight-replay-") as name:
        root, threads = Path(name), found.lock.evaluation.threads
        what = Rerun.of(path, case.baseline, case.candidate, case.computing.device, threads)
        rebuilder = what.below(root / "lock")
        again = replay(found.changes, found.before, found.today, rebuilder)
        details["replay"] = again.to_dict()
        done = Finding("stack", "unknown", f"{said} {' '.join(again.words)}", evaluations=1 + len(again.tests))
        if not again.guilty:
            return replace(done, details=details), case
        tried = _tried(case, found, again, rebuilder, root / "prompts")
    words = (
        f"{done.evidence} On the {tried.where} the candidate loses {tried.before.value:.4g} today and "
        f"{tried.after.value:.4g} with the old version, which recovers {tried.share.value:.0%}."
    )
    done = replace(done, evidence=words, evaluations=done.evaluations + tried.evaluations, details=details)
    if not is_guilty(tried.share):
        words = f"{words} So it changes numbers, but it is not what these prompts lose."
        return replace(done, verdict="cleared", evidence=words), case
    causes = tuple(_cause(group, tried) for group in again.guilty)
    # What runs here runs on the guilty stack: whatever else were found on it would be in doubt.
    case = replace(case, notes={**case.notes, "stop": _STOP})
    if tried.where == "failing prompts" and case.settings.metric in TOKEN_METRICS:
        case = case.with_repair(tried.after, whole=tried.before)
    return replace(done, verdict="guilty", causes=causes), case


@dataclass(frozen=True)
class _Tried:
    """The guilty packages at their old versions: the loss before and after, the share recovered, and on what."""

    before: Loss
    after: Loss
    share: Interval
    where: str
    evaluations: int


def _tried(case: Case, found: Remeasured, again: Replay, rebuilder: Environment, root: Path) -> _Tried:
    """The candidate of today and of the old stack on the failing prompts, both against the baseline of the old stack.

    A stack that errs in both models alike would hide from a comparison within it. Prompts without a scored token
    (choices) leave the locked evaluation, whose two results are there already.
    """
    metric, seed = case.settings.metric, case.settings.seed
    metric = metric if metric in TOKEN_METRICS else "kl"
    rows = score(case.question, case.candidate, seed=seed).rows
    if not rows:
        assert again.repaired is not None
        before, after = (_loss(outcome, "kl") for outcome in (found.today, again.repaired))
        return _Tried(before, after, recovered(before, after, seed=seed), "locked evaluation", 1)
    threads = torch.get_num_threads()
    path = lock_prompts(found.lock, root, case.question, rows, threads)
    what = Rerun.of(path, case.baseline, case.candidate, case.computing.device, threads)
    old = what.below(root, rebuilder.environments)
    after = _loss(old.run(again.pins), metric)
    states = [state.to(case.computing.device) for state in old.states()]
    sound = replace(case.question, reference=Pass(states, case.question.reference.head))
    before = measure(sound, case.candidate, metric)
    return _Tried(before, after, recovered(before, after, seed=seed), "failing prompts", 3)


def _loss(outcome: Outcome, metric: str) -> Loss:
    total = outcome.total["kl"] if metric == "kl" else outcome.total["nll"] - outcome.total["nll_baseline"]
    return Loss(total, outcome.count, outcome.category)


def _cause(group: Sequence[Change], tried: _Tried) -> Cause:
    said = " together with ".join(f"{c.what} {c.after or '(absent)'} instead of {c.before}" for c in group)
    return Cause(
        "stack",
        "package",
        tuple(change.what for change in group),
        f"{said} changes what the same files compute; with the old version {tried.share.value:.0%} of the loss on the "
        f"{tried.where} is gone.",
        recovered=tried.share,
        repair={"pin": {change.what: change.before for change in group}},
    )
