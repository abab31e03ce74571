"""What of a model is quantized, what is frozen in 16 bits, what is trained: every parameter, with the bytes it holds.

Bytes are those of the tensors in memory. Parameters that no linear module owns, such as fused experts [experts, out,
in], stand here like all others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.train.qlora_base import Base

QUANTIZED, FROZEN, TRAINED = "quantized", "frozen", "trained"


@dataclass(frozen=True)
class Entry:
    """One parameter: its shape, whether it is quantized, frozen or trained, how it is held, and why where that asks."""

    name: str
    shape: tuple[int, ...]
    status: str
    format: str
    bytes: int
    reason: str = ""

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        found = 1
        for size in self.shape:
            found *= size
        return found


@dataclass(frozen=True)
class Manifest:
    """Every parameter of a base and its adapters."""

    entries: tuple[Entry, ...]

    def of(self, status: str) -> list[Entry]:
        """The entries of one status."""
        return [entry for entry in self.entries if entry.status == status]

    def totals(self) -> dict[str, Any]:
        """Parameters, numbers and bytes by status and in all, and how many fused ones there are and are quantized."""
        found: dict[str, Any] = {}
        for status in (QUANTIZED, FROZEN, TRAINED):
            mine = self.of(status)
            found[status] = {
                "parameters": len(mine),
                "count": sum(entry.count for entry in mine),
                "bytes": sum(entry.bytes for entry in mine),
            }
        found["all"] = {
            key: sum(found[status][key] for status in (QUANTIZED, FROZEN, TRAINED))
            for key in ("parameters", "count", "bytes")
        }
        fused = [entry for entry in self.entries if len(entry.shape) == 3]
        found["fused"] = {
            "parameters": len(fused),
            "quantized": sum(entry.status == QUANTIZED for entry in fused),
            "bytes": sum(entry.bytes for entry in fused),
        }
        return found

    def numbers(self) -> dict[str, Any]:
        """As a record and `manifest.json` hold it."""
        return {"totals": self.totals(), "parameters": [asdict(entry) for entry in self.entries]}

    def summary(self) -> list[dict[str, Any]]:
        """One row for all parameters that differ in nothing but the number of their block."""
        rows: dict[tuple, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            name = re.sub(r"\.\d+\.", ".*.", entry.name, count=1)
            rows[name, entry.shape, entry.status, entry.format, entry.reason].append(entry)
        return [
            {
                "name": name,
                "times": len(found),
                "shape": list(shape),
                "status": status,
                "format": format,
                "bytes": sum(entry.bytes for entry in found),
                "reason": reason,
            }
            for (name, shape, status, format, reason), found in rows.items()
        ]


def manifest(base: Base, model: Model, reasons: Mapping[str, str], wrapped: nn.Module) -> Manifest:
    """The manifest of a base with its adapters; `reasons` say why linears keep 16 bits, by the linear's name."""
    views: dict[str, list[LinearView]] = defaultdict(list)
    for view in model.views():
        views[view.parameter].append(view)
    skeleton = model.skeleton
    held = dict(base.module.named_parameters())
    entries = []
    for name, parameter in skeleton.model.named_parameters():
        if name in skeleton.tied_names:  # it is another one, which stands here by its own name
            continue
        linears = [view.info.name for view in views.get(name, ())] or [name.removesuffix(".weight")]
        shape = tuple(parameter.shape)
        packed = [base.packed[linear] for linear in linears if linear in base.packed]
        if len(packed) == len(linears):
            formats = dict.fromkeys(str(weight.format) for weight in packed)
            size = sum(weight.nbytes for weight in packed)
            entries.append(Entry(name, shape, QUANTIZED, ", ".join(formats), size))
        else:
            value = _held(held, name)
            why = _why(base, linears, reasons) if parameter.dim() >= 2 else ""
            entries.append(Entry(name, shape, FROZEN, _dtype(value), value.nbytes, why))
    trained = [(name, value) for name, value in wrapped.named_parameters() if value.requires_grad]
    entries += [Entry(name, tuple(value.shape), TRAINED, _dtype(value), value.nbytes) for name, value in trained]
    return Manifest(tuple(entries))


def _held(held: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    """The tensor of a parameter: PEFT has put a layer of its own around linears that have an adapter."""
    if name in held:
        return held[name]
    owner, _, tail = name.rpartition(".")
    return held[f"{owner}.base_layer.{tail}"]


def _why(base: Base, linears: Sequence[str], reasons: Mapping[str, str]) -> str:
    found = [base.dense.get(linear) or reasons.get(linear, "") for linear in linears]
    return next((reason for reason in found if reason), "kept as it is stored")


def _dtype(value: nn.Parameter) -> str:
    return str(value.dtype).removeprefix("torch.")
