"""An older checkpoint that still worked: what changed between the two, and whether it still works on today's stack.

It is measured on the same prompts. Where it is better today, the stack did not do it, and the answer is in the list of
what changed: baseline, recipe, calibration text, formats, and the stack that each was made on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subeight.diagnose.case import Case
from subeight.diagnose.finding import Finding
from subeight.diagnose.sites import stored_format
from subeight.diagnose.trial import is_guilty
from subeight.evals.loss import recovered
from subeight.evals.scoring import require_same_vocabulary
from subeight.lock.measure import checkpoint_record
from subeight.lock.stacks import Change, Suspicion, changes
from subeight.models.model import Model

_COORDINATES = ("baseline", "recipe", "calibration")
_SHOWN = 8
_LISTED = 100  # linears of another format in the record


def against_checkpoint(case: Case, path: Path) -> Finding:
    """The older checkpoint on the failing prompts, and what changed since.

    Raises:
        InputError: it cannot be opened, or speaks of other tokens.
    """
    older = Model(str(path), trust_remote_code=case.candidate.trust_remote_code)
    require_same_vocabulary(case.baseline, older)
    loss = case.measure(older)
    found = list(_changes(older, case.candidate))
    details: dict[str, Any] = {
        "changes": [change.to_dict() for change in found],
        "probes": [],
        "older": {"name": older.label, "loss": loss.value, "loss_ci": loss.interval(case.settings.seed).ci},
    }
    said = f"Between {older.label} and {case.candidate.label} {_in_words(found)}"
    if len(loss.total) != len(case.loss.total):
        words = f"The two cannot be compared prompt by prompt. {said}"
        return Finding("stack", "unknown", words, evaluations=1, details=details)
    share = recovered(case.loss, loss, seed=case.settings.seed)
    numbers = f"On today's stack {older.label} loses {loss.value:.4g} and {case.candidate.label} {case.loss.value:.4g}"
    if is_guilty(share):
        words = f"{numbers}: what still worked works today, so it is not the stack. {said}"
        return Finding("stack", "cleared", words, evaluations=1, details=details)
    words = (
        f"{numbers}: what still worked is no better today, so either the stack changed or these prompts never worked; "
        f"a lock of that time would tell. {said}"
    )
    return Finding("stack", "unknown", words, evaluations=1, details=details)


def _changes(older: Model, newer: Model) -> Iterator[Change]:
    """What the records, configs and formats of two checkpoints say that is not the same, the likeliest first."""
    before, after = checkpoint_record(older.directory), checkpoint_record(newer.directory)
    if before is not None and after is not None:
        for name in _COORDINATES:
            one, two = getattr(before.coordinates, name), getattr(after.coordinates, name)
            if one != two:
                shown = (_named(name, before.subject, one), _named(name, after.subject, two))
                yield Change(name, *shown, "high")
    yield from _formats(older, newer)
    yield from _fields(older, newer)
    if before is not None and after is not None:
        yield from changes(before.stack, after.stack)


def _named(coordinate: str, subject: dict[str, Any], value: str | None) -> str | None:
    """A fingerprint with the name that the record has for it."""
    name = subject.get({"baseline": "model", "recipe": "recipe"}.get(coordinate, ""))
    return f"{name} ({value})" if name else value


def _formats(older: Model, newer: Model) -> Iterator[Change]:
    formats = [{linear.name: stored_format(model, linear.name) for linear in model.linears} for model in (older, newer)]
    differing = [name for name in formats[1] if formats[0].get(name) != formats[1][name]]
    for name in differing[:_LISTED]:
        one, two = (str(side.get(name) or "full precision") for side in formats)
        yield Change(f"format of {name}", one, two, "high")
    if len(differing) > _LISTED:
        yield Change("formats of further linears", None, f"{len(differing) - _LISTED} more", "high")


def _fields(older: Model, newer: Model) -> Iterator[Change]:
    one, two = (model.config.to_dict() for model in (older, newer))
    for name in sorted({*one, *two} - {"quantization_config", "_name_or_path"}):
        if one.get(name) != two.get(name):
            suspicion: Suspicion = "low" if name == "transformers_version" else "medium"
            yield Change(f"config.{name}", str(one.get(name)), str(two.get(name)), suspicion)


def _in_words(found: list[Change]) -> str:
    if not found:
        return "nothing changed that their records, formats and configs show."
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"these changed: {'; '.join(map(str, found[:_SHOWN]))}{more}."
