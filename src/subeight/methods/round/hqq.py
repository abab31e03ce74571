"""HQQ: half-quadratic quantization fits scales and zero points to the many values and lets the few outliers go.

Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog. The error of a weight counts as |e|^p with p < 1. In
turns, an auxiliary takes what the codes miss, shrunk so that small misses become none (what stays are the outliers),
and zero point and scale are fitted to the weight without it, by least squares. It needs no text. Other than in the
authors' code, errors are measured in steps of the grid, so one strength fits weights of any size; zero points stay
whole numbers, as checkpoints store them; scales are fitted too; and a turn is kept, scale by scale, only where the
mean of |e|^p falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.formats import Format, QTensor, Scales, find_scales, quantize
from subeight.formats.scales import grouped, storable
from subeight.methods.base import Round, option
from subeight.models.stats import Stats


@dataclass(frozen=True)
class Hqq(Round):
    """Fit the grid to the many."""

    name: ClassVar[str] = "hqq"
    p: float = option(0.7, "the power in which errors count; the lower, the freer outliers are", low=0.1, high=1.0)
    strength: float = option(10.0, "how firmly the first turn holds the auxiliary to the error", low=0.1, high=1e4)
    growth: float = option(1.05, "by how much each turn is firmer than the last", low=1.0, high=2.0)
    turns: int = option(20, "how often zero points and scales are fitted", low=1, high=1000)

    @override
    @torch.no_grad()
    def round(
        self,
        weight: Float[Tensor, "out in"],
        format: Format,
        stats: Stats | None,
        generator: torch.Generator,
        notes: dict[str, Any] | None = None,
    ) -> QTensor:
        """The nearest codes for the best scales of all turns."""
        best = find_scales(weight, format)
        if format.grid == "mxfp4":  # powers of two leave nothing to fit
            return quantize(weight, format, best)
        task = _Task(weight.float(), format)
        least = task.lost(best, self.p)
        tried, strength = best, self.strength
        for _ in range(self.turns):
            tried = task.fitted(tried, self.p, strength)
            lost = task.lost(tried, self.p)
            better = lost < least
            least, best = torch.where(better, lost, least), _chosen(better, tried, best)
            strength *= self.growth
        return quantize(weight, format, best)


@dataclass(frozen=True)
class _Task:
    """A weight [out, in] and its format; groups are [out, groups, columns]."""

    weight: Tensor
    format: Format

    def fitted(self, scales: Scales, p: float, strength: float) -> Scales:
        """One turn: the auxiliary from the codes' error, then zero point and scale without it."""
        format, groups = self.format, grouped(self.weight, self.format)
        codes = format.values.values(grouped(quantize(self.weight, format, scales).codes, format))
        step = groups / scales.effective[..., None]  # in steps of the grid
        zeros = scales.zeros
        value = codes if zeros is None else codes - zeros.float()[..., None]
        kept = step - _shrunk(step - value, p, strength)
        if zeros is not None:
            first, last = format.levels
            zeros = self._mean(codes - kept).round().clamp(first, last).to(torch.int8)
            value = codes - zeros.float()[..., None]
        product, square = self._mean(value * kept), self._mean(value * value)
        ideal = scales.effective * torch.where((product > 0) & (square > 0), product / square, 1.0)
        return Scales(storable(format, ideal, scales.global_scale), zeros, scales.global_scale)

    def lost(self, scales: Scales, p: float) -> Tensor:
        """The mean of |e|^p under each scale, in the units of the weight."""
        error = self.weight - quantize(self.weight, self.format, scales).dequantize()
        return self._mean(grouped(error, self.format).abs().pow(p))

    def _mean(self, groups: Tensor) -> Tensor:
        """One number per scale; what fills a short last group does not count."""
        real = grouped(torch.ones_like(self.weight[:1]), self.format)
        sums, counts = (groups * real).sum(-1), real.sum(-1)
        if self.format.per == "tensor":
            return (sums.sum() / (counts.sum() * len(self.weight))).view(1, 1)
        return sums / counts


def _shrunk(error: Tensor, p: float, strength: float) -> Tensor:
    """About the minimum of |a|^p / p + strength / 2 (a - error)^2, by the generalized soft threshold."""
    size = error.abs()
    return error.sign() * (size - size.clamp_min(1e-8).pow(p - 1) / strength).clamp_min(0)


def _chosen(better: Tensor, one: Scales, other: Scales) -> Scales:
    zeros = other.zeros if one.zeros is None or other.zeros is None else torch.where(better, one.zeros, other.zeros)
    return replace(other, scales=torch.where(better, one.scales, other.scales), zeros=zeros)
