"""Linears of HQQ as its package puts them into safetensors (transformers before 5 saved such checkpoints).

`W_q` holds unsigned codes, the rows of the grouped matrix laid over one another in one byte (3 bits: ten rows in one
int32); `scale` and `zero` are one per group and not whole numbers, so our Format cannot say them: such linears have a
dense weight only. `shape`, `group_size`, `nbits`, `axis`, `packing`, `compute_dtype` are stored as tensors.
"""

from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.models.read.reader import CodeReader, int_words

_META = ("nbits", "group_size", "shape", "axis", "packing", "compute_dtype", "view_as_float", "unpack_view_dtype")
_OTHER = (
    "quant_scale",
    "quant_zero",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
)
# Bits of a code, and how many rows lie in one stored number, the first in the highest bits
_PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}


class HqqReader(CodeReader):
    """Linears of a checkpoint in HQQ's layout."""

    method = "hqq"
    parts = ("W_q", "scale", "zero", *_META, *_OTHER)
    marks = ("W_q",)
    uncounted = (*_META, *_OTHER)

    def shape(self, name: str) -> tuple[int, int]:
        rows, width = (int(size) for size in self.part(name, "shape").tolist())
        return rows, width

    def words(self, name: str) -> str:
        group = self._number(name, "group_size") or -1
        notes = [self.method, *(["axis 0"] if self._number(name, "axis") == 0 else [])]
        return int_words(self._number(name, "nbits"), group, False, notes)

    def linear(self, name: str) -> None:  # noqa: ARG002
        return None  # zero points are not whole numbers

    def dense(self, name: str) -> Tensor:
        if self._number(name, "quant_scale") or self._number(name, "quant_zero"):
            raise ModelError(f"{name} has quantized scales, which HQQ cannot store; save it with plain ones.")
        rows, width = self.shape(name)
        dtype = self._dtype(name)
        group, count = self._number(name, "group_size") or width, rows * width
        tall = count // group if self._number(name, "axis") == 1 else group
        scale, zero = self.part(name, "scale"), self.part(name, "zero")
        values = self._codes(name)[:tall].to(dtype)
        if values.numel() != count or scale.numel() != zero.numel():
            raise ModelError(f"{name}.W_q has {values.numel()} codes for {rows} x {width} weights; it is damaged.")
        # In the type that the package computes with, so that the same weights come out.
        return ((values - zero.to(dtype)) * scale.to(dtype)).reshape(rows, width).float()

    def _codes(self, name: str) -> Tensor:
        """The codes of the grouped matrix [rows, columns]."""
        packing = self._text(name, "packing")
        if packing not in _PACKINGS:
            raise ModelError(f"{name} is packed as {packing!r}; {', '.join(_PACKINGS)} can be read.")
        bits, per = _PACKINGS[packing]
        packed = self.part(name, "W_q")
        if self._number(name, "view_as_float"):
            packed = packed.view(torch.int32 if packing == "3bit_32" else torch.uint8)
        layers = [(packed >> (bits * (per - 1 - place))) & (2**bits - 1) for place in range(per)]
        return torch.cat(layers)

    def _number(self, name: str, part: str) -> int:
        return int(self.part(name, part).item()) if self.has(name, part) else 0

    def _text(self, name: str, part: str) -> str:
        return "".join(chr(letter) for letter in self.part(name, part).tolist())

    def _dtype(self, name: str) -> torch.dtype:
        word = self._text(name, "compute_dtype").removeprefix("torch.") if self.has(name, "compute_dtype") else ""
        found: Any = getattr(torch, word or "float16", None)
        if not isinstance(found, torch.dtype):
            raise ModelError(f"{name} is said to compute in {word!r}, which torch does not know.")
        return found
