"""Reads a GGUF file tensor by tensor, dequantized, under the parameter names of the transformers model.

Names, and the permutations that llama.cpp applies to some families, are those of transformers' own GGUF loader.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
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
from subeight.models.skeleton import one_line


def open_reader(path: Path) -> GGUFReader:
    """The file's reader; raises ModelError where it is no GGUF file or cut short."""
    try:
        return GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as error:
        raise ModelError(
            f"{path} is not a readable GGUF file ({one_line(error)}); copy or download it again."
        ) from error


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
        raise ModelError(f"{path}: transformers cannot read this GGUF architecture ({one_line(error)}).") from error


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


@lru_cache(maxsize=8)
def _index(path: Path, _size: int, _changed: int) -> tuple[str, tuple[_Place, ...]]:
    """The file's architecture and its tensors; the reader, which maps the file, is gone afterwards."""
    reader = open_reader(path)
    places = tuple(
        _Place(
            name=tensor.name,
            kind=tensor.tensor_type,
            shape=tuple(int(size) for size in reversed(tensor.shape)),
            dtype=tensor.data.dtype,
            stored=tensor.data.shape,
            start=int(tensor.data_offset),
        )
        for tensor in reader.tensors
    )
    return str(read_field(reader, "general.architecture")[0]), places


def _names(model: nn.Module, processor: TensorProcessor) -> dict[str, str]:
    """The file's tensor names to the model's parameter names."""
    # transformers asks every submodule again, seconds in all; few families need more than the whole model's names.
    whole = SimpleNamespace(config=model.config, state_dict=model.state_dict, named_children=list)
    names: dict[str, str] = get_gguf_hf_weights_map(whole, processor)
    if set(model.state_dict()) <= set(names.values()):
        return names
    return dict(get_gguf_hf_weights_map(model, processor))


class GgufTensors:
    """The tensors of a GGUF file by transformers' parameter names, dequantized to float32 when read."""

    def __init__(self, path: Path, model: nn.Module, config: dict[str, Any]) -> None:
        self.path = path
        stat = path.stat()
        architecture, places = _index(path, stat.st_size, stat.st_mtime_ns)
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        try:
            self._mapping = _names(model, self._processor)
        except NotImplementedError as error:
            raise ModelError(
                f"{path}: the gguf package knows no names for this architecture ({one_line(error)})."
            ) from error
        self._places = {self._mapping[place.name]: place for place in places if place.name in self._mapping}

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def kind(self, name: str) -> GGMLQuantizationType:
        """The type of ggml in which this tensor is stored."""
        return self._places[name].kind

    def nbytes(self, name: str) -> int:
        """The bytes that this tensor takes in the file."""
        place = self._places[name]
        return int(np.prod(place.stored)) * place.dtype.itemsize

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
