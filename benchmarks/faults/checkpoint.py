"""Edits a checkpoint directory in place, tensor by tensor, as a faulty tool would have left it.

A `Checkpoint` is a copy: shards that are not touched are links to the original's, so that a case costs little disk.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from subeight.export.compressed_tensors import quantization_config, tensors
from subeight.formats import Format, QTensor, quantize
from subeight.models.linear_info import LinearInfo
from subeight.models.model import Model

LEFT = (".blocks", "report.html", "samples.parquet", "rows.parquet")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class _Site:
    """A linear and its formats, as an exporter wants to know them."""

    linear: LinearInfo
    weights: Format | None
    inputs: Format | None


class Checkpoint:
    """A copy of the checkpoint `source` in `directory`; edits are kept until `save`."""

    def __init__(self, source: Path, directory: Path) -> None:
        copy(source, directory)
        self.directory = directory
        self.model = Model(directory)
        index = directory / INDEX
        self._names: dict[str, str] = {}
        if index.is_file():
            self._names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            (path,) = directory.glob("*.safetensors")
            self._names = dict.fromkeys(load_file(path), path.name)
        self._changed: dict[str, Tensor | None] = {}
        self._formats: dict[str, Format] = {}

    @property
    def linears(self) -> list[LinearInfo]:
        """The quantized linears, in the order of the model."""
        codes = self.model.codes
        return [info for info in self.model.linears if codes is not None and info.name in codes]

    def read(self, name: str) -> QTensor:
        """Codes and scales of one linear, as stored before any edit."""
        assert self.model.codes is not None
        return self.model.codes.read(name)

    def tensor(self, name: str) -> Tensor:
        """One stored tensor."""
        return load_file(self.directory / self._names[name])[name]

    def set(self, name: str, value: Tensor) -> None:
        """Replaces one stored tensor, or adds one beside those of its linear."""
        self._changed[name] = value.contiguous()

    def write(self, name: str, weight: QTensor) -> None:
        """Stores a linear's codes and scales, in whatever format they are."""
        assert self.model.codes is not None
        inputs = self.model.codes.inputs(name)
        static = None if inputs is None or inputs[1] is None else inputs[1].scales
        for part, value in tensors(name, weight, inputs=inputs and inputs[0], input_scale=static).items():
            self.set(part, value)
        self._changed.setdefault(f"{name}.weight", None)  # one that was kept in full precision is quantized now
        self._formats[name] = weight.format

    def change(self, name: str, edit: Callable[[QTensor], QTensor]) -> None:
        """Edits a linear's codes, scales or zero points; its format stays."""
        self.write(name, edit(self.read(name)))

    def requantize(self, name: str, format: Format) -> None:
        """Rounds the weight that is stored, quantized or not, plainly to another format."""
        codes = self.model.codes
        stored = codes is not None and name in codes
        weight = self.read(name).dequantize() if stored else self.tensor(f"{name}.weight").float()
        self.write(name, quantize(weight, format))

    def config(self, **fields: Any) -> None:
        """Changes fields of config.json; a mapping is merged into the one that is there."""
        path = self.directory / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for field, value in fields.items():
            merged = isinstance(value, dict) and isinstance(content.get(field), dict)
            content[field] = content[field] | value if merged else value
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def save(self) -> Path:
        """Writes what was changed: the shards concerned, their index, and the formats in config.json."""
        said = self._said() if self._formats else None
        homes: dict[str, list[str]] = {}
        for name in self._changed:
            homes.setdefault(self._home(name), []).append(name)
        for file, names in homes.items():
            path = self.directory / file
            held = load_file(path)
            for name in names:
                value = self._changed[name]
                if value is None:
                    held.pop(name, None)
                    self._names.pop(name, None)
                else:
                    held[name] = value
                    self._names[name] = file
            path.unlink()  # it may be a link to the original
            save_file(held, path, metadata={"format": "pt"})
        if (self.directory / INDEX).is_file():
            self._write_index()
        if said is not None:
            self.config(quantization_config=None)  # not merged with what it said before
            self.config(quantization_config=said)
        return self.directory

    def _home(self, name: str) -> str:
        if name in self._names:
            return self._names[name]
        owner = name.rpartition(".")[0]
        return next(file for other, file in self._names.items() if other.rpartition(".")[0] == owner)

    def _write_index(self) -> None:
        path = self.directory / INDEX
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weight_map"] = self._names
        path.unlink()
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _said(self) -> dict[str, Any] | None:
        """The quantization_config of the edited formats, from the shards as they still are; None where none changes."""
        codes = self.model.codes
        assert codes is not None
        if all(name in codes and codes.read(name).format == format for name, format in self._formats.items()):
            return None
        sites = []
        for info in self.model.linears:
            weights, inputs = self._formats.get(info.name), None
            if info.name in codes:
                weights = weights or codes.read(info.name).format
                found = codes.inputs(info.name)
                inputs = found[0] if found else None
            sites.append(_Site(info, weights, inputs))
        return quantization_config(sites)


def copy(source: Path, directory: Path) -> Path:
    """A copy of a checkpoint: its weights as links, everything else as files of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        target = directory / path.name
        if not path.is_file() or path.name in LEFT:
            continue
        target.unlink(missing_ok=True)
        if path.suffix == ".safetensors":
            _link(path, target)
        else:
            shutil.copyfile(path, target)
    return directory


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system
        shutil.copyfile(path, target)


def scaled(weight: QTensor, factors: Tensor) -> QTensor:
    """The same codes under scales [rows, groups] multiplied by `factors`, rounded as they are stored."""
    scales = (weight.scales * factors).to(weight.format.scale_dtype).float()
    return replace(weight, scales=scales)
