"""Static input ranges that the failing prompts exceed, and the experiment: the same ranges, set anew from one half."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from subeight.diagnose.finding import Cause
from subeight.diagnose.trial import Trial, is_guilty
from subeight.evals.loss import Loss
from subeight.evals.stats import Interval
from subeight.formats import Format, QTensor, Scales, find_scales
from subeight.models.model import Model
from subeight.models.read.quantized import Codes
from subeight.models.structure import InputGroup
from subeight.probe.pairs import Pair
from subeight.probe.swaps import Swaps

CLIPPED = 1e-4  # of an input's energy is cut off: less than that hurts nothing
NEARLY = 0.9  # of what all ranges recover together, which fewer must recover too
_LISTED = 64


@dataclass
class Clip:
    """What a static range cuts off one linear's input on the failing prompts."""

    name: str
    limit: float  # the largest value that it can hold
    reached: float = 0.0  # the largest of the half that is fitted
    largest: float = 0.0
    values: int = 0
    beyond: int = 0
    energy: float = 0.0
    cut: float = 0.0

    @property
    def rate(self) -> float:
        """The share of the values that is clipped."""
        return self.beyond / max(self.values, 1)

    @property
    def damage(self) -> float:
        """The share of the input's energy that is cut off."""
        return self.cut / self.energy if self.energy else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "name": self.name,
            "limit": self.limit,
            "largest": self.largest,
            "clip_rate": self.rate,
            "energy_cut": self.damage,
        }


def static_ranges(model: Model) -> dict[str, tuple[Format, Scales]]:
    """The linears whose input has one fixed scale, by name."""
    found: dict[str, tuple[Format, Scales]] = {}
    for linear in model.linears if model.codes is not None else ():
        inputs = model.codes.inputs(linear.name) if model.codes is not None else None
        if inputs is not None and inputs[1] is not None:
            found[linear.name] = inputs[0], inputs[1]
    return found


def clips_of(trial: Trial, ranges: Mapping[str, tuple[Format, Scales]]) -> list[Clip]:
    """What every static range cuts off, the most damaging first."""
    clips = {name: Clip(name, float(scales.scales) * format.values.peak) for name, (format, scales) in ranges.items()}

    def look(_pair: Pair, group: InputGroup, rows: Tensor, fit: Tensor) -> None:
        mine = [clips[view.info.name] for view in group.linears if view.info.name in clips]
        if not mine or not len(rows):
            return
        size = rows.float().abs()
        reached = float(size[fit].max()) if bool(fit.any()) else 0.0
        energy, largest = float(size.square().sum()), float(size.max())
        for clip in mine:
            over = (size - clip.limit).clamp(min=0)
            clip.reached, clip.largest = max(clip.reached, reached), max(clip.largest, largest)
            clip.values += size.numel()
            clip.beyond += int((over > 0).sum())
            clip.energy += energy
            clip.cut += float(over.square().sum())

    trial.walk(look, rounded=False)
    return sorted(clips.values(), key=lambda clip: -clip.damage)


@dataclass(frozen=True)
class _Ranged:
    """The codes of a checkpoint with some static input ranges set anew."""

    codes: Codes
    ranges: Mapping[str, tuple[Format, Scales]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.codes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codes, name)

    def read(self, name: str) -> QTensor:
        return self.codes.read(name)

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        return self.ranges.get(name) or self.codes.inputs(name)


def with_ranges(model: Model, ranges: Mapping[str, float]) -> Model:
    """The candidate with the static ranges of some linears stretched to these largest values."""
    assert model.codes is not None
    fresh: dict[str, tuple[Format, Scales]] = {}
    for name, absmax in ranges.items():
        inputs = model.codes.inputs(name)
        assert inputs is not None
        fresh[name] = inputs[0], find_scales(torch.tensor([[absmax]]), inputs[0])
    other = copy.copy(model)
    other.codes = _Ranged(model.codes, fresh)  # type: ignore[assignment]
    return other


@dataclass
class Ranges:
    """What was found out about static ranges."""

    clips: list[Clip]
    causes: list[Cause] = field(default_factory=list)
    swaps: Swaps = field(default_factory=Swaps)
    loss: Loss | None = None  # with the guilty ranges repaired, on all prompts
    all_of_them: Interval | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The ranges that clip, for a record."""
        return [clip.to_dict() for clip in self.clips if clip.beyond][:_LISTED]

    def words(self) -> str:
        """The evidence in a sentence."""
        if not self.clips:
            return ""
        clipping = [clip for clip in self.clips if clip.damage > CLIPPED]
        if not clipping:
            return f"None of the {len(self.clips)} static input ranges cuts anything off that counts."
        worst = clipping[0]
        text = (
            f"{len(clipping)} of {len(self.clips)} static input ranges clip on the failing prompts, most that of "
            f"{worst.name} ({worst.rate:.2%} of its values, up to {worst.largest:,.3g} where {worst.limit:,.3g} fit)"
        )
        if self.all_of_them is None:
            return f"{text}."
        return f"{text}; set anew from one half they recovered {self.all_of_them.value:.0%} of the loss on the other."


def examine_ranges(trial: Trial) -> Ranges:
    """Whether static ranges clip, and the fewest whose repair recovers the loss; places are those."""
    ranges = static_ranges(trial.case.candidate)
    if not ranges:
        return Ranges([])
    found = Ranges(clips_of(trial, ranges))
    clipping = [clip for clip in found.clips if clip.damage > CLIPPED and clip.reached > clip.limit]
    if not clipping:
        return found
    search = _Search(trial, clipping)
    found.all_of_them = search.share(len(clipping))
    if not is_guilty(found.all_of_them):
        return found
    chosen = search.fewest(found.all_of_them)
    names = frozenset(clip.name for clip in chosen)
    share = search.share_of(chosen)
    found.swaps = Swaps(inputs=names)
    found.loss = trial.restore(found.swaps)
    found.causes.append(_cause(chosen, share))
    return found


@dataclass
class _Search:
    """Looks for the fewest ranges that recover what all of them do; `clips` are ordered by their damage."""

    trial: Trial
    clips: list[Clip]
    known: dict[frozenset[str], Interval] = field(default_factory=dict)

    def share(self, count: int) -> Interval:
        return self.share_of(self.clips[:count])

    def share_of(self, clips: list[Clip]) -> Interval:
        """What setting these ranges anew recovers on the half that is held out."""
        names = frozenset(clip.name for clip in clips)
        if names not in self.known:
            changed = with_ranges(self.trial.case.candidate, {clip.name: clip.reached for clip in clips})
            self.known[names] = self.trial.share(self.trial.measure(changed), mask=self.trial.held)
        return self.known[names]

    def fewest(self, every: Interval) -> list[Clip]:
        low, high = 1, len(self.clips)
        while low < high:
            middle = (low + high) // 2
            if self.share(middle).value >= NEARLY * every.value:
                high = middle
            else:
                low = middle + 1
        chosen = self.clips[:low]
        for clip in list(reversed(chosen))[:8] if len(chosen) > 1 else ():
            rest = [other for other in chosen if other is not clip]
            if rest and self.share_of(rest).value >= NEARLY * every.value:
                chosen = rest
        return chosen


def _cause(clips: list[Clip], share: Interval) -> Cause:
    worst, more = clips[0], len(clips) - 1
    sentence = (
        f"The static range of the input of {worst.name}{f' and of {more} more' if more else ''} is too narrow: "
        f"it holds {worst.limit:,.3g} and the failing prompts reach {worst.largest:,.3g}; set anew from half of them, "
        f"it recovers {share.value:.0%} of the loss on the other half."
    )
    repair = {"ranges": {clip.name: clip.reached for clip in clips}}
    return Cause("calibration", "range", tuple(clip.name for clip in clips), sentence, share, repair)
