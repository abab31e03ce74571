"""A quantized matrix: codes, scales and zero points; and rounding to nearest, which makes one.

Every method ends here: `quantize` rounds a whole weight, `quantize_columns` a few columns by the same
arithmetic (what GPTQ calls), and `dequantize` gives the weight that the next layer will see.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats.apart import Sparse, Thin, sparse_bits, thin_bits
from subeight.formats.format import Format
from subeight.formats.packing import pack
from subeight.formats.rotation import rotate, turned_importance, unrotate
from subeight.formats.scales import Scales, grouped, ungrouped
from subeight.formats.search import NOT_FINITE, find_scales


@dataclass(eq=False)
class QTensor:
    """A quantized matrix [out, in]; what was set apart (`sparse`, `thin`) is added to what the codes stand for.

    Codes are unpacked: int8 for int grids, uint8 indices for nf4 and fp4, torch's float8 for fp8. Scales are
    float32 numbers that the scale type can hold: see `Scales`.
    """

    format: Format
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    global_scale: Tensor | None = None
    sparse: Sparse | None = None
    thin: Thin | None = None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """The weight that the codes stand for, computed in float32 and rounded once to `dtype`."""
        parts = Scales(self.scales, self.zeros, self.global_scale)
        values = grouped(self.format.values.values(self.codes), self.format)
        if parts.zeros is not None:
            values = values - parts.zeros.to(torch.float32)[..., None]
        matrix = ungrouped(values * parts.effective[..., None], self.shape[1])
        if self.format.rotated:
            matrix = unrotate(matrix)
        if self.sparse is not None:
            matrix = matrix + self.sparse.dense(self.shape[1])
        if self.thin is not None:
            matrix = matrix + self.thin.dense()
        return matrix.to(dtype)

    def codes_alone(self) -> "QTensor":
        """Without what was set apart."""
        return replace(self, sparse=None, thin=None)

    def stored(self) -> dict[str, Tensor]:
        """The tensors as they are stored, `nbytes` in all.

        Codes are packed below 8 bits, scales have their own type, zero points are packed too: [groups, out].
        """
        bits = self.format.code_bits
        tensors = {
            "codes": self.codes if bits == 8 else pack(self.codes, bits),
            "scales": self.scales.to(self.format.scale_dtype),
        }
        if self.zeros is not None:
            columns = self.zeros.T.contiguous()
            tensors["zeros"] = columns if bits == 8 else pack(columns, bits)
        if self.global_scale is not None:
            tensors["global_scale"] = self.global_scale
        for apart in (self.sparse, self.thin):
            tensors |= {} if apart is None else apart.stored()
        return tensors

    @property
    def nbytes(self) -> int:
        """Bytes really stored: packed codes, scales and zero points, and what was set apart."""
        bits = self.format.stored_bits(self.shape)
        bits += 0 if self.sparse is None else sparse_bits(self.shape, len(self.sparse.values))
        bits += 0 if self.thin is None else thin_bits(self.shape, self.thin.left.shape[1])
        return bits // 8

    def rows(self, start: int, stop: int) -> "QTensor":
        """The rows from `start` up to `stop`, as views; not of what has a thin part, which is of the whole."""
        codes = self.codes[start:stop]
        if self.format.per == "tensor":
            scales, zeros = self.scales, self.zeros
        else:
            scales = self.scales[start:stop]
            zeros = None if self.zeros is None else self.zeros[start:stop]
        sparse = None if self.sparse is None else self.sparse.rows(start, stop)
        return QTensor(self.format, (len(codes), self.shape[1]), codes, scales, zeros, self.global_scale, sparse)

    def to(self, device: torch.device | str) -> "QTensor":
        """The same on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=None if self.zeros is None else self.zeros.to(device),
            global_scale=None if self.global_scale is None else self.global_scale.to(device),
            sparse=_moved(self.sparse, device),
            thin=_moved(self.thin, device),
        )


Part = TypeVar("Part", Sparse, Thin)


def _moved(part: Part | None, device: torch.device | str) -> Part | None:
    if part is None:
        return None
    return replace(part, **{item.name: getattr(part, item.name).to(device) for item in fields(part)})


@torch.no_grad()
def quantize(
    weight: Float[Tensor, "out in"],
    format: Format,
    scales: Scales | None = None,
    *,
    search: str = "absmax",
    importance: Float[Tensor, "in"] | None = None,
) -> QTensor:
    """Rounds a weight to nearest, with the given scales or those that `find_scales` finds."""
    if format.rotated:
        turned = None if importance is None else turned_importance(importance)
        found = quantize(rotate(weight), format.plain, scales, search=search, importance=turned)
        return replace(found, format=format)
    if scales is None:
        scales = find_scales(weight, format, search=search, importance=importance)
    elif not bool(torch.isfinite(weight).all()):
        raise FormatError(NOT_FINITE)
    rows, width = weight.shape
    expected = (1 if format.per == "tensor" else rows, format.groups(width))
    if tuple(scales.scales.shape) != expected:
        raise FormatError(
            f"scales of shape {tuple(scales.scales.shape)} do not fit {format} of a {rows} x {width} weight: "
            f"give {expected}"
        )
    scaled = grouped(weight.to(torch.float32), format) / scales.effective[..., None]
    if scales.zeros is not None:
        scaled += scales.zeros.to(torch.float32)[..., None]
    codes = ungrouped(format.values.codes(scaled), width).contiguous()
    return QTensor(format, (rows, width), codes, scales.scales, scales.zeros, scales.global_scale)


def quantize_columns(
    weight_columns: Float[Tensor, "out k"],
    format: Format,
    scales_column: Tensor,
    zeros_column: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and dequantized float32 values of some columns, exactly as `quantize` rounds them.

    Scales and zero points are one per row, [out], or one per weight, [out, k]. Nothing is checked: GPTQ calls
    it for every column.
    """
    scale = scales_column if scales_column.ndim == weight_columns.ndim else scales_column[:, None]
    if global_scale is not None:
        scale = scale / global_scale
    scaled = weight_columns / scale
    if zeros_column is None:
        codes = format.values.codes(scaled)
        return codes, format.values.values(codes) * scale
    zero = zeros_column if zeros_column.ndim == weight_columns.ndim else zeros_column[:, None]
    zero = zero.to(torch.float32)
    codes = format.values.codes(scaled.add_(zero))
    return codes, format.values.values(codes).sub_(zero).mul_(scale)
