"""What a place that carries much of the loss is guilty of, by counterfactual: rounded anew, or quantized alone.

A linear whose damage goes when it is rounded anew in its own format has wrong codes or scales; one whose damage stays
is sensitive to its format, and nothing is wrong with it. One that costs little when quantized alone needs a partner.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subeight.diagnose.finding import Cause
from subeight.diagnose.forensics import worst_groups
from subeight.diagnose.search import Search, Test
from subeight.diagnose.sites import Sites
from subeight.evals.loss import recovered
from subeight.formats import Format, quantize
from subeight.probe.probe import Probe, aligned_weight
from subeight.probe.swaps import Swaps

_ANEW = 0.5  # of what restoring recovers: where rounding anew recovers less, the format itself costs that much
_ALONE = 0.4  # of what restoring recovers: a culprit that costs less alone needs a partner
_TOGETHER = 0.6  # of what restoring recovers: what a partner must bring back, and both must cost
_ENOUGH = 0.9  # of what restoring recovers: a repair in fewer bytes that recovers so much is as good
_SAFE = Format.parse("int8:channel:sym")
_WORDS = {
    "scales": "its scales are wrong",
    "zeros": "its zero points are wrong",
    "codes": "its codes are worse than its format needs",
}


@dataclass(frozen=True)
class Layers:
    """The examination under way: what measures, the places, and the search so far."""

    probe: Probe
    sites: Sites
    search: Search

    def judge(self, test: Test, kind: str | None) -> Cause | None:
        """The cause that the places of an accepted test are; None, and put back, where they are only sensitive."""
        if kind == "format":
            return self._format_cause(test)
        pair = self._pair(test) if self._may_have_a_partner(test) else None
        if pair is not None:
            return pair
        alike = not any(self.sites.stands_out(name) for name in test.names)
        anew = None if alike else self._round_anew(test.names)
        if anew is None or anew.share.value < _ANEW * test.share.value:
            self._put_back(test)
            return None
        kind = kind if kind in _WORDS else self._of_groups(test.names)
        what = f"{_named(test.names)} is broken: {_WORDS[kind]}"
        return self._cause(test, kind, what, anew)

    def _of_groups(self, names: Sequence[str]) -> str:
        """What a few wrong groups among many hide: wrong scales or zero points; else worse codes."""
        codes = self.probe.candidate.codes
        if len(names) != 1 or codes is None or self.sites.formats.get(names[0]) is None:
            return "codes"
        return worst_groups(aligned_weight(self.probe, names[0]), codes.read(names[0])) or "codes"

    def _format_cause(self, test: Test) -> Cause:
        formats = sorted({str(self.sites.format(name)) for name in test.names})
        what = f"{_named(test.names)} cannot bear {' and '.join(formats)}"
        return self._cause(test, "format", what, None)

    def _cause(self, test: Test, kind: str, what: str, anew: Test | None) -> Cause:
        low, high = test.share.ci or [float("nan")] * 2
        sentence = (
            f"{what}; restoring {'it' if len(test.names) == 1 else 'them'} recovers {test.share.value:.0%} of the"
        )
        sentence += f" loss [{low:.0%}, {high:.0%}]."
        return Cause("layers", kind, test.names, sentence, test.share, self._repair(test, anew))

    def _repair(self, test: Test, anew: Test | None) -> dict[str, Any]:
        """The cheapest of the repairs that recover nearly what restoring does: rounded anew, more bits, 16 bits."""
        own = {name: self.sites.format(name) for name in test.names}
        enough = _ENOUGH * test.share.value
        if anew is not None and anew.share.value >= enough:
            return {"weights": {name: str(format) for name, format in own.items()}, "how": "rounded anew"}
        usual = self.sites.usual
        for format in (usual, _SAFE):
            wider = format is not None and any(f is None or f.code_bits < format.code_bits for f in own.values())
            if format is None or not wider:
                continue
            raised = self._given(test.names, dict.fromkeys(test.names, format), f"raise to {format}")
            if raised.share.value >= enough:
                return {"weights": dict.fromkeys(test.names, str(format)), "how": f"raised to {format}"}
        return {"restore": list(test.names), "how": "kept in the baseline's precision"}

    def _round_anew(self, names: Collection[str]) -> Test | None:
        formats = {name: format for name in names if (format := self.sites.format(name)) is not None}
        return self._given(names, formats, "round anew") if len(formats) == len(names) else None

    def _given(self, names: Collection[str], formats: Mapping[str, Format], what: str) -> Test:
        """The candidate with these linears rounded again from the baseline, all else as before they were restored."""
        others = self.search.found - frozenset(names)
        swaps = self.sites.swaps(others) | Swaps(
            given={name: rounded(self.probe, name, format) for name, format in formats.items()}
        )
        before = self.search.with_restored(others)
        return self.search.test(what, names, lambda: self.probe.restore(swaps), before)

    def _put_back(self, test: Test) -> None:
        for name in test.names:
            self.sites.sensitive[name] = test.share.value
        self.search.found -= frozenset(test.names)

    def _may_have_a_partner(self, test: Test) -> bool:
        """Whether it must be tried: not where this place alone is doubted, for a partner is as wrong."""
        if len(test.names) != 1:
            return False
        (name,) = test.names
        if set(self.sites.hints) != {name}:
            return True
        position = self.sites.position
        near = [other for other in self.sites.names if other != name and position[other] == position[name]]
        return any(self.sites.is_far(other) for other in near)

    def _pair(self, test: Test) -> Cause | None:
        """The pair of which the place is one half, where it costs little alone and restoring another helps as much."""
        (name,) = test.names
        alone = self._damage([name])
        if alone >= _ALONE * test.share.value:
            return None
        other = self._partner(name, _TOGETHER * test.share.value)
        if other is None or self._damage([name, other]) < _TOGETHER * test.share.value:
            return None
        before = self.search.with_restored(self.search.found - {name})
        self.search.found |= {other}
        share = recovered(before, self.search.left, self.search.whole, seed=self.search.seed)
        both = Test("restore", tuple(sorted((name, other))), self.search.left, share)
        what = f"{name} and {other} hurt only together: each alone costs little, and mending either helps"
        return self._cause(both, "pair", what, self._round_anew(both.names))

    def _damage(self, names: Sequence[str]) -> float:
        """What quantizing just these places in the baseline costs, as a share of the whole loss."""
        spent, whole = self.search.spent(), self.search.whole
        loss = self.probe.damage(self.sites.swaps(names))
        share = recovered(loss, whole.minus(whole), whole, seed=self.search.seed)
        self.search.tests.append(Test("damage", tuple(sorted(names)), loss, share, self.search.spent() - spent))
        return share.value

    def _partner(self, name: str, enough: float) -> str | None:
        """The place whose restoring, with the first left as it is, recovers as much: looked for in its block first."""
        position, expected = self.sites.position, self.sites.expected
        near = [n for n in self.sites.names if n != name and position[n] == position[name]]
        far = [n for n in self.sites.names if n != name and n not in near]
        for pool in (near, far):
            pool = sorted(pool, key=lambda other: -expected[other])
            if not pool or self._instead(name, pool) < enough:
                continue
            while len(pool) > 1:
                half = pool[: (len(pool) + 1) // 2]
                pool = half if self._instead(name, half) >= enough else pool[len(half) :]
            return pool[0]
        return None

    def _instead(self, name: str, names: Sequence[str]) -> float:
        """What restoring `names` recovers while `name` stays as the candidate has it."""
        others = self.search.found - {name}
        before = self.search.with_restored(others)
        measure = lambda: self.search.with_restored(others | frozenset(names))  # noqa: E731
        return self.search.test("restore instead", names, measure, before).share.value


@torch.no_grad()
def rounded(probe: Probe, name: str, format: Format) -> Tensor:
    """The aligned baseline's weight [out, in] rounded to nearest in `format`, scales chosen for the least error."""
    weight = aligned_weight(probe, name)
    return quantize(weight, format, search="mse").dequantize().to(weight.device)


def _named(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} more of its block"
