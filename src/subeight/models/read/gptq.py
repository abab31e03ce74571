"""Checkpoints in the layout of AutoGPTQ and GPTQModel (quant_method `gptq`), also used by AutoRound.

`qweight` int32 [in * bits / 32, out] and `qzeros` int32 [groups, out * bits / 32] are packed without gaps, the lowest
bits first; `scales` [groups, out]; `g_idx` [in] is the group of each column. `checkpoint_format` gptq (v1) stores each
zero point minus one, gptq_v2 stores it as it is. GPTQModel subtracts from whole words, so that a zero point of 0
borrows from its neighbour: only adding to whole words gives them back (3 bits: field by field).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import QTensor, unpack
from subeight.models.read.reader import CodeReader, int_format, int_words, ordered, require_parts

BITS = (2, 3, 4, 8)
_LAYOUTS = {"gptq": 1, "gptq_v2": 0}  # what was subtracted from the zero points
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True)
class IntScheme:
    """How one linear's integers are stored; a group of -1 is one scale per channel."""

    bits: int
    group: int
    symmetric: bool

    def groups(self, width: int) -> int:
        return 1 if self.group == -1 else ceil(width / self.group)


def int_scheme(name: str, settings: Mapping[str, Any], allowed: tuple[int, ...] = BITS) -> IntScheme:
    """The scheme that a config says for a linear; ModelError where it cannot be read."""
    bits, group = settings.get("bits"), settings.get("group_size", 128)
    if bits not in allowed:
        raise ModelError(f"{name} is said to have {bits} bits; {', '.join(map(str, allowed))} can be read.")
    if not isinstance(group, int) or (group < 1 and group not in (0, -1)):
        raise ModelError(f"{name} is said to have groups of {group!r}; a positive number or -1 can be read.")
    return IntScheme(int(bits), group or -1, bool(settings.get("sym", True)))


class GptqReader(CodeReader):
    """Linears of a checkpoint of AutoGPTQ or GPTQModel."""

    method = "gptq"
    parts = ("qweight", "qzeros", "scales", "g_idx")
    marks = ("qweight",)

    @cached_property
    def subtracted(self) -> int:
        """What the checkpoint's layout has subtracted from the zero points."""
        return _LAYOUTS[one_of(self.config, ("checkpoint_format", "format"), "gptq", tuple(_LAYOUTS))]

    def scheme(self, name: str) -> IntScheme:
        """Bits, group and symmetry of one linear, GPTQModel's `dynamic` overrides included."""
        settings = dict(self.config)
        for pattern, override in (self.config.get("dynamic") or {}).items():
            if not pattern.startswith("-:") and matches(pattern.removeprefix("+:"), name):
                settings |= override
                break
        return int_scheme(name, settings)

    def shape(self, name: str) -> tuple[int, int]:
        words, rows = self.part_shape(name, "qweight")
        return rows, words * 32 // self.scheme(name).bits

    def words(self, name: str) -> str:
        scheme = self.scheme(name)
        notes = [self.method, *(["act-order"] if self.order(name) is not None else [])]
        return int_words(scheme.bits, scheme.group, scheme.symmetric, notes)

    def order(self, name: str) -> Tensor | None:
        """The group of each column, where it is not simply the column's place."""
        if not self.has(name, "g_idx"):
            return None
        found, group = self.part(name, "g_idx"), self.scheme(name).group
        plain = torch.zeros_like(found) if group == -1 else torch.arange(len(found), dtype=found.dtype) // group
        return None if torch.equal(found, plain) or bool((found < 0).all()) else found

    def linear(self, name: str) -> QTensor | None:
        return None if self.order(name) is not None else self.grouped(name)

    def dense(self, name: str) -> Tensor:
        found, order = self.grouped(name), self.order(name)
        return found.dequantize() if order is None else ordered(name, found, order)

    def grouped(self, name: str) -> QTensor:
        """The codes as if columns lay in the order of their groups; right where `order` is None."""
        scheme, (rows, width) = self.scheme(name), self.shape(name)
        groups = scheme.groups(width)
        expected = {"scales": (groups, rows), "qzeros": (groups, ceil(rows * scheme.bits / 32))}
        require_parts(name, {part: self.part_shape(name, part) for part in expected}, expected)
        scales = self.part(name, "scales")
        codes = unpack(int_words_of(self, name, "qweight").T.contiguous(), scheme.bits, width)  # int8, the middle at 0
        zeros = self.zeros(int_words_of(self, name, "qzeros"), scheme.bits, rows)
        # A symmetric grid has its zero point in the middle; one that has not is read as what it is.
        symmetric = scheme.symmetric and not bool(zeros.any())
        return QTensor(
            format=int_format(scheme.bits, scheme.group, symmetric, scales.dtype),
            shape=(rows, width),
            codes=codes,
            scales=scales.T.contiguous().float(),
            zeros=None if symmetric else zeros.T.contiguous(),
        )

    def zeros(self, packed: Tensor, bits: int, rows: int) -> Tensor:
        """Zero points [groups, out], the grid's middle at 0."""
        if not self.subtracted:
            return unpack(packed, bits, rows)
        if bits in _ONES:
            return unpack(packed + _ONES[bits], bits, rows)
        fields = unpack(packed, bits, rows, signed=False).to(torch.int16)
        return (((fields + 1) & (2**bits - 1)) - 2 ** (bits - 1)).to(torch.int8)


def int_words_of(reader: CodeReader, name: str, part: str) -> Tensor:
    """A packed part; ModelError where it is not packed in words of 32 bits."""
    packed = reader.part(name, part)
    if packed.dtype != torch.int32:
        raise ModelError(f"{name}.{part} is packed in {packed.dtype}; words of torch.int32 can be read.")
    return packed


def one_of(config: Mapping[str, Any], keys: tuple[str, ...], default: str, allowed: tuple[str, ...]) -> str:
    """The layout that a config names under one of these keys; ModelError for one that cannot be read."""
    found = next((str(config[key]).lower() for key in keys if config.get(key)), default)
    if found not in allowed:
        raise ModelError(
            f"The checkpoint has the layout {found!r}; {', '.join(allowed)} can be read: save it again as {allowed[0]}."
        )
    return found


def matches(pattern: str, name: str) -> bool:
    """Whether a config's pattern fits the beginning of a name; ModelError where it is no pattern."""
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise ModelError(f"The checkpoint's config targets {pattern!r}, which is no valid pattern: {error}.") from error
