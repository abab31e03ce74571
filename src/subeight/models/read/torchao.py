"""Checkpoints of torchao as transformers 5 saves them: tensor subclasses taken apart, with their attributes as JSON in
the metadata of the safetensors file. Read are Int8Tensor and IntxUnpackedToInt8Tensor (one code to a byte).

Other subclasses are packed for one kernel of one device; they are refused with the way out.
"""

import json
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.read.reader import CodeReader, int_format, int_words
from subeight.models.read.safetensors import StoredTensor, file_metadata

_READABLE = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_QDATA = "_weight_qdata"


class TorchaoReader(CodeReader):
    """Linears of a checkpoint that torchao quantized."""

    method = "torchao"
    marks = (_QDATA,)
    parts = (_QDATA, "_weight_scale", "_weight_zero_point", "_weight_act_quant_scale", "_weight_act_quant_zero_point")

    @cached_property
    def _metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in {tensor.path for tensor in self.stored.values() if isinstance(tensor, StoredTensor)}:
            found |= file_metadata(path)
        return found

    def shape(self, name: str) -> tuple[int, int]:
        self._attributes(name)
        rows, width = self.part_shape(name, _QDATA)
        return rows, width

    def words(self, name: str) -> str:
        bits, group = self._grid(name)
        return int_words(bits, group, not self._zeros(name).any(), (self.method,))

    def linear(self, name: str) -> QTensor:
        bits, group = self._grid(name)
        rows, width = self.shape(name)
        scales, zeros = self.part(name, "_weight_scale"), self._zeros(name)
        symmetric = not bool(zeros.any())
        return QTensor(
            format=int_format(bits, group, symmetric, scales.dtype),
            shape=(rows, width),
            codes=self.part(name, _QDATA),
            scales=scales.float().reshape(rows, -1),
            zeros=None if symmetric else zeros,
        )

    def dense(self, name: str) -> Tensor:
        # The package rounds to the type that the weight had.
        kept = _dtype(self._attributes(name).get("dtype"))
        return self.linear(name).dequantize(kept).float()

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        said = self._attributes(name)
        if said.get("act_quant_kwargs") is None and said.get("activation_quantization") is None:
            return None
        if self.has(name, "_weight_act_quant_scale"):
            raise ModelError(f"{name} has static input scales in torchao's own format, which cannot be read.")
        asymmetric = said.get("activation_quantization") == "int8_asym_per_token"
        return Format("int8", "token", symmetric=not asymmetric), None

    def _attributes(self, name: str) -> dict[str, Any]:
        try:
            said = json.loads(self._metadata[f"{name}.weight"])
            kind, attributes = str(said["_type"]), dict(said["_data"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{name} has codes, but the file's metadata does not say which type.") from error
        if kind not in _READABLE or self.has(name, "_weight_act_pre_scale"):
            raise ModelError(
                f"{name} is a {kind} of torchao, of which only {' and '.join(_READABLE)} can be read: dequantize it "
                "with torchao and save it plainly."
            )
        return attributes

    def _grid(self, name: str) -> tuple[int, int]:
        """Bits, and columns per scale; -1: one scale per channel."""
        said = self._attributes(name)
        target = said.get("target_dtype")
        word = target.get("_data", "int8") if isinstance(target, dict) else "int8"
        _, width = self.part_shape(name, _QDATA)
        block = list(said.get("block_size") or (1, width))
        if block[0] != 1:
            raise ModelError(f"{name} has one scale per block of {block[0]} rows, where one per row can be read.")
        return int(word.removeprefix("int")), -1 if block[1] == width else int(block[1])

    def _zeros(self, name: str) -> Tensor:
        """Zero points [out, groups]."""
        scales = self.part_shape(name, "_weight_scale")
        if not self.has(name, "_weight_zero_point"):
            return torch.zeros(scales, dtype=torch.int8).reshape(scales[0], -1)
        return self.part(name, "_weight_zero_point").reshape(scales[0], -1).to(torch.int8)


def _dtype(said: Any) -> torch.dtype:
    word = said.get("_data") if isinstance(said, dict) else said
    found = getattr(torch, str(word or "float32").removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else torch.float32
