"""What a kind of fault hands to `plant`: the files of a case, its right answer, and how to see that it hurts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.bases import Base
from benchmarks.faults.measure import healthy_loss, loss, question

RISE, SMOLLM2_RISE = 1.5, 2.0  # the least faulty loss, in healthy ones; the greater for a single linear of smollm2
LEAST = 0.02  # and in nats per token: what is hardly there need not be found


class Unplantable(Exception):  # noqa: N818 - no error of the program
    """This place does not hurt (the next is tried), or with `final`, the base cannot have this kind."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Answer:
    """The one right answer; without a suspect, nothing may be named."""

    suspect: str | None = None
    kind: str | None = None
    places: tuple[str, ...] = ()


@dataclass
class Draft:
    """A case in the making."""

    candidate: Path
    baseline: Path
    prompts: Path
    answer: Answer
    check: Callable[[], dict[str, Any]] | None = None  # raises Unplantable; returns what was measured
    control: Path | None = None
    calibration: Path | None = None
    last_good: Path | None = None
    replay: bool = False
    interpreter: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """The fields that a case takes over."""
        names = ("candidate", "baseline", "prompts", "control", "calibration", "last_good", "replay")
        return {name: getattr(self, name) for name in (*names, "interpreter", "environment")}


def hurts(
    base: Base, baseline: Path, prompts: Path, healthy: Path, faulty: Path, rise: float = RISE
) -> Callable[[], dict[str, Any]]:
    """A check that the faulty candidate loses `rise` times as much as the healthy one against the baseline."""

    def check() -> dict[str, Any]:
        asked = question(baseline, prompts, base.scratch / "references")
        before = healthy_loss(baseline, prompts, healthy, base.scratch / "references")
        after = loss(asked, faulty).value
        return require(before, after, rise)

    return check


def require(before: float, after: float, rise: float = RISE) -> dict[str, Any]:
    """The two losses; Unplantable where the second does not stand out."""
    if after < rise * before or after - before < LEAST:
        raise Unplantable(f"the loss rose from {before:.4f} to {after:.4f} only")
    return {"healthy": round(before, 5), "faulty": round(after, 5)}
