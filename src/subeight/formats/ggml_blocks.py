"""The bytes of ggml's blocks. Codes count from zero; a function packs [rows, blocks, columns] into [rows, bytes]."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Codes [rows, blocks, columns] from zero; of each block a scale (fp16; mxfp4: its exponent), a minimum."""

    codes: UInt8[Tensor, "rows blocks columns"]
    scales: Tensor
    minima: UInt8[Tensor, "rows blocks"] | None = None

    @property
    def steps(self) -> Tensor:
        """Minima of the blocks; for types that have them."""
        assert self.minima is not None
        return self.minima


def _halves(values: Tensor) -> UInt8[Tensor, "rows blocks two"]:
    return values.to(torch.float16).contiguous()[..., None].view(torch.uint8)


def _joined(*parts: Tensor) -> UInt8[Tensor, "rows bytes"]:
    return torch.cat(parts, -1).flatten(1)


def _nibbles(codes: Tensor, run: int = 32) -> Tensor:
    """Four bits each: in every run of columns, the first half is low and the second half high."""
    low, high = codes.unflatten(-1, (-1, 2, run // 2)).unbind(-2)
    return ((low & 15) | (high & 15) << 4).flatten(-2)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes as four bytes, the first code lowest."""
    bits = (codes >> 4 & 1).unflatten(-1, (4, 8))
    return _weighted(bits, -1)


def _weighted(bits: Tensor, dimension: int) -> Tensor:
    """Bits along a dimension of eight as one byte, the first lowest."""
    places = 2 ** torch.arange(8, device=bits.device)
    shape = [1] * bits.ndim
    shape[dimension] = 8
    return (bits.to(torch.int64) * places.view(shape)).sum(dimension).to(torch.uint8)


def _two_bits(codes: Tensor) -> Tensor:
    """The lowest two bits: in every run of 128 columns, byte j holds columns j, j + 32, j + 64, j + 96."""
    parts = (codes & 3).unflatten(-1, (-1, 4, 32)).unbind(-2)
    return (parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6).flatten(-2)


def q4_0(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(_halves(blocks.scales), _nibbles(blocks.codes))


def q4_1(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(_halves(blocks.scales), _halves(_minimum(blocks)), _nibbles(blocks.codes))


def q5_0(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(_halves(blocks.scales), _fifth_bits(blocks.codes), _nibbles(blocks.codes))


def q5_1(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    parts = _halves(blocks.scales), _halves(_minimum(blocks)), _fifth_bits(blocks.codes), _nibbles(blocks.codes)
    return _joined(*parts)


def _minimum(blocks: Blocks) -> Tensor:
    return -(blocks.scales.float() * blocks.steps.float())


def q8_0(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(_halves(blocks.scales), blocks.codes ^ 128)  # from zero to two's complement


def mxfp4(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(blocks.scales[..., None], _nibbles(blocks.codes))


def q2_k(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    """Sixteen scales of 1 in the low nibbles, sixteen minima in the high ones."""
    inner = (1 | blocks.steps << 4)[..., None].expand(*blocks.steps.shape, 16)
    return _joined(inner, _two_bits(blocks.codes), _halves(blocks.scales), _halves(blocks.scales))


def q3_k(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    """Sixteen scales of 1, each stored as 33: low nibbles 1, upper pairs of bits 2."""
    mask = _weighted((blocks.codes >> 2 & 1).unflatten(-1, (8, 32)), -2)
    inner = torch.tensor([0x11] * 8 + [0xAA] * 4, dtype=torch.uint8, device=mask.device)
    inner = inner.expand(*mask.shape[:2], 12)
    return _joined(mask, _two_bits(blocks.codes), inner, _halves(blocks.scales))


def q4_k(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    return _joined(_halves(blocks.scales), _halves(blocks.scales), _inner(blocks.steps), _nibbles(blocks.codes, 64))


def q5_k(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    fifth = _weighted((blocks.codes >> 4 & 1).unflatten(-1, (8, 32)), -2)
    ends = _halves(blocks.scales), _halves(blocks.scales), _inner(blocks.steps)
    return _joined(*ends, fifth, _nibbles(blocks.codes, 64))


def _inner(steps: Tensor) -> Tensor:
    """Eight scales of 1 and eight minima, six bits each: two rows of four, then four bits of the other four."""
    first = torch.stack([torch.ones_like(steps), (steps & 63) | (steps >> 4) << 6], -1)
    last = (1 | (steps & 15) << 4)[..., None].expand(*steps.shape, 4)
    return torch.cat([first.repeat_interleave(4, -1), last], -1)


def q6_k(blocks: Blocks) -> UInt8[Tensor, "rows bytes"]:
    """Two runs of 128 columns: four bits of columns j and j + 64 in a byte, two more bits of each j + 32 k."""
    low = _nibbles(blocks.codes, 128)
    high = _two_bits(blocks.codes >> 4)
    inner = torch.ones(*blocks.codes.shape[:2], 16, dtype=torch.uint8, device=low.device)
    return _joined(low, high, inner, _halves(blocks.scales))


PACKERS: dict[str, Callable[[Blocks], Tensor]] = {
    "Q2_K": q2_k, "Q3_K": q3_k, "MXFP4": mxfp4, "Q4_0": q4_0, "Q4_K": q4_k, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_K": q5_k,
    "Q5_1": q5_1, "Q6_K": q6_k, "Q8_0": q8_0,
}  # fmt: skip
