"""Reads a GGUF file tensor by tensor, dequantized, under the parameter names of the transformers model.

Names, and the permutations that llama.cpp applies to some families, are those of transformers' own GGUF loader.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor, nn
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
    read_field,
)

from subeight.errors import ModelError


def open_reader(path: Path) -> GGUFReader:
    """The file's reader; raises ModelError where it is no GGUF file or cut short."""
    try:
        return GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as error:
        raise ModelError(f"{path} is not a readable GGUF file ({error}); copy or download it again.") from error


def gguf_config(path: Path) -> dict[str, Any]:
    """The model's config as transformers reads it from the file's metadata."""
    open_reader(path)
    try:
        return dict(load_gguf_checkpoint(str(path))["config"])
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path}: transformers cannot read this GGUF architecture ({error}).") from error


class GgufTensors:
    """The tensors of a GGUF file by transformers' parameter names, dequantized to float32 when read."""

    def __init__(self, path: Path, model: nn.Module, config: dict[str, Any]) -> None:
        self.path = path
        self._reader = open_reader(path)
        architecture = read_field(self._reader, "general.architecture")[0]
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        self._mapping = get_gguf_hf_weights_map(model, self._processor)
        self._sources: dict[str, Any] = {}
        for tensor in self._reader.tensors:
            if tensor.name in self._mapping:
                self._sources[self._mapping[tensor.name]] = tensor

    def names(self) -> list[str]:
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._sources[name].shape))

    def read(self, name: str) -> Tensor:
        stored = self._sources[name]
        weights = dequantize(stored.data, stored.tensor_type)
        result = self._processor.process(
            weights=weights,
            name=stored.name,
            tensor_key_mapping=self._mapping,
            parsed_parameters={"tensors": {}},
        )
        return torch.from_numpy(np.ascontiguousarray(result.weights, dtype=np.float32).copy())
