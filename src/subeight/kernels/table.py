"""Which kernel serves which format on which device, and why the others do not: one table, best first."""

from __future__ import annotations

from dataclasses import dataclass

from subeight.formats import QTensor, Scales
from subeight.kernels.runners import Ask, Int8, LookUp, OwnInt8, Runner, Twin

PLAIN = "dequantize"  # what runs where no kernel serves
Kind = type[Int8] | type[OwnInt8] | type[LookUp] | type[Twin]

TABLE: tuple[tuple[str, Kind], ...] = (
    ("oneDNN int8", Int8),
    ("int8", OwnInt8),
    ("look-up", LookUp),
    (PLAIN, Twin),
)


@dataclass(frozen=True)
class Choice:
    """What runs a linear, and why what stands before it in the table does not."""

    name: str
    runner: Kind
    passed: dict[str, str]

    def hold(self, weight: QTensor, ask: Ask, scales: Scales | None) -> Runner:
        """The weight as this kernel holds it; `scales` are those of fixed inputs."""
        return self.runner(weight, ask.inputs, scales)


def choose(ask: Ask) -> Choice:
    """The first of the table that serves; the last serves everything."""
    passed: dict[str, str] = {}
    for name, runner in TABLE:
        reason = runner.why_not(ask)
        if reason is None:
            return Choice(name, runner, passed)
        passed[name] = reason
    raise AssertionError("the twin serves everything")
