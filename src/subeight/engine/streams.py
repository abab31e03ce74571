"""The calibration activations on their way through the blocks: in memory, or on disk and then kept across a kill."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from subeight.models.calls import Call
from subeight.models.read.safetensors import index_file
from subeight.models.shelf import Shelf
from subeight.models.shell import Shell
from subeight.records.disk import require_space
from subeight.records.files import atomic_write


class Stream(Protocol):
    """Hidden states [batch, length, width] in front of block `position`, batch by batch."""

    position: int

    def batches(self, shell: Shell, block: int) -> Iterator[tuple[Tensor, Call]]:
        """Each hidden state with the other arguments of block `block`."""

    def advance(self, function: Callable[[Tensor, Call], Tensor], shell: Shell) -> None:
        """Replaces every hidden state by the block's output for it."""

    def close(self) -> None:
        """Leaves nothing behind: the last block is written."""


class MemoryStream:
    """Hidden states on a shelf, in memory as far as there is room; after a kill the finished blocks are run again."""

    def __init__(self, hidden: Iterable[Tensor], shelf: Shelf | None = None) -> None:
        self.position = 0
        self._hidden = Shelf() if shelf is None else shelf
        self._hidden.extend(hidden)

    def batches(self, shell: Shell, block: int) -> Iterator[tuple[Tensor, Call]]:
        for hidden in self._hidden:
            yield hidden, shell.call(tuple(hidden.shape[:2]), block)

    def advance(self, function: Callable[[Tensor, Call], Tensor], shell: Shell) -> None:
        for index, (hidden, call) in enumerate(self.batches(shell, self.position)):
            self._hidden[index] = function(hidden, call).cpu()
        self.position += 1

    def close(self) -> None:
        self._hidden = Shelf()


class DiskStream:
    """Hidden states in `directory`, one folder for each position; a whole folder survives a kill and is resumed."""

    def __init__(self, directory: Path, first: Callable[[], Iterator[Tensor]], limit: int) -> None:
        """`first` makes the hidden states in front of block 0; `limit` is the last position that may be resumed.

        The directory must be named after all that the states depend on: what lies there is believed.
        """
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        whole = [p for p in self._positions() if p <= limit and self._is_whole(p)]
        self.position = max(whole, default=0)
        if not whole:
            self._write(0, first())
        for position in self._positions():
            if position != self.position:
                self._remove(position)

    def _positions(self) -> list[int]:
        return [int(p.name[7:]) for p in self._directory.iterdir() if re.fullmatch(r"before-\d+", p.name)]

    def _folder(self, position: int) -> Path:
        return self._directory / f"before-{position:05d}"

    def _is_whole(self, position: int) -> bool:
        return (self._folder(position) / "whole.json").is_file()

    def _remove(self, position: int) -> None:
        folder = self._folder(position)
        (folder / "whole.json").unlink(missing_ok=True)  # first, or a kill half-way would leave a part that looks whole
        shutil.rmtree(folder, ignore_errors=True)

    def _write(self, position: int, hidden: Iterator[Tensor]) -> None:
        self._remove(position)
        folder = self._folder(position)
        folder.mkdir(parents=True)
        count = 0
        for value in hidden:
            require_space(folder, value.nbytes)
            save_file({"hidden": value.contiguous().cpu()}, folder / f"{count:05d}.safetensors")
            count += 1
        atomic_write(folder / "whole.json", json.dumps({"batches": count}))

    def _read(self, position: int) -> Iterator[Tensor]:
        for path in sorted(self._folder(position).glob("*.safetensors")):
            yield index_file(path)["hidden"].read()

    def batches(self, shell: Shell, block: int) -> Iterator[tuple[Tensor, Call]]:
        for hidden in self._read(self.position):
            yield hidden, shell.call(tuple(hidden.shape[:2]), block)

    def advance(self, function: Callable[[Tensor, Call], Tensor], shell: Shell) -> None:
        results = (function(hidden, call) for hidden, call in self.batches(shell, self.position))
        self._write(self.position + 1, results)
        self._remove(self.position)
        self.position += 1

    def close(self) -> None:
        shutil.rmtree(self._directory)


def embedded(shell: Shell, ids: Tensor, batch: int) -> Iterator[Tensor]:
    """Hidden states in front of block 0 for ids [sequences, length], `batch` sequences at a time."""
    for part in torch.split(ids, batch):
        yield shell.embed(part).cpu()
