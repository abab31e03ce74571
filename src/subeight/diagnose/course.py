"""The course of a diagnosis: the suspects in order, the cheapest and likeliest first, each meeting what is left.

Where the repairs so far explain the loss, later suspects are not examined, and the finding says so.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from subeight.diagnose import baseline, calibration, kernels, layers, stack
from subeight.diagnose.case import Case, Examined
from subeight.diagnose.finding import SUSPECTS, Finding, Suspect
from subeight.errors import InputError
from subeight.evals.loss import recovered
from subeight.records.progress import progress

EXPLAINED = 0.9  # of the loss: what is left is not worth another suspect

_EXAMINERS: dict[Suspect, Callable[[Case], Examined]] = {
    "baseline": baseline.examine,
    "stack": stack.examine,
    "kernels": kernels.examine,
    "calibration": calibration.examine,
    "layers": layers.examine,
}


def require_suspects(names: Collection[str]) -> None:
    """Raises InputError where a name is not one of the five suspects."""
    for name in names:
        if name not in SUSPECTS:
            raise InputError(f"--only was given {name!r}, which is no suspect; allowed are {', '.join(SUSPECTS)}.")


def examine_all(case: Case, only: Collection[str] = ()) -> tuple[list[Finding], Case]:
    """Every suspect's finding in order, and the case with everything guilty repaired.

    With `only`, the others are skipped; the baseline is examined all the same, since what follows stands on its gauge.
    """
    findings = []
    with progress(len(SUSPECTS), "Diagnosing", "suspects", quiet=case.computing.quiet) as advance:
        for suspect in SUSPECTS:
            finding, case = _examined(case, suspect, only)
            findings.append(finding)
            advance()
    return findings, case


def _examined(case: Case, suspect: Suspect, only: Collection[str]) -> Examined:
    command = " ".join([*case.settings.command, "--only", suspect]) if case.settings.command else ""
    reason = _reason_to_skip(case, suspect, only)
    if reason is not None:
        return Finding(suspect, "skipped", reason, command=command), case
    began = time.monotonic()
    finding, case = _EXAMINERS[suspect](case)
    return replace(finding, command=command, seconds=time.monotonic() - began), case


def _reason_to_skip(case: Case, suspect: Suspect, only: Collection[str]) -> str | None:
    if suspect == "baseline":
        return None
    if only and suspect not in only:
        return f"Not examined: --only {' --only '.join(only)} was asked for."
    if stop := case.notes.get("stop"):
        other = "the baseline is another model, so nothing that follows could be believed."
        return f"Not examined: {stop if isinstance(stop, str) else other}"
    if case.settings.thorough or case.whole.value <= 0:
        return None
    share = recovered(case.whole, case.loss, seed=case.settings.seed)
    if share.value >= EXPLAINED:
        return f"Not examined: what was found explains {share.value:.0%} of the loss (--thorough goes on)."
    return None
