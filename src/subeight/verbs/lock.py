"""`lock`: a measured run as a small file for git, which later stacks are verified against."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from subeight.errors import RecordError
from subeight.evals.passes import Sequences
from subeight.evals.scoring import ask
from subeight.lock.lockfile import Evaluation, Lock, default_tolerance, kept_numbers, parse_tolerance
from subeight.lock.measure import place_of
from subeight.lock.outcomes import write_outcomes
from subeight.lock.probes import probe_kernels
from subeight.lock.stacks import distributions, source_hash
from subeight.models.model import Model
from subeight.records import Record, Run, difference
from subeight.verbs.evaluate import evaluate
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session

FILE = "subeight.lock"


def lock(
    run: str,
    *,
    candidate: str | None = None,
    baseline: str | None = None,
    tolerance: str | None = None,
    options: Options | None = None,
) -> Result:
    """Locks the run of an `evaluate`, or of a `quantize`, which is evaluated first against `baseline`.

    `options.out` is the file (default `subeight.lock`); outcomes and token ids go into the directory of the same name
    with `.d`. Candidate and baseline are those that the run names, unless they are given.

    Raises:
        RecordError: the run is of another verb, scored no token, or was measured on another stack than this.
    """
    options = options or Options()
    path = Path(options.out or FILE)
    opened = Run.open(run)
    record = opened.read()
    if record.kind == "quantize":
        opened, record, candidate = _evaluated(run, record, baseline, options)
    _require_scored(run, record)
    limits = parse_tolerance(tolerance, default_tolerance(record.numbers))
    session = Session("lock", _as_measured(record, options))
    _require_same_stack(run, record, session)
    names = {"candidate": candidate, "baseline": baseline}
    models = {what: _opened(session, record, what, given) for what, given in names.items()}
    made = _locked(path, opened, record, session, models, limits)
    made.write(path)
    return _result(session, made, path)


def _evaluated(run: str, record: Record, baseline: str | None, options: Options) -> tuple[Run, Record, str]:
    name = baseline or _paths(record).get("model")
    if name is None:
        raise RecordError(f"{run} is a run of quantize that does not name its model; give it with --baseline.")
    done = evaluate(run, name, options=replace(options, out=None))
    if done.directory is None:
        raise AssertionError("an evaluation always has a directory")
    return Run.open(done.directory), done.record, run


def _paths(record: Record) -> Mapping[str, str]:
    paths = record.subject.get("paths")
    return paths if isinstance(paths, Mapping) else {}


def _require_scored(run: str, record: Record) -> None:
    if record.kind != "evaluate":
        raise RecordError(f"{run} is a run of {record.kind}; give the directory of an evaluate or of a quantize run.")
    if record.numbers.get("kl") is None:
        raise RecordError(f"{run} scored no token, only choices; lock an evaluation of text, completions or messages.")


def _as_measured(record: Record, options: Options) -> Options:
    """The options under which the run was measured."""
    given = record.settings
    return replace(
        options,
        evals=tuple(given.get("evals") or ("builtin",)),
        eval_tokens=given.get("eval_tokens"),
        eval_window=int(given.get("eval_window") or 512),
        seed=int(given.get("seed") or 0),
        threads=given.get("threads"),
        device=str(given.get("device") or "cpu"),
        dtype=str(given.get("dtype") or "auto"),
    )


def _require_same_stack(run: str, record: Record, session: Session) -> None:
    changed = difference(record.stack, session.stack)
    if changed:
        raise RecordError(
            f"{run} was measured on another stack than this one ({'; '.join(changed[:4])}); evaluate again here "
            "and lock that run."
        )


def _opened(session: Session, record: Record, what: str, given: str | None) -> tuple[str, Model]:
    name = given or _paths(record).get(what)
    if name is None:
        raise RecordError(f"The run does not say where its {what} lies; give it with --{what}.")
    return name, session.model(name)


def _locked(
    path: Path,
    run: Run,
    record: Record,
    session: Session,
    models: Mapping[str, tuple[str, Model]],
    limits: dict[str, float],
) -> Lock:
    (name, candidate), (base, baseline) = models["candidate"], models["baseline"]
    sequences = _sequences(run, record, session, baseline)
    probes = probe_kernels(baseline, candidate, session.computing)
    options = session.options
    return Lock(
        made=record.created,
        coordinates=record.coordinates,
        numbers=kept_numbers(record.numbers),
        tolerance=limits,
        evaluation=Evaluation(
            sources=list(options.evals),
            hash=str(record.coordinates.evaluation),
            tokens=options.eval_tokens,
            window=options.eval_window,
            seed=options.seed,
            dtype=session.stack.dtype or "float32",
            device=session.stack.device,
            threads=session.stack.threads,
        ),
        baseline=place_of(base, baseline, path),
        candidate=place_of(name, candidate, path),
        outcomes=write_outcomes(path.with_name(f"{path.name}.d"), sequences, run.read_samples()),
        probes=[probe.to_dict() for probe in probes],
        stack=session.stack.contents(),
        distributions=distributions(),
        source=source_hash(),
    )


def _sequences(run: Run, record: Record, session: Session, baseline: Model) -> Sequences:
    """The token ids that the run asked, made again from its text and checked against its fingerprints."""
    if record.coordinates.baseline != baseline.coordinate:
        raise RecordError(
            f"{run.directory} was measured against another baseline than {baseline.label} "
            f"({record.coordinates.baseline} and {baseline.coordinate}); give the right one with --baseline."
        )
    evaluation = session.evaluation(baseline)
    if evaluation.hash != record.coordinates.evaluation:
        raise RecordError(
            f"The evaluation text {', '.join(session.options.evals)} is not what {run.directory} measured; restore it, "
            "or evaluate again and lock that run."
        )
    if any(sample.needs_answer for sample in evaluation.samples):
        return ask(baseline, evaluation, session.computing, session.cache).sequences
    return Sequences.of(evaluation)


def _result(session: Session, made: Lock, path: Path) -> Result:
    numbers: dict[str, Any] = {
        **made.numbers,
        "lock": str(path),
        "outcomes": made.outcomes.file,
        "lock_bytes": path.stat().st_size,
        "tolerance": made.tolerance,
        "probes": made.probes,
        "packages": len(made.distributions),
    }
    subject = {"candidate": made.candidate.label, "baseline": made.baseline.label}
    record = session.record(made.coordinates, numbers, subject=subject, settings=made.evaluation.model_dump())
    line = (
        f"{path} locks {made.candidate.label} ({path.stat().st_size:,} bytes): KL {made.numbers['kl']:.4f}, tolerance "
        f"{made.tolerance['kl']:.4g}; commit it together with {made.outcomes.file}."
    )
    return Result(record, lines=(line,))
