"""Choosing scales before plain rounding: what `search` means.

`absmax`, `minmax` and `mse` look at the weight alone and are the formats' own. `output` starts from absmax
and keeps, for each group, the clipped range with the least error of the *output*: err = dw_g H_gg dw_g^T with
the diagonal block H_gg of the Hessian that belongs to the group's columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import InputError
from subeight.formats import Format, QTensor, Scales, find_scales, quantize
from subeight.formats.scales import grouped, storable

SEARCHES = ("absmax", "minmax", "mse", "output")
RATIOS = tuple(1.0 - 0.05 * step for step in range(13))  # of the absmax range, down to 0.4
POWERS = (1.0, 0.5)  # where a scale must be a power of two
WIDEST = 256  # columns per scale up to which the block of the Hessian is used whole: beyond, its diagonal


@torch.no_grad()
def choose_scales(
    weight: Float[Tensor, "out in"],
    format: Format,
    search: str,
    hessian: Float[Tensor, "in in"] | None,
) -> Scales:
    """The scales of `weight` in `format` by one of SEARCHES; only `output` reads the Hessian."""
    if search != "output":
        return find_scales(weight, format, search=search)
    if hessian is None:
        raise InputError(
            "search 'output' was asked for without a Hessian; give calibration text or choose absmax or mse."
        )
    best = find_scales(weight, format, search="absmax")
    least = output_errors(weight, quantize(weight, format, best), hessian)
    first = best
    for ratio in POWERS[1:] if format.grid == "mxfp4" else RATIOS[1:]:
        scales = storable(format, first.effective * ratio, first.global_scale)
        tried = replace(first, scales=scales)  # an affine grid keeps its zero points
        errors = output_errors(weight, quantize(weight, format, tried), hessian)
        better = errors < least
        least = torch.where(better, errors, least)
        best = replace(best, scales=torch.where(better, tried.scales, best.scales))
    return best


def output_errors(
    weight: Float[Tensor, "out in"], rounded: QTensor, hessian: Float[Tensor, "in in"]
) -> Float[Tensor, "scales_out scales_in"]:
    """What each scale costs the output: one number per scale, in the shape of the scales."""
    format = rounded.format
    group = format.group or weight.shape[1]
    error = weight.float() - rounded.dequantize()
    product = error * hessian.diagonal() if group > WIDEST else _times_blocks(error, hessian, group)
    per_group = grouped(product.mul_(error), format).sum(2)
    return per_group.sum(0, keepdim=True) if format.per == "tensor" else per_group


def _times_blocks(
    error: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"], group: int
) -> Float[Tensor, "out in"]:
    product = torch.empty_like(error)
    for start in range(0, error.shape[1], group):
        part = slice(start, start + group)
        product[:, part] = error[:, part] @ hessian[part, part]
    return product


def output_error(error: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"]) -> float:
    """tr(dW H dW^T): what the error `dW` of a weight costs its outputs, summed over them."""
    return float((error @ hessian).mul_(error).sum(dtype=torch.float64))
