"""The first suspect: is this the right full-precision model, and was it asked the same question?

The question (tokenizer, template, ids), the config and the tensors are examined in turn. What differs is put right
and measured again, so that a difference without effect accuses nobody. Most regressions are inconsistent comparisons.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from subeight.diagnose.case import Case, Examined
from subeight.diagnose.fields import examine_fields
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.guess import guess_baseline
from subeight.diagnose.question import Part, examine_question, explains, percent
from subeight.diagnose.tensors import Suspect, Tensors, compare_tensors
from subeight.evals.loss import Loss, recovered
from subeight.evals.stats import Interval
from subeight.models.align import require_alike
from subeight.probe.probe import Probe
from subeight.probe.swaps import Swaps

__all__ = ["examine", "guess_baseline"]

_SPREAD = (
    "Most linears lie farther from the baseline's than their format explains, all of them by noise, and what was not "
    "quantized is the baseline's: the damage is spread evenly, and is no other model."
)
_MOST = 8  # suspects that are measured alone


def examine(case: Case) -> Examined:
    """Examines the baseline; the case goes on with the gauge, and with what was found put right.

    Raises:
        ModelError: candidate and baseline are not of one architecture.
    """
    began = time.monotonic()
    require_alike(case.baseline, case.candidate)
    asked, case = examine_question(case)
    fields, case = examine_fields(case)
    tensors, case = _examine_tensors(case)
    parts = (asked, fields, tensors)
    causes = tuple(cause for part in parts for cause in part.causes)
    details: dict[str, Any] = {}
    for part in parts:
        details |= part.details
    details |= _settings(case)
    words = [word for part in parts for word in part.words]
    finding = Finding(
        "baseline",
        "guilty" if causes else "cleared",
        " ".join([*(cause.sentence for cause in causes), *words]),
        causes,
        sum(part.evaluations for part in parts),
        sum(part.block_forwards for part in parts),
        time.monotonic() - began,
        details=details,
    )
    return finding, case


def _settings(case: Case) -> dict[str, Any]:
    """What is told and accuses nobody: the stored types, and how attention is computed."""
    models = {"baseline": case.baseline, "candidate": case.candidate}
    return {
        "dtype": {who: str(model.stored_dtype).removeprefix("torch.") for who, model in models.items()},
        "attention": {who: model.skeleton.model.config._attn_implementation for who, model in models.items()},
    }


def _examine_tensors(case: Case) -> tuple[Part, Case]:
    """Compares all tensors, and measures what those are worth that are not the baseline's."""
    computing = case.computing
    found = compare_tensors(case.baseline, case.candidate, computing.device, computing.shelf(8))
    hints = {suspect.name: suspect.kind for suspect in found.suspects if not suspect.is_ours}
    case = replace(case, gauge=found.gauge, notes={**case.notes, "forensics": hints, "excess": found.excess})
    spread = found.most_linears and found.is_noise
    ours = [suspect for suspect in found.suspects if suspect.is_ours and not (spread and suspect.kind == "stale")]
    details = {
        "differences": dict(found.gauge.differences),
        "excess": found.excess,
        "gauge": _gauge_words(found),
        "suspects": {suspect.name: suspect.kind for suspect in found.suspects},
        "unaligned": dict(found.gauge.findings),
    }
    if not ours:
        return Part((), details, (_SPREAD if spread else _cleared(found, hints),)), case
    probe = case.probe()
    if found.is_other_model:
        part, case = _other_model(case, found, ours, probe)
    else:
        part, case = _put_back(case, ours, probe)
    spent = replace(part, evaluations=probe.spent.evaluations, block_forwards=probe.spent.block_forwards)
    return replace(spent, details={**details, **part.details}), case


def _gauge_words(found: Tensors) -> str:
    gauge = found.gauge
    moved = [word for word, is_so in (("rotation", gauge.rotation is not None), ("scales", _scaled(found))) if is_so]
    return "+".join(moved) or "none"


def _scaled(found: Tensors) -> bool:
    return found.gauge.final is not None or any(block.scales for block in found.gauge.blocks)


def _cleared(found: Tensors, hints: dict[str, str]) -> str:
    moved = _gauge_words(found)
    gauge = "" if moved == "none" else f" once the baseline has the candidate's gauge ({moved})"
    words = f"Every tensor is the baseline's, or a plausible rounding of it{gauge}."
    if hints:
        words = (
            f"Every tensor but {', '.join(sorted(hints)[:4])} is the baseline's or a plausible rounding of it{gauge}."
        )
    return words


def swaps_of(suspects: Sequence[Suspect]) -> Swaps:
    """The suspects put back: linears as their format rounds the baseline's, others as the baseline has them."""
    given = {suspect.name: suspect.given for suspect in suspects if suspect.given is not None}
    plain = [suspect for suspect in suspects if suspect.given is None]
    weights = frozenset(suspect.name for suspect in plain if not suspect.name.endswith((".weight", ".bias")))
    return Swaps(weights, parameters=frozenset(s.name for s in plain) - weights, given=given)


def _put_back(case: Case, ours: list[Suspect], probe: Probe) -> tuple[Part, Case]:
    """The suspects put back together, then each alone; those that only an experiment can accuse, alone from the start.

    What recovers nothing is cleared.
    """
    ours = sorted(ours, key=lambda suspect: -suspect.excess)
    sure, unsure = [s for s in ours if not s.unsure], [s for s in ours if s.unsure]
    trial = _Trial(case, probe)
    together = trial.share(sure) if sure else None
    convicted = together is not None and explains(together)
    alone = [*sure[:_MOST], *unsure] if convicted else unsure
    guilty = [(suspect, share) for suspect in alone if explains(share := trial.share([suspect]))]
    if convicted and together is not None and not any(suspect in sure for suspect, _ in guilty):
        guilty += [(suspect, together) for suspect in sure]
    rest = [suspect for suspect in ours if all(suspect is not other for other, _ in guilty)]
    details = {"not_guilty": [suspect.words for suspect in rest]}
    if not guilty:
        named = ", ".join(suspect.name for suspect in ours[:4])
        words = f"{named} differ from the baseline's more than they should, but putting them back mends nothing."
        return Part((), details, (words,)), case
    causes = tuple(_cause(suspect, share) for suspect, share in guilty)
    mended = [suspect for suspect, _ in guilty]
    return Part(causes, details), case.with_repair(trial.loss(mended), swaps=case.swaps | swaps_of(mended))


@dataclass
class _Trial:
    """Measures suspects put back; what was measured is not measured again."""

    case: Case
    probe: Probe
    known: dict[frozenset[str], Loss] = field(default_factory=dict)

    def loss(self, suspects: Sequence[Suspect]) -> Loss:
        names = frozenset(suspect.name for suspect in suspects)
        if names not in self.known:
            self.known[names] = self.probe.restore(self.case.swaps | swaps_of(suspects))
        return self.known[names]

    def share(self, suspects: Sequence[Suspect]) -> Interval:
        return recovered(self.case.loss, self.loss(suspects), self.case.whole, self.case.settings.seed)


def _cause(suspect: Suspect, share: Interval) -> Cause:
    sentence = f"{suspect.words}; putting it back recovers {percent(share.value)} of the loss."
    repair = {"restore": [suspect.name], "requantized": suspect.given is not None}
    return Cause("baseline", suspect.kind, (suspect.name,), sentence, share, repair)


def _other_model(case: Case, found: Tensors, ours: list[Suspect], probe: Probe) -> tuple[Part, Case]:
    """Most tensors differ: the candidate was made from another model, and the rest of the diagnosis has no ground."""
    share = recovered(case.loss, probe.restore(case.swaps | swaps_of(ours)), case.whole, case.settings.seed)
    worst = sorted(ours, key=lambda suspect: -suspect.excess)[:3]
    apart = [name for name, value in found.unquantized.items() if value > found.allowed[name]]
    others = (
        f"{len(apart)} of {len(found.unquantized)} tensors that were not quantized differ as well"
        if apart
        else ("what was not quantized is the same")
    )
    named = ", ".join(suspect.name for suspect in worst)
    sentence = (
        f"The candidate was not made from {case.baseline.label}: {len(ours)} tensors are not the baseline's (most of "
        f"all {named}), and {others}; give the full-precision model that it was made from."
    )
    cause = Cause("baseline", "model", ("baseline",), sentence, share, {"baseline": None})
    return Part((cause,)), replace(case, notes={**case.notes, "stop": True})
