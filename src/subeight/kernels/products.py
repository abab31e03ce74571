"""Rows times a packed matrix on a CPU, by our own C++: 2, 3, 4 and 8 bits, integers or any codebook.

How a matrix is laid out is told in `native/packed.h`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from math import gcd
from typing import Any

import torch
from jaxtyping import BFloat16, Float, UInt8
from torch import Tensor

from subeight.errors import KernelError
from subeight.formats import Format, QTensor
from subeight.formats.scales import Scales
from subeight.kernels.native import Native

OUTPUTS = 16  # of a block
UNIT = 4  # columns of a unit
STEP = 64  # columns of x that share a scale at most
INT8_PEAK = Format.parse("int8:token").values.peak  # what the largest value of a row is stretched to
TYPES = {torch.bfloat16: 1, torch.float32: 0}


@dataclass(frozen=True)
class PackedMatrix:
    """A weight [out, in] as the C++ reads it."""

    shape: tuple[int, int]
    bits: int
    group: int
    codes: UInt8[Tensor, "blocks runs bytes"]
    scales: BFloat16[Tensor, "blocks groups 16"]
    zeros: UInt8[Tensor, "blocks groups 16"] | None
    table: Float[Tensor, " codes"]  # what each code stands for before its scale, float32
    is_integer: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedMatrix, tuple(getattr(self, item.name) for item in fields(self))  # a copy has pointers of its own

    @cached_property
    def pointers(self) -> tuple[int, int, int | None]:
        """Where codes, scales and zero points are."""
        return self.codes.data_ptr(), self.scales.data_ptr(), None if self.zeros is None else self.zeros.data_ptr()

    @cached_property
    def narrow_table(self) -> BFloat16[Tensor, " codes"]:
        """The table in bf16."""
        return self.table.to(torch.bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of it."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.codes.nbytes + self.scales.nbytes + zeros


def columns_of_run(bits: int) -> int:
    """Columns that are packed together."""
    return UNIT * (4 if bits == 3 else 8 // bits)


def can_pack(format: Format, shape: tuple[int, int]) -> bool:
    """Whether the layout can hold a weight of this format: whole groups of whole runs, scales that bf16 can say."""
    if format.code_bits not in (2, 3, 4, 8) or format.grid.startswith("fp8") or format.grid == "nvfp4":
        return False
    if format.scale_dtype not in (torch.bfloat16, torch.float8_e8m0fnu):
        return False
    group = format.group or shape[1]
    return shape[1] % group == 0 and group % columns_of_run(format.code_bits) == 0


def pack_matrix(weight: QTensor) -> PackedMatrix:
    """Lays out codes and scales; what is set apart is left out, and of a rotated format it is the turned matrix.

    Raises:
        KernelError: `can_pack` says no.
    """
    format, (out, width) = weight.format, weight.shape
    if not can_pack(format, weight.shape):
        raise KernelError(f"{format} of a {out} x {width} weight has no packed layout here: it runs dequantized.")
    bits, group = format.code_bits, format.group or width
    scales = Scales(weight.scales, weight.zeros, weight.global_scale).effective.float()
    whole = -(-out // OUTPUTS) * OUTPUTS
    zeros = None if weight.zeros is None else _unsigned(weight.zeros, format)
    return PackedMatrix(
        shape=(out, width),
        bits=bits,
        group=group,
        codes=_runs(_padded(_unsigned(weight.codes, format), whole), bits),
        scales=_by_block(_padded(scales.expand(out, -1), whole)).to(torch.bfloat16),
        zeros=None if zeros is None else _by_block(_padded(zeros.expand(out, -1), whole)),
        table=_table(format, middle=weight.zeros is None),
        is_integer=format.grid.startswith("int"),
    )


def multiply_rounded(x: Float[Tensor, "rows in"], weight: PackedMatrix, kernels: Native) -> Float[Tensor, "rows out"]:
    """x times the weight, x rounded to int8 per 64 columns; sums of a group are exact integers. No codebooks."""
    if not weight.is_integer:
        raise KernelError("a codebook has no integer products: look it up.")
    x, y = _operands(x, weight)
    status = kernels.library.subeight_vnni(
        *weight.pointers,
        1 << (weight.bits - 1),
        weight.bits,
        *weight.shape,
        weight.group,
        gcd(weight.group, STEP),
        *_ends(x, y),
    )
    return _checked(y, status, weight)


def multiply_int8(
    x: Float[Tensor, "rows in"], weight: PackedMatrix, fixed: float | None, kernels: Native
) -> Float[Tensor, "rows out"]:
    """x, rounded to int8 with a scale per row or the `fixed` one, times codes of 8 bits with a scale per channel.

    Rounds as `rounded_codes` does; sums are exact integers.
    """
    if weight.bits != 8 or weight.group != weight.shape[1] or weight.zeros is not None or not weight.is_integer:
        raise KernelError("int8 products take symmetric int8 weights with a scale per channel.")
    x, y = _operands(x, weight)
    codes, scales, _ = weight.pointers
    status = kernels.library.subeight_int8(codes, scales, *weight.shape, fixed or 0.0, INT8_PEAK, *_ends(x, y))
    return _checked(y, status, weight)


def multiply_looked_up(x: Float[Tensor, "rows in"], weight: PackedMatrix, kernels: Native) -> Float[Tensor, "rows out"]:
    """x, rounded to bf16, times the weight's values, bf16 too; sums are float32."""
    x, y = _operands(x, weight)
    status = kernels.library.subeight_lookup(
        *weight.pointers, weight.narrow_table.data_ptr(), weight.bits, *weight.shape, weight.group, *_ends(x, y)
    )
    return _checked(y, status, weight)


def unpack_matrix(weight: PackedMatrix, kernels: Native) -> BFloat16[Tensor, "out in"]:
    """The dequantized weight, computed in float32 and rounded once."""
    found = torch.empty(weight.shape, dtype=torch.bfloat16)
    numbers = (weight.bits, *weight.shape, weight.group)
    status = kernels.library.subeight_unpack(
        *weight.pointers, weight.table.data_ptr(), *numbers, found.data_ptr(), torch.get_num_threads()
    )
    return _checked(found, status, weight)


def _operands(x: Tensor, weight: PackedMatrix) -> tuple[Tensor, Tensor]:
    if x.dtype not in TYPES or x.device.type != "cpu" or x.shape[1] != weight.shape[1]:
        raise KernelError(
            f"x is {x.dtype} {list(x.shape)} on {x.device}: give bf16 or float32 [rows, {weight.shape[1]}] on a CPU."
        )
    return x.contiguous(), torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)


def _ends(x: Tensor, y: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), y.data_ptr(), x.shape[0], TYPES[x.dtype], torch.get_num_threads()


def _checked(y: Tensor, status: int, weight: PackedMatrix) -> Tensor:
    if status:
        raise KernelError(f"this build has no product with codes of {weight.bits} bits: it runs dequantized.")
    return y


def _table(format: Format, *, middle: bool) -> Tensor:
    """The value of every code as it is packed; of integers less the middle, where no zero points are stored."""
    codes = torch.arange(1 << format.code_bits, dtype=torch.uint8)
    if format.grid.startswith("int"):
        return codes.float() + (format.levels[0] if middle else 0)
    return format.values.values(codes).float()


def _unsigned(codes: Tensor, format: Format) -> Tensor:
    middle = -format.levels[0] if format.grid.startswith("int") else 0
    return (codes.to(torch.int16) + middle).to(torch.uint8)


def _padded(rows: Tensor, whole: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(whole - rows.shape[0], rows.shape[1])]) if whole > rows.shape[0] else rows


def _by_block(rows: Tensor) -> Tensor:
    """[out, groups] as [blocks, groups, 16]."""
    return rows.reshape(-1, OUTPUTS, rows.shape[1]).transpose(1, 2).contiguous()


def _runs(codes: Tensor, bits: int) -> Tensor:
    """Codes [out, in] as bytes [blocks, runs, 64 or 96]."""
    units = columns_of_run(bits) // UNIT
    shaped = codes.reshape(-1, OUTPUTS, codes.shape[1] // (units * UNIT), units, UNIT)
    by_unit = shaped.permute(0, 2, 3, 1, 4).reshape(len(shaped), -1, units, OUTPUTS * UNIT)  # [blocks, runs, units, 64]
    if bits == 8:
        return by_unit[:, :, 0].contiguous()
    low = 2 if bits == 3 else bits
    found = torch.zeros_like(by_unit[:, :, 0])
    for unit in range(units):
        found |= (by_unit[:, :, unit] & ((1 << low) - 1)) << (low * unit)
    if bits != 3:
        return found.contiguous()
    third = (by_unit >> 2).reshape(*by_unit.shape[:3], 8, 8)
    masks = (third << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)  # [blocks, runs, units, 8]
    return torch.cat([found, masks.flatten(2)], -1).contiguous()
