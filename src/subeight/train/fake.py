"""Fake quantization: a weight that is trained through its rounding, in the very format that it will be stored in.

Every value has a position in units of codes, every group a factor of its scale (LSQ, Esser et al. 2020,
https://arxiv.org/abs/1902.08153; the straight-through estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
What is multiplied is what the stored codes and scales stand for, to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, Scales, fake_quantize
from subeight.formats.rotation import rotate, unrotate
from subeight.formats.scales import grouped, storable, ungrouped
from subeight.train.shards import whole

NEAR = 0.25  # codes: how far from its code a position starts at most, so that noise alone turns none


class TrainedWeight(nn.Module):
    """One quantized weight; `forward` is what its codes and scales stand for, in `dtype`.

    Raises:
        FormatError: its grid is not one of integers, or its scales have a second level.
    """

    scales: Tensor
    zeros: Tensor | None
    apart: Tensor | None

    def __init__(self, start: QTensor, dtype: torch.dtype, near: Tensor | None = None) -> None:
        super().__init__()
        if not start.format.grid.startswith("int") or start.global_scale is not None:
            raise FormatError(f"Codes of {start.format} cannot be trained: ask for int2 to int8.")
        self.format, self.shape, self.dtype = start.format, start.shape, dtype
        position = grouped(start.codes.float(), start.format)
        self.position = nn.Parameter(position if near is None else position + _offsets(start, near))
        self.factor = nn.Parameter(torch.ones_like(start.scales))
        self.register_buffer("scales", start.scales, persistent=False)
        zeros = None if start.zeros is None else start.zeros.float()
        self.register_buffer("zeros", zeros, persistent=False)
        apart = start.dequantize() - start.codes_alone().dequantize()
        self.register_buffer("apart", apart.to(dtype) if bool(apart.any()) else None, persistent=False)
        self._start = replace(start, codes=start.codes.new_empty(0))

    def forward(self) -> Float[Tensor, "out in"]:
        weight = _Rounded.apply(self.position, self.factor, self)
        return weight if self.apart is None else weight + self.apart

    def scale(self) -> Float[Tensor, "out groups"]:
        """Scales as they are stored."""
        return storable(self.format, self.scales * whole(self.factor))

    def values(self) -> Tensor:
        """Codes [out, groups, columns]."""
        return whole(self.position).round().clamp_(*self.format.levels)

    @torch.no_grad()
    def stored(self) -> QTensor:
        """What is written."""
        codes = ungrouped(self.values(), self.shape[1]).to(torch.int8).contiguous()
        return replace(self._start, codes=codes, scales=self.scale().clone())


class _Rounded(torch.autograd.Function):
    """Position and factor to a weight, and the gradient back as if nothing were rounded.

    At the last code of either end what would lead further out is dropped.
    """

    @staticmethod
    def forward(ctx: Any, position: Tensor, factor: Tensor, weight: TrainedWeight) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(position, factor)
        found = ungrouped(_less(weight.values(), weight.zeros) * weight.scale()[..., None], weight.shape[1])
        return (unrotate(found) if weight.format.rotated else found).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor, None]:
        weight: TrainedWeight = ctx.weight
        position, factor = ctx.saved_tensors
        slope = rotate(slopes[0]) if weight.format.rotated else slopes[0].float()
        slope = grouped(slope, weight.format)
        to_scale = (slope * _less(weight.values(), weight.zeros)).sum(-1)
        if weight.format.per == "tensor":
            to_scale = to_scale.sum().view_as(factor)
        if not ctx.needs_input_grad[0]:
            return None, to_scale * weight.scales, None
        to_position = slope * weight.scale()[..., None]
        first, last = weight.format.levels
        outward = ((position < first - 0.49) & (to_position > 0)) | ((position > last + 0.49) & (to_position < 0))
        return to_position.masked_fill_(outward, 0.0), to_scale * weight.scales, None


def _less(values: Tensor, zeros: Tensor | None) -> Tensor:
    return values if zeros is None else values.sub_(zeros[..., None])


def _offsets(start: QTensor, near: Tensor) -> Tensor:
    """How far the weight [out, in] lies from its codes, in units of codes, at most `NEAR`."""
    given = near.float() - (start.dequantize() - start.codes_alone().dequantize())
    wanted = grouped(rotate(given) if start.format.rotated else given, start.format) / start.scales[..., None]
    if start.zeros is not None:
        wanted = wanted + start.zeros.float()[..., None]
    return (wanted - grouped(start.codes.float(), start.format)).clamp_(-NEAR, NEAR)


class FakeLinear(nn.Module):
    """A linear whose weight is trained, or (`weight` a tensor) stays as it is; inputs are rounded as it says."""

    def __init__(
        self,
        weight: TrainedWeight | Tensor,
        bias: Tensor | None,
        inputs: tuple[Format, Scales | None] | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.trained = weight if isinstance(weight, TrainedWeight) else None
        self.register_buffer("fixed", None if isinstance(weight, TrainedWeight) else weight.to(dtype), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.inputs, self.dtype = inputs, dtype

    @property
    def weight(self) -> Tensor:
        """[out, in], for code that looks at a linear's weight."""
        if self.trained is None:
            assert isinstance(self.fixed, Tensor)
            return self.fixed
        return self.trained()

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.inputs is not None:
            x = x + (fake_quantize(x, *self.inputs).to(x.dtype) - x).detach()  # as if it were not rounded
        return nn.functional.linear(x.to(self.dtype), self.weight, self.bias)
