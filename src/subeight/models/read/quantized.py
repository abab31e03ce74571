"""Quantized checkpoints seen as plain ones: each linear's codes, and its weight dequantized when it is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.read import compressed_tensors
from subeight.models.read.safetensors import Stored

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale")


class CodeReader(Protocol):
    """What one stored format offers for each linear."""

    def linear(self, name: str, get: Callable[[str], Tensor]) -> QTensor | None: ...

    def inputs(self, name: str) -> Format | None: ...


class Codes:
    """The quantized linears of a checkpoint by checkpoint name."""

    def __init__(self, reader: CodeReader, stored: dict[str, Stored]) -> None:
        self._reader = reader
        self._stored = stored
        self.names = sorted({name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")})

    def __contains__(self, name: str) -> bool:
        return f"{name}.weight_scale" in self._stored

    def read(self, name: str) -> QTensor:
        """Codes and scales of one linear, as stored."""
        tensor = self._reader.linear(name, lambda part: self._stored[part].read())
        if tensor is None:
            raise ModelError(f"{name} has scales in the checkpoint, but its config leaves it in full precision.")
        return tensor

    def nbytes(self, name: str) -> int:
        """Stored bytes of one linear: codes, scales and zero points."""
        parts = ("weight", "weight_packed", "weight_scale", "weight_zero_point")
        found = [self._stored[f"{name}.{part}"] for part in parts if f"{name}.{part}" in self._stored]
        return sum(math.prod(part.shape) * part.dtype.itemsize for part in found)

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        """How this linear's input is quantized, and its static scale where it has one; None: not at all."""
        format = self._reader.inputs(name)
        if format is None or name not in self:
            return None
        scale = self._stored.get(f"{name}.input_scale")
        return format, None if scale is None else Scales(scale.read().float().reshape(1, 1))


@dataclass(frozen=True)
class DequantizedTensor:
    """A linear's weight that is dequantized when it is read."""

    codes: Codes
    name: str
    like: Stored

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.codes.read(self.name).shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def read(self) -> Tensor:
        inputs = self.codes.inputs(self.name)
        return compressed_tensors.loaded(self.name, self.codes.read(self.name), inputs[0] if inputs else None)


def quantized_tensors(config: dict[str, Any], stored: dict[str, Stored]) -> tuple[Codes, dict[str, Stored]]:
    """The codes of a quantized checkpoint, and its tensors with every quantized linear as a plain `.weight`.

    Raises:
        ModelError: a quantization method that cannot be read.
    """
    method = config.get("quant_method")
    if method != compressed_tensors.METHOD:
        raise ModelError(
            f"The checkpoint is quantized by the method {method!r}; compressed-tensors and full precision can be read."
        )
    codes = Codes(compressed_tensors.read(config), stored)
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith(_PARTS)}
    for name in codes.names:
        plain[f"{name}.weight"] = DequantizedTensor(codes, name, stored[f"{name}.weight_scale"])
    return codes, plain
