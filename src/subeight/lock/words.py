"""A verification in words: the lines of the command line, and the summary in Markdown for a pull request."""

from collections.abc import Sequence

from subeight.lock.measure import Remeasured
from subeight.lock.stacks import Change
from subeight.lock.verdict import Difference, Verdict

_SHOWN = 8
_NAMES = {"kl": "KL", "top1": "top-1 agreement", "nll": "loss"}


def sentences(found: Remeasured, verdict: Verdict, broken: Sequence[str]) -> list[str]:
    """What happened, why as far as it is known, and what to do; the verdict first."""
    first, *rest = map(_difference, found.differences)
    lines = [f"{verdict}: {first}.", *(f"{words[0].upper()}{words[1:]}." for words in rest)]
    lines += [f"{line[0].upper()}{line[1:]}." for line in broken]
    stack = stack_in_words(found.changes)
    lines += [*_candidate(found), f"{stack[0].upper()}{stack[1:]}.", probes_in_words(found)]
    return [*lines, *_explained(found, verdict)]


def markdown(lines: Sequence[str], found: Remeasured, verdict: Verdict, candidate: str) -> str:
    """The summary of a verification for a pull request or a job's page."""
    marks = {"pass": "✅", "regressed": "❌", "undecided": "❔"}
    rows = [
        f"| {_NAMES[d.metric]} | {d.locked:.4f} | {d.today:.4f} | {_interval(d)} | {d.tolerance:.4g} | {d.verdict} |"
        for d in found.differences
    ]
    parts = [
        f"## {marks[verdict]} {_cell(candidate)}: {verdict}",
        "| | locked | today | worse by (95 %) | tolerance | |\n|---|---|---|---|---|---|\n" + "\n".join(rows),
        "\n".join(f"- {_cell(line)}" for line in lines),
    ]
    if found.changes:
        table = [
            f"| {_cell(c.what)} | {_cell(c.before or 'absent')} | {_cell(c.after or 'absent')} | {c.suspicion} |"
            for c in found.changes
        ]
        head = "| what changed in the stack | locked | today | suspicion |\n|---|---|---|---|\n"
        parts.append(head + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def _difference(found: Difference) -> str:
    name, sides = _NAMES[found.metric], f"{found.today:.4f} (locked {found.locked:.4f})"
    if found.worse.ci == [0.0, 0.0]:
        return f"{name} {sides}, no difference at all"
    by = f"{name} {sides}, worse by {_interval(found)}"
    if found.verdict == "pass":
        return f"{by}, inside the tolerance of {found.tolerance:.4g}"
    if found.verdict == "regressed":
        return f"{by}, beyond the tolerance of {found.tolerance:.4g}"
    if found.worse.ci is None:
        return f"{by}: one document gives no interval; lock an evaluation with more documents"
    if found.more_tokens is None:
        return f"{by}, exactly at the tolerance of {found.tolerance:.4g}; no number of tokens decides that"
    return (
        f"{by}, on both sides of the tolerance of {found.tolerance:.4g}; about {found.more_tokens:,} more tokens would "
        "decide it"
    )


def _interval(found: Difference) -> str:
    ends = "" if found.worse.ci is None else f" [{found.worse.low:.4f}, {found.worse.high:.4f}]"
    return f"{found.worse.value:.4f}{ends}"


def _candidate(found: Remeasured) -> list[str]:
    if not found.candidate_changes:
        return ["The candidate is the locked checkpoint, file by file."]
    parts = ", ".join(part.replace("_", " ") for part in found.candidate_changes)
    return [f"The candidate is not the locked checkpoint (other {parts}), so its difference is not the stack's alone."]


def stack_in_words(changed: Sequence[Change]) -> str:
    """What changed, the most suspicious first, without a full stop."""
    if not changed:
        return "nothing of the stack has changed"
    shown = "; ".join(map(str, changed[:_SHOWN]))
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return f"of the stack changed, the most suspicious first: {shown}{more}"


def probes_in_words(found: Remeasured) -> str:
    """What the kernel probes say, the worst first."""
    named = {
        relation: [probe["name"] for probe in found.probes if probe["relation"] == relation]
        for relation in ("wrong", "rounding", "missing")
    }
    said = {
        "wrong": "{} of {} kernel probes are wrong, beyond their float64 error: {}.",
        "rounding": "{} of {} kernel probes round otherwise than in the lock, within their float64 error: {}.",
        "missing": "{} of {} kernel probes are on one side only: {}.",
    }
    for relation, names in named.items():
        if names:
            return said[relation].format(len(names), len(found.probes), ", ".join(names[:_SHOWN]))
    return f"All {len(found.probes)} kernel probes give the locked bits."


def differences_in_words(found: Remeasured) -> str:
    """Every metric today and in the lock."""
    return f"{'; '.join(map(_difference, found.differences))}."


def _explained(found: Remeasured, verdict: Verdict) -> list[str]:
    if found.is_same or found.candidate_changes:
        return []
    if verdict == "pass":
        why = "these kernels round otherwise" if found.rounding_probes else "something of the stack computes otherwise"
        return [f"The same files give other last digits because {why}; that is no regression."]
    if not found.changes:
        return [
            "The same files on the same stack give other numbers: something that the lock does not see has changed, or "
            "a kernel is not deterministic."
        ]
    return ["The same files and tokens give other numbers, so it is the stack; --replay finds the package."]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
