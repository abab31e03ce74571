"""Rows rounded to int8 as a kernel reads them: the codes that `fake_quantize` stands for, and their scales."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from subeight.formats import Format, Scales
from subeight.formats.format import SCALE_TYPES
from subeight.formats.scales import full_range, value_range


def rounded_codes(
    x: Float[Tensor, "rows in"], format: Format, scales: Scales | None
) -> tuple[Int8[Tensor, "rows in"], Float[Tensor, "rows 1"]]:
    """Codes of a symmetric format with a scale per token or tensor, and these scales [rows, 1] or [1, 1].

    Quotients are taken in the type of `x`, as compressed-tensors takes them.
    """
    if scales is None:
        own = replace(format, scale_dtype=x.dtype) if x.dtype in SCALE_TYPES.values() else format
        scales = full_range(own, *value_range(x[:, None], own))
    scale = scales.effective
    first, last = format.levels
    return (x / scale.to(x.dtype)).round_().clamp_(first, last).to(torch.int8), scale
