"""A diagnosis in a few sentences, the verdict first: what the command line prints and the page begins with.

A pure function of the record's numbers, so that what is said is what is recorded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = {"kl": "nats per token (KL)", "nll": "nats per token", "choices": "of the answers", "check": "of the checks"}
_MOST = 4  # causes that are told; the record and the page have all


def story(numbers: Mapping[str, Any]) -> list[str]:
    """The sentences of a diagnosis: what is guilty, what its repair brings and costs, who was cleared, what is open."""
    findings: Sequence[Mapping[str, Any]] = numbers.get("findings") or []
    verdict: Mapping[str, Any] = numbers.get("verdict") or {}
    causes: Sequence[Mapping[str, Any]] = verdict.get("causes") or []
    lines = _guilty(causes) if causes else [_nothing(numbers, findings)]
    if causes:
        lines += _repair(verdict, numbers.get("prescription") or {})
    lines += _loss(numbers)
    lines += _others(findings, "cleared", "Cleared")
    lines += _others(findings, "unknown", "Not decided")
    lines += _others(findings, "skipped", "Not examined")
    return lines


def _guilty(causes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for cause in causes[:_MOST]:
        places = list(cause.get("places") or [])
        where = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
        said = cause.get("sentence") or f"{cause.get('kind') or 'a fault'} in {where or 'an unnamed place'}."
        lines.append(f"Guilty, {cause.get('suspect') or 'unknown suspect'}: {said}")
    if len(causes) > _MOST:
        lines.append(f"And {len(causes) - _MOST} more causes, which the record names.")
    return lines


def _nothing(numbers: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> str:
    """Why no cause is named, which is an answer too."""
    low = (numbers.get("loss_ci") or [None])[0]
    if numbers.get("loss") is not None and (numbers["loss"] <= 0 or (low is not None and low <= 0)):
        return "Nothing is wrong: on these prompts the candidate loses nothing that can be told from chance."
    layers = next((finding for finding in findings if finding.get("suspect") == "layers"), {})
    if layers.get("verdict") == "cleared" and layers.get("evidence"):
        return f"No culprit was found. {layers['evidence']}"
    return "No culprit was found: no suspect that was examined explains the loss."


def _repair(verdict: Mapping[str, Any], done: Mapping[str, Any]) -> list[str]:
    before, after, share = done.get("loss_before"), done.get("loss_after"), verdict.get("recovered")
    if before is None or after is None or share is None:
        return ["The repair was not applied and measured."]
    ends = verdict.get("recovered_ci")
    known = f", {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %" if ends else ""
    lines = [
        f"Repaired, the loss goes from {before:.3g} to {after:.3g} ({100 * share:.1f} % of it recovered{known})"
        f"{_price(verdict.get('bytes_added'), verdict.get('bytes'))}."
    ]
    if words := done.get("words"):
        lines.append(f"To do: {'; '.join(words)}.")
    if recipe := verdict.get("recipe"):
        lines.append(f"The repair as a recipe: `{recipe}`.")
    return lines


def _price(added: float | None, before: float | None) -> str:
    if added is None:
        return ""
    if added == 0:
        return ", and no bytes are added"
    share = f" ({100 * added / before:+.1f} %)" if before else ""
    return f", for {_size(abs(added))} {'more' if added > 0 else 'less'}{share}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:  # what three digits still say
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _loss(numbers: Mapping[str, Any]) -> list[str]:
    value = numbers.get("loss")
    if value is None:
        return []
    ends = numbers.get("loss_ci")
    known = f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends else ""
    unit = _UNITS.get(str(numbers.get("metric")).split(":")[0], "")
    on = f" on {numbers['prompts']:,} prompts" if numbers.get("prompts") else ""
    line = f"As used, it loses {value:.3g}{known} {unit}".rstrip() + on
    categories = {name: part["loss"] for name, part in (numbers.get("categories") or {}).items() if "loss" in part}
    if len(categories) > 1:
        worst = max(categories, key=lambda name: categories[name] or 0)
        line += f", most in {worst} ({categories[worst]:.3g})"
    control = (numbers.get("control") or {}).get("loss")
    return [f"{line}; on the control, {control:.3g}." if control is not None else f"{line}."]


def _others(findings: Sequence[Mapping[str, Any]], verdict: str, title: str) -> list[str]:
    names = [str(finding["suspect"]) for finding in findings if finding.get("verdict") == verdict]
    return [f"{title}: {', '.join(names)}."] if names else []
