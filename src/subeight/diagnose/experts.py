"""Experts that calibration did not feed and the failing prompts do, and the experiment: restored, quantized anew.

Calibration text says which they are; without it a record of ours does, or the weights: an expert that was rounded
plainly among siblings whose errors were spread over columns saw no tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from subeight.diagnose.finding import Cause
from subeight.diagnose.trial import Trial, is_guilty
from subeight.evals.loss import Loss
from subeight.evals.stats import Interval
from subeight.formats import quantize
from subeight.formats.scales import Scales
from subeight.methods.base import Round, build
from subeight.models.model import Model
from subeight.models.stats import Stats
from subeight.models.structure import InputGroup
from subeight.models.tap import Gatherer
from subeight.probe.pairs import Pair
from subeight.probe.probe import aligned_weight
from subeight.probe.swaps import Swaps
from subeight.recipes.fallback import UNREACHED

RARE = 0.1  # of the share of tokens that the failing prompts give it: calibration gave an expert less
EXPECTED = 16  # tokens that calibration would have given it at the failing prompts' rate; fewer decide nothing
PLAIN, SPREAD = 0.995, 0.95  # shares of codes that are the nearest ones: of an unfed expert, and of its siblings
MOST = 8  # experts that are tried, those with the most tokens first
# An expert restored takes its part of even damage with it, and a category that was left out starves several a little.
MISSED = 0.2
ENOUGH = 0.7  # of what restoring an expert recovers, which quantizing it anew must recover to be the repair


@dataclass
class Expert:
    """One expert that calibration hardly fed."""

    name: str
    linears: tuple[str, ...]
    why: str
    tokens: int  # of the failing prompts
    restored: Interval | None = None
    anew: Interval | None = None  # quantized anew on one half, measured on the other

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        shares = {"recovered": self.restored, "recalibrated": self.anew}
        return {
            "expert": self.name,
            "why": self.why,
            "tokens": self.tokens,
            **{name: None if share is None else share.value for name, share in shares.items()},
        }


@dataclass
class Experts:
    """What was found out about experts."""

    count: int = 0
    suspects: list[Expert] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    swaps: Swaps = field(default_factory=Swaps)
    loss: Loss | None = None  # with the guilty experts repaired

    def words(self) -> str:
        """The evidence in a sentence."""
        if not self.count:
            return ""
        if not self.suspects:
            return f"None of the {self.count} experts is known to have missed calibration."
        first = self.suspects[0]
        more = f", and {len(self.suspects) - 1} more" if len(self.suspects) > 1 else ""
        share = "" if first.restored is None else f"; restored it recovered {first.restored.value:.0%} of the loss"
        return f"Calibration hardly fed {first.name} ({first.why}){more}, and the failing prompts do{share}."


def members(model: Model) -> dict[str, tuple[str, ...]]:
    """The linears of every expert, by the expert's name."""
    found: dict[str, list[str]] = defaultdict(list)
    for linear in model.linears:
        if linear.expert is not None:
            found[linear.expert].append(linear.name)
    return {name: tuple(linears) for name, linears in found.items()}


def unfed_by_text(rows: Iterable[Mapping[str, Any]], tokens: Mapping[str, int]) -> dict[str, str]:
    """Experts that the calibration text gives far less than the failing prompts do; `rows` are those of `coverage`."""
    found = {}
    for row in rows:
        expected = row["evaluation"] / max(tokens["evaluation"], 1) * tokens["calibration"]
        if expected >= EXPECTED and row["calibration"] < RARE * expected:
            found[row["expert"]] = f"{row['calibration']} of {tokens['calibration']:,} tokens of calibration"
    return found


def unfed_by_record(linears: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Experts of which a record of `quantize` says that no token came there."""
    found = {}
    for row in linears:
        dead = (row.get("notes") or {}).get("dead") and row.get("output_error") is None
        if dead or UNREACHED in (row.get("reason") or ""):
            found[row["name"].rpartition(".")[0]] = "no token of calibration, its record says"
    return found


def unfed_by_weights(trial: Trial, experts: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Experts that hold the nearest codes nearly everywhere, among siblings that do not."""
    codes = trial.case.candidate.codes
    names = [name for linears in experts.values() for name in linears if codes is not None and name in codes]
    shares = {name: _nearest(trial, name) for name in names}
    found = {}
    for expert, linears in experts.items():
        mine = [shares[name] for name in linears if name in shares]
        others = [
            shares[name]
            for other, more in experts.items()
            if other != expert and other.rpartition(".")[0] == expert.rpartition(".")[0]
            for name in more
            if name in shares
        ]
        if mine and others and min(mine) >= PLAIN and sorted(others)[len(others) // 2] <= SPREAD:
            found[expert] = "plainly rounded, unlike its siblings"
    return found


def _nearest(trial: Trial, name: str) -> float:
    """The share of a linear's codes that are the nearest ones to the baseline's weight under its own scales."""
    codes = trial.case.candidate.codes
    assert codes is not None
    stored = codes.read(name)
    plain = quantize(
        aligned_weight(trial.probe, name).cpu(), stored.format, Scales(stored.scales, stored.zeros, stored.global_scale)
    )
    return float((plain.codes == stored.codes).float().mean())


def examine_experts(trial: Trial, unfed: Mapping[str, str]) -> Experts:
    """Which of the unfed experts are guilty: each is restored alone, then quantized anew with text that feeds it."""
    experts = members(trial.case.candidate)
    found = Experts(len(experts))
    listed = {name: why for name, why in unfed.items() if name in experts}
    if not listed:
        return found
    reads = _reads(trial, {name: experts[name] for name in listed})
    suspects = [Expert(name, experts[name], why, reads.tokens[name]) for name, why in listed.items()]
    found.suspects = sorted(suspects, key=lambda expert: -expert.tokens)[:MOST]
    for expert in found.suspects:
        if expert.tokens:
            _try(trial, expert, reads, found)
    if found.causes:
        found.loss = trial.restore(found.swaps)
    return found


def _try(trial: Trial, expert: Expert, reads: "_Reads", found: Experts) -> None:
    whole = Swaps(weights=frozenset(expert.linears))
    restored = trial.restore(whole)
    expert.restored = trial.share(restored)
    if not _is_missed(expert.restored):
        return
    given = {name: value for name in expert.linears if (value := _anew(trial, name, reads)) is not None}
    share, swaps = expert.restored, whole
    repair: dict[str, Any] = {"restore": list(expert.linears)}
    if len(given) == len(expert.linears):
        anew = trial.restore(Swaps(given=given))
        expert.anew = trial.share(anew, mask=trial.held)
        if _is_missed(expert.anew) and expert.anew.value >= ENOUGH * trial.share(restored, mask=trial.held).value:
            share, swaps = expert.anew, Swaps(given=given)
            repair = {"weights": _formats(trial, expert), "recalibrate": {"linears": list(expert.linears)}}
    found.swaps = found.swaps | swaps
    parts = f"restored it recovers {expert.restored.value:.0%} of the loss"
    if expert.anew is not None:
        parts += f", quantized anew with half of the failing prompts {expert.anew.value:.0%} on the other half"
    sentence = f"The expert {expert.name} was hardly calibrated ({expert.why}): {parts}."
    found.causes.append(Cause("calibration", "expert", expert.linears, sentence, share, repair))


def _formats(trial: Trial, expert: Expert) -> dict[str, str]:
    codes = trial.case.candidate.codes
    assert codes is not None
    return {name: str(codes.read(name).format) for name in expert.linears}


def _is_missed(share: Interval) -> bool:
    return is_guilty(share) and share.value >= MISSED


@dataclass
class _Reads:
    """What some experts read of the failing prompts: tokens, and Hessians of the half that is fitted."""

    tokens: dict[str, int]
    stats: dict[str, Stats]  # by linear


def _reads(trial: Trial, experts: Mapping[str, tuple[str, ...]]) -> _Reads:
    wanted = {name: expert for expert, linears in experts.items() for name in linears}
    tokens = dict.fromkeys(experts, 0)
    gatherers: dict[str, Gatherer] = {}
    read: dict[str, str] = {}  # what each linear reads, by name

    def look(_pair: Pair, group: InputGroup, rows: Tensor, fit: Tensor) -> None:
        mine = [view.info.name for view in group.linears if view.info.name in wanted]
        if not mine or not len(rows):
            return
        expert = wanted[mine[0]]
        if mine[0] == experts[expert][0]:
            tokens[expert] += len(rows)
        if group.name not in gatherers:
            gatherers[group.name] = Gatherer(group.width, {"hessian"}, rows.device)
        gatherers[group.name].add(rows[fit])
        read.update(dict.fromkeys(mine, group.name))

    trial.walk(look)
    stats = {name: gatherer.stats() for name, gatherer in gatherers.items() if gatherer.count}
    return _Reads(tokens, {linear: stats[name] for linear, name in read.items() if name in stats})


def _anew(trial: Trial, name: str, reads: _Reads) -> Tensor | None:
    """The weight of a linear quantized anew in its own format; None where nothing can be: no codes or no tokens."""
    codes = trial.case.candidate.codes
    if codes is None or name not in codes or name not in reads.stats:
        return None
    rounder = build("gptq", {})
    assert isinstance(rounder, Round)
    generator = torch.Generator().manual_seed(trial.case.settings.seed)
    weight = aligned_weight(trial.probe, name)
    return rounder.round(weight, codes.read(name).format, reads.stats[name], generator, {}).dequantize()
