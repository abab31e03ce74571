"""Reads a GGUF file tensor by tensor, dequantized, under the parameter names of the transformers model.

Names, and the permutations that llama.cpp applies to some families, are those of transformers' own GGUF loader.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
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
    """The model's config as transformers reads it from the file's metadata.

    Raises:
        ModelError: it is no GGUF file, cut short, or of an architecture that transformers does not load from GGUF.
    """
    stat = path.stat()
    return dict(_config(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=8)
def _config(path: Path, _size: int, _changed: int) -> dict[str, Any]:
    # The vocabulary is parsed along with the config, which takes seconds: once for each file as it stands.
    try:
        return dict(load_gguf_checkpoint(str(path))["config"])
    except (ValueError, KeyError, IndexError, OSError) as error:
        open_reader(path)  # a damaged file says so itself
        raise ModelError(f"{path}: transformers cannot read this GGUF architecture ({error}).") from error


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies in the file, and what its bytes are."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # of the weights
    dtype: np.dtype[Any]
    stored: tuple[int, ...]  # of the bytes or numbers that are stored
    start: int

    def read(self, path: Path) -> npt.NDArray[Any]:
        """The weights, dequantized; read and not mapped, as with safetensors."""
        count = int(np.prod(self.stored))
        data = np.fromfile(path, dtype=self.dtype, count=count, offset=self.start)
        if data.size != count:
            raise ModelError(f"{path} ends before its tensor {self.name} does; copy or download it again.")
        return dequantize(data.reshape(self.stored), self.kind)


class GgufTensors:
    """The tensors of a GGUF file by transformers' parameter names, dequantized to float32 when read."""

    def __init__(self, path: Path, model: nn.Module, config: dict[str, Any]) -> None:
        self.path = path
        reader = open_reader(path)
        architecture = read_field(reader, "general.architecture")[0]
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        try:
            self._mapping: dict[str, str] = get_gguf_hf_weights_map(model, self._processor)
        except NotImplementedError as error:
            raise ModelError(f"{path}: the gguf package knows no names for this architecture ({error}).") from error
        self._places: dict[str, _Place] = {}
        for tensor in reader.tensors:
            if tensor.name in self._mapping:
                shape = tuple(int(size) for size in reversed(tensor.shape))
                dtype, stored = tensor.data.dtype, tensor.data.shape
                place = _Place(tensor.name, tensor.tensor_type, shape, dtype, stored, int(tensor.data_offset))
                self._places[self._mapping[tensor.name]] = place

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def read(self, name: str) -> Tensor:
        """One parameter; raises ModelError where the file lacks it or ends before it does."""
        place = self._places.get(name)
        if place is None:
            raise ModelError(f"{self.path} lacks the tensor {name}, which its config asks for; is it another model's?")
        result = self._processor.process(
            weights=place.read(self.path),
            name=place.name,
            tensor_key_mapping=self._mapping,
            parsed_parameters={"tensors": {}},
        )
        return torch.from_numpy(np.ascontiguousarray(result.weights, dtype=np.float32).copy())
