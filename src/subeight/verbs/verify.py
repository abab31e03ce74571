"""`verify`: the locked evaluation run again, and a paired verdict: pass, regressed or undecided."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from subeight.lock.lockfile import Lock, kept_numbers
from subeight.lock.measure import Remeasured, checkpoint_record, find_place, remeasure
from subeight.lock.replay import Replay
from subeight.lock.replay import replay as replay_stack
from subeight.lock.rerun import Rerun
from subeight.lock.verdict import Rule, Verdict, overall, parse_policy
from subeight.lock.words import markdown, sentences
from subeight.models.model import Model
from subeight.records import UNKNOWN, Coordinates, Record, atomic_write
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish

STATUS: dict[Verdict, int] = {"pass": 0, "regressed": 1, "undecided": 3}


def verify(
    candidate: str,
    lock: str | Path,
    *,
    baseline: str | None = None,
    fail_on: str | None = None,
    summary: Path | None = None,
    replay: bool = False,
    device: str | None = None,
    options: Options | None = None,
) -> Result:
    """Measures the locked evaluation on today's stack; `exit_status` is 0 (pass), 1 (regressed) or 3 (undecided).

    Precision, device, threads and seed are the lock's; `device` and `options.threads` change them on purpose.
    `fail_on` is a policy such as `kl>0.02,top1<0.97,german:kl>0.05`; `summary` is written in Markdown. With `replay`
    the old stack is rebuilt where a number differs, and the packages that changed are flipped one at a time.

    Raises:
        RecordError: the lock is missing, damaged or of another model, or the policy cannot be read.
    """
    path = Path(lock)
    held, rules = Lock.read(path), parse_policy(fail_on)
    for rule in rules:
        rule.hit(held.numbers)  # a condition on what this evaluation does not have is refused before anything runs
    session = Session("verify", _as_locked(held, options or Options(), device))
    base, opened = session.model(baseline or find_place(held.baseline, path)), session.model(candidate)
    identity = {"lock": held.to_json(), "candidate": opened.coordinate, "fail_on": fail_on}
    with session.run(opened, identity) as run:
        found = remeasure(path, held, base, opened, session.computing, session.cache)
        numbers, verdict, lines = _judged(found, rules)
        numbers |= {"fail_on": fail_on, "replay": None}
        if replay:
            again = _replayed(found, Rerun.of(path, base, opened, session.device, session.stack.threads))
            numbers["replay"], lines = again.to_dict(), [*lines, *again.words]
            numbers["words"] = lines
        record = _record(session, held, opened, found, numbers)
        if summary is not None:
            atomic_write(summary, markdown(lines, found, verdict, opened.label))
        run.write_samples(found.scored.rows)
        return replace(finish(run, record, tuple(lines)), exit_status=STATUS[verdict])


def _as_locked(held: Lock, options: Options, device: str | None) -> Options:
    """The options of the locked evaluation."""
    given = held.evaluation
    return replace(
        options,
        seed=given.seed,
        threads=options.threads or given.threads,
        device=device or given.device,
        dtype=given.dtype,
    )


def _replayed(found: Remeasured, rebuilder: Rerun) -> Replay:
    """The old stack rebuilt in a directory that is gone afterwards."""
    if found.candidate_changes:
        return Replay(words=["Nothing is replayed: the candidate is not the locked checkpoint."])
    with TemporaryDirectory(prefix="subeight-replay-") as root:
        return replay_stack(found.changes, found.before, found.today, rebuilder.below(Path(root)))


def _judged(found: Remeasured, rules: Sequence[Rule]) -> tuple[dict[str, Any], Verdict, list[str]]:
    broken = [said for rule in rules if (said := rule.hit(found.scored.numbers)) is not None]
    verdict = overall(found.differences, broken)
    lines = sentences(found, verdict, broken)
    more = [d.more_tokens for d in found.differences if d.more_tokens is not None]
    numbers = {
        **kept_numbers(found.scored.numbers),
        "verdict": verdict,
        "words": lines,
        "locked": found.lock.numbers,
        "differences": [difference.to_dict() for difference in found.differences],
        "more_tokens": max(more, default=None),
        "policy": broken,
        "changes": [change.to_dict() for change in found.changes],
        "probes": found.probes,
        "candidate_changes": found.candidate_changes,
    }
    return numbers, verdict, lines


def _record(session: Session, held: Lock, candidate: Model, found: Remeasured, numbers: dict[str, Any]) -> Record:
    own = checkpoint_record(candidate.directory)
    made = own.coordinates if own is not None else Coordinates(recipe=UNKNOWN, calibration=UNKNOWN)
    coordinates = Coordinates(
        baseline=held.coordinates.baseline,
        recipe=made.recipe,
        calibration=made.calibration,
        evaluation=held.coordinates.evaluation,
        stack=session.stack.hash,
    )
    warnings = list(found.scored.numbers.get("warnings", []))
    if session.stack.threads != held.evaluation.threads:
        warnings.append(f"The lock was made with {held.evaluation.threads} threads, this with {session.stack.threads}.")
    return session.record(
        coordinates,
        numbers,
        subject={"candidate": candidate.label, "baseline": held.baseline.label},
        settings=held.evaluation.model_dump(exclude={"seed", "threads", "device", "dtype"}),
        warnings=warnings,
    )
