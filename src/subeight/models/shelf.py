"""Tensors in a row that together may be larger than memory: up to a limit they stay in it, the others go to disk.

A tensor comes back with the bytes that it went in with, so nothing that is computed depends on the limit.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save_file
from torch import Tensor

from subeight.models.read.safetensors import DTYPES, Stored, index_file
from subeight.records.disk import require_space
from subeight.records.files import atomic_path

_WORDS = {dtype: word for word, dtype in DTYPES.items()}


class Shelf(Sequence[Tensor]):
    """A list of tensors; those for which `limit` bytes leave no room lie in a folder of their own under `scratch`.

    The folder (default: the system's for temporary files) goes with the shelf. `limit` None keeps all in memory.
    """

    def __init__(self, limit: int | None = None, scratch: Path | None = None) -> None:
        self._limit, self._scratch = limit, scratch
        self._items: list[Tensor | None] = []
        self._devices: list[torch.device] = []
        self._held = 0
        self._folder: Path | None = None

    def append(self, value: Tensor) -> None:
        """Adds a tensor at the end."""
        self._items.append(None)
        self._devices.append(value.device)
        self[len(self._items) - 1] = value

    def extend(self, values: Iterable[Tensor]) -> None:
        """Adds tensors at the end, one at a time."""
        for value in values:
            self.append(value)

    def put(self, at: int, value: Tensor) -> None:
        """Sets the tensor of this number, which may be one that is not there yet."""
        while len(self._items) <= at:
            self._items.append(None)
            self._devices.append(value.device)
        self[at] = value

    def __setitem__(self, at: int, value: Tensor) -> None:
        before = self._items[at]
        room = self._held - (0 if before is None else before.nbytes)
        if self._limit is None or room + value.nbytes <= self._limit:
            self._held, self._items[at] = room + value.nbytes, value
            return
        self._held, self._items[at] = room, None
        path = self._path(at)
        require_space(path.parent, value.nbytes)
        save_file({"value": value.detach().contiguous().cpu()}, path)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...

    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...

    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = range(len(self._items))[at]
        value = self._items[at]
        return index_file(self._path(at))["value"].read().to(self._devices[at]) if value is None else value

    def __len__(self) -> int:
        return len(self._items)

    @property
    def on_disk(self) -> int:
        """How many of the tensors lie on disk."""
        return sum(value is None for value in self._items)

    def _path(self, at: int) -> Path:
        if self._folder is None:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="states-", dir=self._scratch))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"{at:06d}.safetensors"


class Kept(Sequence[Tensor]):
    """Tensors of a file, read when they are asked for."""

    def __init__(self, path: Path, device: torch.device) -> None:
        found: dict[str, Stored] = dict(index_file(path))
        self._stored = [found[name] for name in sorted(found)]
        self._device = device

    @overload
    def __getitem__(self, at: int) -> Tensor: ...

    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...

    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        found = self._stored[at]
        return [one.read().to(self._device) for one in found] if isinstance(found, list) else self._read(found)

    def _read(self, stored: Stored) -> Tensor:
        return stored.read().to(self._device)

    def __len__(self) -> int:
        return len(self._stored)


def keep(path: Path, values: Sequence[Tensor]) -> None:
    """Writes tensors into one safetensors file, whole or not at all, one in memory at a time.

    Named by their numbers, they are what `Kept` reads: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    start = 0
    for number, value in enumerate(values):
        stop = start + value.nbytes
        header[f"{number:06d}"] = {
            "dtype": _WORDS[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for value in values:
            file.write(value.detach().contiguous().cpu().view(torch.uint8).numpy().data)
