"""Reads safetensors files tensor by tensor, with plain reads and no memory map.

A mapped file counts its touched pages as memory of the process, so a model larger than the limit would seem to
break it; `pread` of one tensor at a time does not. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from subeight.errors import ModelError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Stored(Protocol):
    """A tensor that can be read when it is wanted."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, byte range, shape and dtype."""

    path: Path
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        data = torch.empty(self.stop - self.start, dtype=torch.uint8)  # not filled with zeros first, unlike bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            view = data.numpy().data
            while len(view):
                count = file.readinto(view)
                if not count:
                    raise ModelError(f"{self.path} ends before its tensors do; copy or download it again.")
                view = view[count:]
        return data.view(self.dtype).view(self.shape)


def file_metadata(path: Path) -> dict[str, str]:
    """The words that a file has beside its tensors; raises ModelError where the file is damaged."""
    return {str(key): str(value) for key, value in (_header(path)[0].get("__metadata__") or {}).items()}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file, and the byte at which its tensors begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise ModelError(f"{path} is truncated (its header is cut off); copy or download it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path} is not a safetensors file: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} is not a safetensors file: its header is no table of tensors.")
    return header, 8 + length


def index_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file by name; raises ModelError where the file is damaged or cut short."""
    header, data = _header(path)
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, data) for name, entry in header.items()}
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.stop > size:
            raise ModelError(
                f"{path} is truncated: tensor {name} ends at byte {tensor.stop}, the file at {size}; "
                "copy or download it again."
            )
    return tensors


def _entry(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    """One entry of a header, whose tensors begin at byte `data`."""
    try:
        word, shape, (start, stop) = str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is damaged: its header does not say where tensor {name} lies.") from error
    if word not in DTYPES:
        raise ModelError(f"{path}: tensor {name} has the dtype {word}, which cannot be read here.")
    dtype = DTYPES[word]
    if min(start, *shape, 0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ModelError(f"{path} is damaged: tensor {name} does not have the bytes that its shape needs.")
    return StoredTensor(path, data + start, data + stop, shape, dtype)


def index_directory(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory, one file or sharded.

    Raises:
        ModelError: no safetensors (pickle weights are refused by name), a missing shard, a damaged file.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged: it has no table of shards; copy or download it again.") from error
        paths = [directory / os.path.basename(shard) for shard in shards]  # noqa: PTH119 - no path leaves the directory
    else:
        paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        if pickles:
            raise ModelError(
                f"{directory} has its weights as pickle ({pickles[0]}), which can run code when it is read; only "
                "safetensors and GGUF are read: convert it with transformers' save_pretrained."
            )
        raise ModelError(f"{directory} holds no weights; expected model.safetensors or its shards.")
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{directory} lacks the shard {path.name}, which its index names; copy it there.")
        tensors.update(index_file(path))
    return tensors
