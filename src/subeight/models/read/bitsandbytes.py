"""Prequantized checkpoints of bitsandbytes as transformers saves them, dequantized in plain torch.

4 bits: `weight` has two codes to a byte (the first in the high half), `weight.absmax` one scale for each block of the
flattened weight, `weight.quant_map` what the codes stand for, `weight.quant_state.bitsandbytes__nf4` a JSON text as
bytes. With double quantization absmax is codes too, of `nested_quant_map`, in blocks of `nested_absmax`, around an
offset. 8 bits: `weight` int8 and `SCB`, the largest magnitude of each row, which stands for the code 127.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor
from subeight.formats.grids import NF4_VALUES
from subeight.models.read.reader import CodeReader

_STATE = "weight.quant_state.bitsandbytes__"
_INVERSE_127 = 7.874015718698502e-3  # bitsandbytes multiplies by it


class BitsandbytesReader(CodeReader):
    """Linears of a checkpoint that bitsandbytes quantized to 4 or 8 bits."""

    method = "bitsandbytes"
    parts = (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        f"{_STATE}nf4",
        f"{_STATE}fp4",
        "SCB",
        "weight_format",
    )
    marks = (f"{_STATE}nf4", f"{_STATE}fp4", "SCB")
    uncounted = ("weight_format",)

    def shape(self, name: str) -> tuple[int, int]:
        rows, width = self.part_shape(name, "weight") if self.has(name, "SCB") else self._state(name)["shape"]
        return int(rows), int(width)

    def words(self, name: str) -> str:
        if self.has(name, "SCB"):
            return "int8:channel:sym (bitsandbytes)"
        state = self._state(name)
        double = ", double quantization" if self.has(name, "weight.nested_absmax") else ""
        return f"{state['quant_type']}:g{state['blocksize']} (bitsandbytes{double})"

    def linear(self, name: str) -> QTensor | None:
        rows, width = self.shape(name)
        if self.has(name, "SCB"):
            scales = self.part(name, "SCB").float().reshape(rows, 1) * _INVERSE_127
            return QTensor(
                Format("int8", "channel", scale_dtype=torch.float32), (rows, width), self.part(name, "weight"), scales
            )
        block = int(self._state(name)["blocksize"])
        if width % block or not _is_nf4(self.part(name, "weight.quant_map")):
            return None
        return QTensor(
            format=Format("nf4", "group", block, scale_dtype=torch.float32),
            shape=(rows, width),
            codes=self._codes(name).view(rows, width),
            scales=self._absmax(name).view(rows, -1),
        )

    def dense(self, name: str) -> Tensor:
        rows, width = self.shape(name)
        if self.has(name, "SCB"):
            scales = self.part(name, "SCB").float().reshape(rows, 1)
            return self.part(name, "weight").float() * scales * _INVERSE_127
        state = self._state(name)
        values = self.part(name, "weight.quant_map").float()[self._codes(name).int()]
        scales = self._absmax(name).repeat_interleave(int(state["blocksize"]))[: len(values)]
        # The package rounds to the type that the weight had.
        return (values * scales).to(_dtype(name, state["dtype"])).float().view(rows, width)

    def _codes(self, name: str) -> Tensor:
        """The codes of the flattened weight, uint8."""
        stored = self.part(name, "weight").flatten().view(torch.uint8)
        rows, width = self.shape(name)
        if 2 * len(stored) < rows * width:
            raise ModelError(f"{name}.weight has {2 * len(stored)} codes for {rows} x {width} weights; it is damaged.")
        return torch.stack((stored >> 4, stored & 15), dim=1).flatten()[: rows * width]

    def _absmax(self, name: str) -> Tensor:
        """The scale of each block of the flattened weight."""
        state, (rows, width) = self._state(name), self.shape(name)
        scales = self.part(name, "weight.absmax").flatten()
        expected = -(-rows * width // int(state["blocksize"]))
        if len(scales) != expected:
            raise ModelError(f"{name}.weight.absmax has {len(scales)} scales, but {expected} blocks; it is damaged.")
        if not self.has(name, "weight.nested_absmax"):
            return scales.float()
        outer = self.part(name, "weight.nested_absmax").float().repeat_interleave(int(state["nested_blocksize"]))
        values = self.part(name, "weight.nested_quant_map").float()[scales.int()]
        return values * outer[: len(values)] + float(state["nested_offset"])

    def _state(self, name: str) -> dict[str, Any]:
        kind = next(kind for kind in ("nf4", "fp4") if self.has(name, f"{_STATE}{kind}"))
        return _parsed(name, bytes(self.part(name, f"{_STATE}{kind}").tolist()))


@lru_cache(maxsize=4096)
def _parsed(name: str, text: bytes) -> dict[str, Any]:
    try:
        state = json.loads(text)
        return {**state, "shape": tuple(state["shape"]), "blocksize": int(state["blocksize"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name} has a damaged quant_state, which does not say its shape and blocks.") from error


def _dtype(name: str, word: str) -> torch.dtype:
    found = getattr(torch, word, None)
    if not isinstance(found, torch.dtype):
        raise ModelError(f"{name} is said to have had the type {word!r}, which torch does not know.")
    return found


def _is_nf4(values: Tensor) -> bool:
    return torch.equal(values.float(), torch.tensor(NF4_VALUES, dtype=torch.float32))
