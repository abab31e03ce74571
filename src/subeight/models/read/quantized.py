"""Quantized checkpoints seen as plain ones: each linear's codes where our Format can say them, and its weight
dequantized when it is read. Each stored format is one file beside this one; here is the list of them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.read import compressed_tensors, own
from subeight.models.read.autoround import METHODS as AUTOROUND
from subeight.models.read.autoround import autoround_reader
from subeight.models.read.awq import AwqReader
from subeight.models.read.bitsandbytes import BitsandbytesReader
from subeight.models.read.compressed_linears import CompressedReader
from subeight.models.read.gptq import GptqReader
from subeight.models.read.hqq import HqqReader
from subeight.models.read.reader import CodeReader
from subeight.models.read.safetensors import Stored
from subeight.models.read.torchao import TorchaoReader

_Open = Callable[[Mapping[str, Any], Mapping[str, Stored]], CodeReader]
READERS: dict[str, _Open] = {
    compressed_tensors.METHOD: CompressedReader,
    "gptq": GptqReader,
    "awq": AwqReader,
    **dict.fromkeys(AUTOROUND, autoround_reader),
    "bitsandbytes": BitsandbytesReader,
    "hqq": HqqReader,
    "torchao": TorchaoReader,
    own.METHOD: own.OwnReader,
}


class Codes:
    """The quantized linears of a checkpoint by checkpoint name; embeddings and heads too, where they are quantized."""

    def __init__(self, reader: CodeReader) -> None:
        self._reader = reader
        self.names = list(reader.names)
        self._known = frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def read(self, name: str) -> QTensor:
        """Codes and scales of one linear, as stored.

        Raises:
            ModelError: our Format cannot say them (columns in another order, ...); `dense` reads such a weight.
        """
        tensor = self._reader.linear(name)
        if tensor is None:
            raise ModelError(
                f"{name} is stored as {self.format_words(name)}, which has no codes in a format of ours; its "
                "dequantized weight can be read."
            )
        return tensor

    def dense(self, name: str) -> Tensor:
        """The weight [out, in] in float32, as the format's own package dequantizes it."""
        return self._reader.dense(name)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows (out) and columns (in); no weight is read for it."""
        return self._reader.shape(name)

    def format_words(self, name: str) -> str:
        """How one linear is stored, for people: `int4:g128:asym (gptq, act-order)`."""
        return self._reader.words(name)

    def nbytes(self, name: str) -> int:
        """Stored bytes of one linear: codes, scales, zero points and what else says its weight."""
        return self._reader.nbytes(name)

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        """How this linear's input is quantized, and its static scale where it has one; None: not at all."""
        return self._reader.inputs(name) if name in self else None


@dataclass(frozen=True)
class DequantizedTensor:
    """A linear's weight that is dequantized when it is read; `transposed` where the model stores it as [in, out]."""

    codes: Codes
    name: str
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        rows, width = self.codes.shape(self.name)
        return (width, rows) if self.transposed else (rows, width)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def read(self) -> Tensor:
        weight = self.codes.dense(self.name)
        return weight.T.contiguous() if self.transposed else weight


def quantized_tensors(
    config: Mapping[str, Any], stored: dict[str, Stored], transposed: Collection[str] = ()
) -> tuple[Codes, dict[str, Stored]]:
    """The codes of a quantized checkpoint, and its tensors with every quantized linear as a plain `.weight`.

    `transposed` names the modules whose weight the model has as [in, out] (Conv1D).

    Raises:
        ModelError: a quantization method or layout that cannot be read.
    """
    method = config.get("quant_method") or ("bitsandbytes" if config.get("load_in_8bit") else None)  # older ones
    if method not in READERS:
        raise ModelError(
            f"The checkpoint is quantized by the method {method!r}; {', '.join(READERS)} and full precision can be "
            "read: dequantize it with the package that wrote it and save it plainly."
        )
    reader = READERS[method](config, stored)
    if not reader.names and method != compressed_tensors.METHOD:
        raise ModelError(f"The checkpoint's config says {method}, but no tensor of it is quantized; is it another's?")
    codes = Codes(reader)
    inside = {key for name in codes.names for key in reader.owned(name)}
    plain = {key: tensor for key, tensor in stored.items() if key not in inside}
    for name in codes.names:
        across = any(module == name or module.endswith(f".{name}") for module in transposed)
        plain[f"{name}.weight"] = DequantizedTensor(codes, name, across)
    return codes, plain
