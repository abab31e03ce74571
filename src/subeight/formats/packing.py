"""Codes of 1 to 8 bits laid side by side in 32-bit words, without a gap.

Code `i` of a row takes the bits from `i * bits` on, counted from the lowest bit of the row's first word; a
code may cross into the next word. Signed codes are shifted to start at zero. compressed-tensors has the same
layout.
"""

from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from subeight.errors import FormatError

_WORD = 32


def pack(codes: Int[Tensor, "rows columns"], bits: int) -> Int[Tensor, "rows words"]:
    """Packs int8 codes (signed) or uint8 codes (from zero) of `bits` bits into int32 words, row by row."""
    _check_bits(bits)
    if codes.dtype not in (torch.int8, torch.uint8):
        raise FormatError(f"codes of {codes.dtype} cannot be packed: give int8 (signed) or uint8")
    rows, columns = codes.shape
    offset = 2 ** (bits - 1) if codes.dtype == torch.int8 else 0
    values = codes.to(torch.int32) + offset
    short = -columns % _WORD
    if short:
        values = torch.nn.functional.pad(values, (0, short))
    # 32 codes fill exactly `bits` words
    values = values.view(rows, -1, _WORD)
    words = torch.zeros(rows, values.shape[1], bits, dtype=torch.int32, device=codes.device)
    for i in range(_WORD):
        word, shift = divmod(i * bits, _WORD)
        words[..., word] |= values[..., i] << shift
        if shift + bits > _WORD:
            words[..., word + 1] |= values[..., i] >> (_WORD - shift)
    return words.view(rows, -1)[:, : ceil(columns * bits / _WORD)].contiguous()


def unpack(
    packed: Int[Tensor, "rows words"], bits: int, columns: int, *, signed: bool = True
) -> Int[Tensor, "rows columns"]:
    """The first `columns` codes of each row: int8, or uint8 from zero when not `signed`."""
    _check_bits(bits)
    if packed.dtype != torch.int32 or packed.shape[1] != ceil(columns * bits / _WORD):
        raise FormatError(
            f"packed codes of {packed.dtype} with {packed.shape[1]} words a row cannot hold {columns} codes "
            f"of {bits} bits: give int32 with {ceil(columns * bits / _WORD)} words"
        )
    rows = packed.shape[0]
    short = -packed.shape[1] % bits
    words = torch.nn.functional.pad(packed, (0, short)) if short else packed
    words = words.reshape(rows, -1, bits)
    offset = 2 ** (bits - 1) if signed else 0
    codes = torch.empty(rows, words.shape[1], _WORD, dtype=torch.int8 if signed else torch.uint8, device=packed.device)
    for i in range(_WORD):
        word, shift = divmod(i * bits, _WORD)
        inside = min(bits, _WORD - shift)
        value = (words[..., word] >> shift) & (2**inside - 1)
        if inside < bits:
            value |= (words[..., word + 1] & (2 ** (bits - inside) - 1)) << inside
        codes[..., i] = value - offset
    return codes.view(rows, -1)[:, :columns].contiguous()


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise FormatError(f"codes of {bits} bits cannot be packed: give 1 to 8")
