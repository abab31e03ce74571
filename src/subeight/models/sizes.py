"""How often each input channel is how large, and the range of a static scale that follows from it.

All values count alike. (Counting what a token loses as a share of its square would clip massive ones, which many models
keep as sinks of attention: smollm2 with int8 inputs lost 1.3 nats by that, and 0.04 without.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.formats import Format

PER_OCTAVE = 8
LOWEST = -24  # log2 of the smallest size that is told from smaller ones
BINS = PER_OCTAVE * 48
RANGES = 64  # what is tried, from the largest value down, a quarter of an octave apart at least


@dataclass
class Sizes:
    """How many values of each channel are of each size, times `factor`, which moves have changed."""

    count: Float[Tensor, "in bins"]
    factor: Float[Tensor, " in"]

    @classmethod
    def none(cls, width: int, device: torch.device) -> Sizes:
        """Of no token yet."""
        return cls(torch.zeros(width, BINS, device=device), torch.ones(width, device=device))

    def add(self, inputs: Float[Tensor, "tokens in"]) -> None:
        """Counts these tokens too."""
        bins = inputs.abs().log2_().sub_(LOWEST).mul_(PER_OCTAVE).clamp_(0, BINS - 1).long()
        self.count.T.scatter_add_(0, bins, torch.ones_like(inputs))

    def rescaled(self, s: Float[Tensor, " in"]) -> Sizes:
        """After a move has divided input channel j by `s[j]`."""
        return Sizes(self.count, self.factor / s.abs())

    def joined(self, other: Sizes) -> Sizes:
        """Of the tokens of both, seen before any move."""
        return Sizes(self.count + other.count, self.factor)

    def static_range(self, format: Format, largest: float) -> float:
        """The range, at most `largest`, of one scale for all of these inputs that loses least of them.

        What lies beyond is clipped, what is below half a step is lost, anything else is off by a twelfth of the step
        squared on average. Floats keep the largest: their steps grow with the value.
        """
        if not format.grid.startswith("int") or largest <= 0:
            return largest
        count = self._pooled()
        size = torch.arange(0.5, BINS, dtype=torch.float64).div_(PER_OCTAVE).add_(LOWEST).exp2_().clamp_(max=largest)
        steps = 2**format.code_bits - 1
        best, least = largest, float("inf")
        for at in range(RANGES):
            limit = largest * 2 ** (-at / 4)
            step = 2 * limit / steps
            noise = torch.where(size < step / 2, size.square(), step**2 / 12)
            lost = float((count * torch.where(size > limit, (size - limit).square(), noise)).sum())
            if lost < least:
                best, least = limit, lost
        return best

    def _pooled(self) -> Float[Tensor, " bins"]:
        """How many values of all channels are of each size, float64 on the CPU; factors are rounded to whole bins."""
        moved = self.factor.log2().mul(PER_OCTAVE).round().long()[:, None]
        bins = torch.arange(BINS, device=self.count.device).add(moved).clamp_(0, BINS - 1)
        return torch.bincount(bins.flatten().cpu(), self.count.flatten().double().cpu(), minlength=BINS)
