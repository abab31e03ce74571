"""Scales and zero points: how far a grid is stretched over each group of weights.

`full_range` stretches it over the whole group (absmax for symmetric formats, min-max for affine ones) by the
formulas of llm-compressor, so that the two can be compared code by code. mxfp4 takes powers of two (OCP
Microscaling, https://arxiv.org/abs/2310.10537); nvfp4 has two levels: fp8 scales of 16 columns under one
float32 scale of the tensor.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subeight.formats.format import Format

_FP8_MAX = 448.0
_NVFP4_MAX = 6.0
# the smallest scale that a type keeps; a nonzero group never gets the scale zero
_SMALLEST = {
    torch.bfloat16: 2.0**-126,
    torch.float16: 2.0**-24,
    torch.float32: 2.0**-126,
    torch.float8_e4m3fn: 2.0**-9,
}


@dataclass(frozen=True)
class Scales:
    """Scales [out, groups] (channel, token: [out, 1]; tensor: [1, 1]): float32 numbers that their type holds.

    Those of symmetric integers below 8 bits may be negative.
    `global_scale` (nvfp4 only) divides: a weight is value * scale / global_scale, as in compressed-tensors.
    """

    scales: Float[Tensor, "out groups"]
    zeros: Int[Tensor, "out groups"] | None = None
    global_scale: Float[Tensor, "1"] | None = None

    @property
    def effective(self) -> Float[Tensor, "out groups"]:
        """What a grid value is multiplied by."""
        return self.scales if self.global_scale is None else self.scales / self.global_scale

    def expand(self, format: Format, width: int) -> tuple[Tensor, Tensor | None]:
        """Effective scale and zero point of every column: [out, width], or [1, width] when per tensor."""
        zeros = None if self.zeros is None else spread(self.zeros, format, width)
        return spread(self.effective, format, width), zeros


def spread(values: Tensor, format: Format, width: int) -> Tensor:
    """One value per group to one per column."""
    if format.group is None:
        return values.expand(-1, width)
    return values.repeat_interleave(format.group, dim=1)[:, :width]


def grouped(matrix: Tensor, format: Format) -> Tensor:
    """[rows, width] as [rows, groups, columns]; zeros, which every grid holds, fill a short last group."""
    if format.group is None:
        return matrix[:, None, :]
    short = -matrix.shape[1] % format.group
    if short:
        matrix = torch.nn.functional.pad(matrix, (0, short))
    return matrix.unflatten(1, (-1, format.group))


def ungrouped(groups: Tensor, width: int) -> Tensor:
    """The reverse of `grouped`."""
    return groups.flatten(1)[:, :width]


def value_range(groups: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each group, zero included, float32; NaN and Inf pass through."""
    low, high = torch.aminmax(groups, dim=-1)
    if format.per == "tensor":
        low, high = low.amin().view(1, 1), high.amax().view(1, 1)
    return low.to(torch.float32).clamp(max=0), high.to(torch.float32).clamp(min=0)


def find_global_scale(format: Format, low: Tensor, high: Tensor) -> Tensor | None:
    """nvfp4's scale of the whole tensor: the largest group gets the largest fp8 scale."""
    if format.grid != "nvfp4":
        return None
    peak = torch.maximum(-low.amin(), high.amax())
    scale = _FP8_MAX * _NVFP4_MAX / peak
    # an all-zero (or vanishing) tensor needs no second level
    return torch.where(torch.isfinite(scale), scale, 1.0).to(torch.float32).view(1)


def full_range(format: Format, low: Tensor, high: Tensor, global_scale: Tensor | None = None) -> Scales:
    """The scales that stretch the grid from `low` to `high` (one of each per group)."""
    if format.symmetric:
        absmax = torch.maximum(-low, high)
        # by a tensor: CUDA multiplies by the reciprocal of a plain number, one bit off
        ideal = absmax / torch.full_like(absmax, format.values.peak)
        return Scales(storable(format, ideal, global_scale), None, global_scale)
    first, last = format.levels
    scales = storable(format, (high - low) / torch.full_like(low, last - first), global_scale)
    zeros = (first - low / scales).clamp_(first, last).round_().to(torch.int8)
    return Scales(scales, zeros, global_scale)


def storable(format: Format, ideal: Tensor, global_scale: Tensor | None = None) -> Tensor:
    """Ideal scales rounded to what the scale type holds, sign kept; never zero: 1 for an all-zero group."""
    if format.grid == "mxfp4":
        _, exponent = torch.frexp(ideal)
        rounded = torch.ldexp(torch.ones_like(ideal), (exponent - 1).clamp_(-126, 127))
        return torch.where(ideal == 0, 1.0, torch.where(torch.isfinite(ideal), rounded, ideal))
    if global_scale is not None:
        ideal = (ideal * global_scale).clamp_(max=_FP8_MAX)
    rounded = ideal.to(format.scale_dtype).to(torch.float32)
    return torch.where(ideal == 0, 1.0, rounded.abs().clamp_(min=_SMALLEST[format.scale_dtype]).copysign_(ideal))
