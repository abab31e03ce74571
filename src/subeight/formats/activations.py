"""Activations rounded to a format and back: what a layer's input goes through in W8A8 and the like.

Without given scales they are found anew in each call (dynamic): per token, per tensor, or per group of
columns. They are computed as compressed-tensors, and so plain transformers, computes them: in the type of the
activations, whatever the format says of stored scales. With given scales the rounding is static.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats.format import SCALE_TYPES, Format
from subeight.formats.rotation import rotate, unrotate
from subeight.formats.scales import Scales, find_global_scale, full_range, grouped, ungrouped, value_range


@torch.no_grad()
def fake_quantize(
    x: Float[Tensor, "... width"], format: Format, scales: Scales | None = None
) -> Float[Tensor, "... width"]:
    """Activations as a quantized layer sees them, in the shape and type of `x`."""
    if format.per == "channel":
        raise FormatError(f"{format} has a scale per row of a weight: for activations choose token, tensor or a group")
    if format.rotated:  # what a kernel would compute with rotated weights, in the basis that they have here
        return unrotate(fake_quantize(rotate(x), format.plain, scales)).to(x.dtype)
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    if len(rows) == 0:
        return x.clone()
    plain = format.scale_dtype in SCALE_TYPES.values() and format.grid != "nf4"
    groups = grouped(rows if plain else rows.to(torch.float32), format)
    if scales is None:
        scale_dtype = x.dtype if x.dtype in SCALE_TYPES.values() else torch.float32
        scales = _dynamic(groups, replace(format, scale_dtype=scale_dtype) if plain else format)
    scale = scales.effective.to(groups.dtype)[..., None]
    scaled = groups / scale
    if scales.zeros is None:
        values = format.values.snap(scaled)
    else:
        zero = scales.zeros.to(groups.dtype)[..., None]
        values = format.values.snap(scaled.add_(zero)).sub_(zero)
    return ungrouped(values.mul_(scale), width).to(x.dtype).reshape(x.shape)


def _dynamic(groups: Tensor, format: Format) -> Scales:
    low, high = value_range(groups, format)
    return full_range(format, low, high, find_global_scale(format, low, high))
