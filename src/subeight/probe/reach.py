"""How far one text reaches into the inputs of a group, and what another text does beyond that.

Two texts of one kind also differ in their largest values. What tells another kind of text is a channel that goes
beyond twice its calibrated maximum again and again, and more such channels than the second half of the calibration
shows against its own first half.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.models.structure import InputGroup

RANGE = 1.25  # a group's largest value, evaluation over calibration: what a static scale of the tensor would clip
CHANNEL = 2.0  # a channel's, on OFTEN of the evaluation's tokens and on at least LEAST of them
OFTEN = 0.002
LEAST = 8
FLOOR = 5.0  # and above so many times the typical value: quiet channels matter to no scale
EXPERT = 128  # calibration tokens under which an expert's statistics are not to be trusted
UNLIKE = 2.0  # times as many such channels as between the halves of calibration make a warning
LISTED = 64


class Reach:
    """Largest values per channel and the typical value of one group over the calibration."""

    def __init__(self, group: InputGroup, device: torch.device) -> None:
        self.group = group
        self.count = 0
        self.absmax = torch.zeros(group.width, device=device)
        self._square = torch.zeros(group.width, dtype=torch.float64, device=device)

    def add(self, rows: Float[Tensor, "n in"]) -> None:
        size = rows.float().abs()
        self.count += len(rows)
        if len(rows):
            # new tensors: a copy made half-way keeps its own
            self.absmax = torch.maximum(self.absmax, size.amax(0))
            self._square = self._square + size.square().sum(0)

    @property
    def typical(self) -> float:
        """RMS of the median channel that is not dead."""
        alive = self._square[self._square > 0]
        return float((alive.median() / self.count).sqrt()) if len(alive) else 0.0


class Beyond:
    """What the evaluation does in one group beyond a calibration's reach."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.count = 0
        self.clipped = 0  # tokens with a value above every calibrated one, by RANGE
        self.absmax = torch.zeros_like(reach.absmax)
        self._limit = (CHANNEL * reach.absmax).clamp(min=FLOOR * reach.typical)
        self._range = RANGE * float(reach.absmax.max())
        self._times = torch.zeros(len(self._limit), dtype=torch.long, device=self._limit.device)

    def add(self, rows: Float[Tensor, "n in"]) -> None:
        size = rows.float().abs()
        self.count += len(rows)
        if len(rows):
            self.absmax = torch.maximum(self.absmax, size.amax(0))
            self._times += (size > self._limit).sum(0)
            self.clipped += int((size.amax(1) > self._range).sum())

    @property
    def known(self) -> bool:
        """Whether calibration saw enough of this group to compare with: experts may be starved."""
        return self.reach.count > 0 and not (self.reach.group.is_expert and self.reach.count < EXPERT)

    def range(self) -> dict[str, Any] | None:
        """The group's range, where the evaluation exceeds it."""
        seen, reached = float(self.reach.absmax.max()), float(self.absmax.max())
        if not self.known or not self.clipped or reached <= 0:
            return None
        return {
            "group": self.reach.group.name,
            "block": self.reach.group.linears[0].info.block,
            "calibration": seen,
            "evaluation": reached,
            "factor": reached / seen if seen else None,
            "channel": int(self.absmax.argmax()),
            "tokens": self.clipped,
        }

    def channels(self) -> dict[str, Any] | None:
        """The channels that exceed theirs again and again, the most frequent first."""
        often = self._times >= max(LEAST, OFTEN * self.count)
        if not self.known or not bool(often.any()):
            return None
        found = [c for c in self._times.argsort(descending=True, stable=True).tolist() if often[c]]
        return {
            "group": self.reach.group.name,
            "block": self.reach.group.linears[0].info.block,
            "count": len(found),
            "channels": [
                {
                    "channel": channel,
                    "calibration": float(self.reach.absmax[channel]),
                    "evaluation": float(self.absmax[channel]),
                    "tokens": int(self._times[channel]),
                }
                for channel in found[:LISTED]
            ],
        }

    def starved(self) -> dict[str, Any] | None:
        """An expert that the evaluation routes to and calibration hardly does."""
        group = self.reach.group
        if not group.is_expert or not self.count or self.reach.count >= EXPERT:
            return None
        return {
            "expert": group.linears[0].info.expert or group.name,
            "block": group.linears[0].info.block,
            "calibration": self.reach.count,
            "evaluation": self.count,
        }
