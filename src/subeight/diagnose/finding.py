"""What an examination of one suspect ends with: a Finding, and the Causes that it names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from subeight.evals.stats import Interval

Suspect = Literal["baseline", "stack", "kernels", "calibration", "layers"]
Outcome = Literal["cleared", "guilty", "unknown", "skipped"]
SUSPECTS: tuple[Suspect, ...] = ("baseline", "stack", "kernels", "calibration", "layers")


@dataclass(frozen=True)
class Cause:
    """One thing that is guilty: of which kind, where, in a sentence, and what share of the loss its repair recovered.

    `repair` says what the prescription does about it, as plain data: `{"restore": [linears]}`, `{"recalibrate": ...}`,
    `{"pin": {package: version}}`, `{"config": {field: value}}`, `{"baseline": ...}`, `{"tokenizer": ...}`.
    """

    suspect: Suspect
    kind: str
    places: tuple[str, ...]
    sentence: str
    recovered: Interval | None = None
    repair: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "suspect": self.suspect,
            "kind": self.kind,
            "places": list(self.places),
            "sentence": self.sentence,
            "recovered": None if self.recovered is None else self.recovered.value,
            "recovered_ci": None if self.recovered is None else self.recovered.ci,
            "repair": dict(self.repair),
        }


@dataclass(frozen=True)
class Finding:
    """The verdict about one suspect, the evidence in words, and what it cost.

    `evaluations` counts measurements of a whole model's loss, `block_forwards` runs of one block over all prompts.
    """

    suspect: Suspect
    verdict: Outcome
    evidence: str
    causes: tuple[Cause, ...] = ()
    evaluations: int = 0
    block_forwards: float = 0.0
    seconds: float = 0.0
    command: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        shares = [cause.recovered for cause in self.causes if cause.recovered is not None]
        best = max(shares, key=lambda share: share.value, default=None)
        return {
            "suspect": self.suspect,
            "verdict": self.verdict,
            "places": [place for cause in self.causes for place in cause.places],
            "evidence": self.evidence,
            "causes": [cause.to_dict() for cause in self.causes],
            "recovered": None if best is None else best.value,
            "recovered_ci": None if best is None else best.ci,
            "evaluations": self.evaluations,
            "block_forwards": round(self.block_forwards, 2),
            "seconds": round(self.seconds, 2),
            "command": self.command,
            "details": dict(self.details),
        }
