"""A checkpoint written shard by shard as blocks finish: each shard whole or absent, the index comes last."""

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from subeight.errors import OutputError
from subeight.formats import QTensor
from subeight.models.linear_info import Decided

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TEMPORARY = ".writing"
# What belongs to a model besides its weights; pickles and code are left behind on purpose.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class Exporter(Protocol):
    """One target format of a checkpoint."""

    @property
    def name(self) -> str:
        """What `--to` calls it."""

    def require(self, sites: tuple[Decided, ...]) -> None:
        """Raises OutputError, before anything is quantized, for a plan that this target cannot hold."""

    def tensors(
        self, site: Decided, weight: QTensor, bias: Tensor | None = None, input_scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a checkpoint that hold this quantized linear."""

    def as_loaded(self, site: Decided, weight: QTensor) -> Tensor:
        """The weight that plain transformers holds after loading in float32: what parity is measured against."""

    def quantization_config(self, sites: tuple[Decided, ...]) -> dict[str, Any] | None:
        """What config.json says about it; None where nothing is to be said."""

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """config.json as this target has it."""


class ShardWriter:
    """Writes `model-00003-of-00032.safetensors` and its fellows into one directory, then the index and the config.

    Every file appears under its name only when it is whole and on the disk, so after a kill the finished shards are
    good and the others absent. The same tensors give the same bytes. `tied` names parameters that repeat another one
    ("lm_head.weight" under tied embeddings): they are not written again. Files named in `beside` may lie there too.

    Raises:
        OutputError: the directory holds something else, or there is no space on the disk.
    """

    def __init__(
        self,
        directory: Path | str,
        exporter: Exporter,
        shards: int,
        tied: frozenset[str] = frozenset(),
        *,
        beside: frozenset[str] = frozenset(),
    ) -> None:
        self.directory = Path(directory)
        self.exporter = exporter
        self.shards = shards
        self._tied = tied
        self._claim(beside)

    def _claim(self, beside: frozenset[str]) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise OutputError(f"{self.directory} is a file; give a directory for the checkpoint.")
        self.directory.mkdir(parents=True, exist_ok=True)
        ours = {self.path(index).name for index in range(self.shards)} | {INDEX, CONFIG, *COMPANIONS, *beside}
        for found in sorted(self.directory.iterdir()):
            if found.name.endswith(TEMPORARY):
                found.unlink()
            elif found.name not in ours:
                raise OutputError(
                    f"{self.directory} already holds {found.name}, which is not part of this checkpoint; give a new "
                    "or empty directory."
                )

    def path(self, index: int) -> Path:
        """The file of shard `index`, counted from 0."""
        return self.directory / f"model-{index + 1:05d}-of-{self.shards:05d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether this shard is finished."""
        return self.path(index).exists()

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> Path:
        """Writes one shard, whole or not at all."""
        kept = {name: _owned(value) for name, value in sorted(tensors.items()) if name not in self._tied}
        path = self.path(index)
        size = sum(value.nbytes for value in kept.values())
        if size > shutil.disk_usage(self.directory).free:
            raise no_space(self.directory, size)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            save_file(kept, temporary, metadata={"format": "pt"})
        except Exception as error:
            temporary.unlink(missing_ok=True)
            if is_full(error):
                raise no_space(self.directory, size) from error
            raise
        publish(temporary, path)
        return path

    def finish(self, config: Mapping[str, Any], sites: tuple[Decided, ...], source: Path | None = None) -> None:
        """Writes the config and the index, and copies the tokenizer and its kin from `source`.

        The index is read back from the shards, so a resumed run writes what an uninterrupted one does.
        """
        missing = [self.path(index).name for index in range(self.shards) if not self.has(index)]
        if missing:
            raise OutputError(f"{self.directory} lacks the shards {', '.join(missing)}; run the same command again.")
        if source is not None:
            copy_companions(source, self.directory)
        content = {key: value for key, value in config.items() if key != "quantization_config"}
        stated = self.exporter.quantization_config(sites)
        if stated is not None:
            content["quantization_config"] = stated
        weights, size = self._index()
        index = {"metadata": {"total_size": size}, "weight_map": weights}
        write_atomic(self.directory / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
        content = self.exporter.config(content)
        write_atomic(self.directory / CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _index(self) -> tuple[dict[str, str], int]:
        weights: dict[str, str] = {}
        size = 0
        for index in range(self.shards):
            path = self.path(index)
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118  it is no dict
                    if name in weights:
                        raise OutputError(f"{name} stands in {weights[name]} and in {path.name}; write it once.")
                    weights[name] = path.name
            size += path.stat().st_size - _header_size(path)
        return weights, size


def _header_size(path: Path) -> int:
    with path.open("rb") as shard:
        return 8 + int.from_bytes(shard.read(8), "little")


def copy_companions(source: Path, directory: Path) -> list[str]:
    """Copies the tokenizer, chat template and generation defaults; returns the names of what was there."""
    found = [name for name in COMPANIONS if (source / name).is_file()]
    for name in found:
        write_atomic(directory / name, (source / name).read_bytes())
    return found


def write_atomic(path: Path, content: str | bytes) -> None:
    """The file appears with all of its content or not at all."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_full(error):
            raise no_space(path.parent, len(content)) from error
        raise
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, once it is on the disk."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)  # the rename itself


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _owned(value: Tensor) -> Tensor:
    # safetensors refuses tensors that share memory, which slices of one parameter do.
    value = value.detach().to("cpu")
    if value.untyped_storage().nbytes() == value.nbytes:
        return value.contiguous()
    return value.clone(memory_format=torch.contiguous_format)


def is_full(error: BaseException) -> bool:
    """Whether this error says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return re.search(r"No space left|os error 28", str(error)) is not None


def no_space(directory: Path, size: int) -> OutputError:
    """The error that says how much was to be written, and how much is free."""
    free = shutil.disk_usage(directory).free
    return OutputError(
        f"There is no space in {directory}: {size:,} bytes are to be written and {free:,} are free; free some, or "
        "give another --out."
    )
