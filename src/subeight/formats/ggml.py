"""Our codes as blocks of ggml, llama.cpp's library of tensors, without changing what they stand for.

A block of 32 or 256 columns has fp16 scales of its own. Formats whose groups are whole blocks are said exactly: q4_0,
q5_0 and q8_0 hold the integer code - zero point; q4_1 and q5_1 hold codes and a minimum, where scale * zero point is an
fp16 number; k-quants hold groups of 256, all of whose inner scales are 1 and whose minima are the zero point itself.
Layouts: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats.format import Format
from subeight.formats.ggml_blocks import PACKERS, Blocks
from subeight.formats.qtensor import QTensor
from subeight.formats.scales import spread

BITS = {
    "Q2_K": 2.625, "Q3_K": 3.4375, "MXFP4": 4.25, "Q4_0": 4.5, "Q4_K": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_K": 5.5,
    "Q5_1": 6.0, "Q6_K": 6.5625, "Q8_0": 8.5,
}  # fmt: skip
# The integers code - zero point that a type without minima holds.
_RANGES = {"Q3_K": (-4, 3), "Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q6_K": (-32, 31), "Q8_0": (-128, 127)}
_MINIMA = {"Q2_K": 2, "Q4_K": 4, "Q5_K": 5, "Q4_1": 4, "Q5_1": 5}  # bits of the codes of types with minima
_SMALL, _SUPER = 32, 256


def block_types(format: Format, width: int) -> tuple[str, ...]:
    """The types of ggml that may hold a matrix of this format and width, the smallest first; empty: none can.

    Which of them do is known from the numbers (`block_type`): zero points, and scales beyond fp16.
    """
    if unsayable_blocks(format, width) is not None:
        return ()
    if format.grid == "mxfp4":
        return ("MXFP4",)
    bits = format.code_bits
    wide = width % _SUPER == 0 and (format.group is None or format.group % _SUPER == 0)
    found = [name for name, of in _MINIMA.items() if of == bits and (wide if name.endswith("_K") else True)]
    if format.symmetric:  # a minimum would only cost bits, but for q2_K, the one type of two bits
        found = [name for name in found if name == "Q2_K"]
    reach = 2 ** (bits - 1)
    found += [name for name, (low, _) in _RANGES.items() if -low >= reach and (wide or not name.endswith("_K"))]
    return tuple(sorted(found, key=BITS.__getitem__))


def unsayable_blocks(format: Format, width: int) -> str | None:
    """Why no type of ggml holds this format at this width, and the nearest that one holds; None where one may."""
    if format.rotated:
        return f"{format} turns its columns before each product; {format.plain} would do"
    if format.grid != "mxfp4" and not format.grid.startswith("int"):
        near = "int8:g32:sym:fp16" if format.code_bits == 8 else "int4:g32:sym:fp16"
        return f"{format} has values that no type of ggml has; {near} would do"
    if width % _SMALL:
        return (
            f"its {width} columns are no multiple of {_SMALL}, of which ggml makes blocks; it can be kept (keep: true)"
        )
    symmetry = "sym" if format.symmetric else "asym"
    near = f"{format.grid}:g32:{symmetry}:fp16"
    if format.group is not None and format.group % _SMALL:
        return f"{format} has groups of {format.group} columns, and ggml has blocks of {_SMALL}; {near} would do"
    if format.code_bits == 8 and not format.symmetric:
        return f"{format} reaches 255 steps from its zero point, and q8_0 ends at 127; int8:g32:sym:fp16 would do"
    if format.scale_dtype == torch.float32:
        return f"{format} has fp32 scales, and ggml's are fp16; {near} would do"
    return None


def block_type(weight: QTensor) -> str:
    """The smallest type of ggml that holds exactly these codes.

    Raises:
        FormatError: none does; the message says why, and the nearest format.
    """
    if weight.sparse is not None or weight.thin is not None:
        raise FormatError("values set apart have no place in a GGUF file; leave outliers and lowrank out of the recipe")
    format, width = weight.format, weight.shape[1]
    reason = unsayable_blocks(format, width)
    if reason is not None:
        raise FormatError(reason)
    if format.grid == "mxfp4":
        return "MXFP4"
    values, scales, _ = _spread(weight)
    beyond = (scales.half().float() != scales) & (values != 0)
    if bool(beyond.any()):
        raise FormatError(
            f"{int(beyond.any(1).sum())} rows of {format} have scales that are no fp16 numbers, which ggml's are; "
            f"{format.grid}:g32:{'sym' if format.symmetric else 'asym'}:fp16 would do"
        )
    return next(name for name in block_types(format, width) if _holds(name, weight))


def block_bytes(weight: QTensor, name: str) -> UInt8[Tensor, "out bytes"]:
    """The matrix as rows of blocks of this type, which `block_type` has found."""
    return PACKERS[name](_blocks(weight, name))


def _spread(weight: QTensor) -> tuple[Int[Tensor, "out in"], Tensor, Tensor]:
    """Integers code - zero point, scales and zero points of every column, [out, in]."""
    rows, width = weight.shape
    codes = weight.codes.to(torch.int16)
    zeros = torch.zeros(1, 1, dtype=torch.int16) if weight.zeros is None else weight.zeros.to(torch.int16)
    if weight.zeros is not None:
        zeros = spread(zeros, weight.format, width)
    scales = spread(weight.scales.float(), weight.format, width).expand(rows, width)
    return codes - zeros, scales, zeros.expand(rows, width)


def _holds(name: str, weight: QTensor) -> bool:
    values, scales, zeros = _spread(weight)
    if name in _RANGES:
        low, high = _RANGES[name]
        return bool((values.min() >= low) & (values.max() <= high))
    if name.endswith("_K"):
        return True
    minima = scales * (zeros + 2 ** (_MINIMA[name] - 1)).float()
    return bool((minima.half().float() == minima).all())


def _blocks(weight: QTensor, name: str) -> Blocks:
    rows, width = weight.shape
    size = _SUPER if name.endswith("_K") else _SMALL
    if name == "MXFP4":
        exponents = torch.frexp(weight.scales.float()).exponent - 1 + 127
        return Blocks(weight.codes.view(rows, -1, size), exponents.to(torch.uint8))
    values, scales, zeros = (part.reshape(rows, width // size, size) for part in _spread(weight))
    scale = scales[..., 0]
    scale = torch.where((values == 0).all(-1), 0.0, scale)  # a vanishing group keeps any scale with us
    if name in _RANGES:
        return Blocks((values - _RANGES[name][0]).to(torch.uint8), scale.half())
    half = 2 ** (_MINIMA[name] - 1)
    minima = (zeros[..., 0] + half).to(torch.uint8)  # in steps
    return Blocks((values + zeros + half).to(torch.uint8), scale.half(), minima)
