"""What every reader of quantized linears has: which linears, their shape and words without reading a weight, and the
weight. A stored format is one file beside this one, with one such class.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.read.safetensors import Stored


class CodeReader(ABC):
    """The quantized linears of one checkpoint.

    `parts` are the names of the tensors that stand in the place of a linear's `.weight`, `marks` those that only a
    quantized linear has, `uncounted` those that are no part of its weight. `config` is the content of
    quantization_config, `stored` every tensor of the checkpoint.
    """

    method: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    marks: ClassVar[tuple[str, ...]]
    uncounted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
        self.config = config
        self.stored = stored

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The linears (and embeddings) that are stored as codes, by checkpoint name."""
        ends = tuple(f".{mark}" for mark in self.marks)
        return tuple(sorted({name[: -len(end)] for name in self.stored for end in ends if name.endswith(end)}))

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int]:
        """Rows (out) and columns (in) of the weight."""

    @abstractmethod
    def words(self, name: str) -> str:
        """How it is stored, for people: `int4:g128:asym (gptq, act-order)`."""

    @abstractmethod
    def linear(self, name: str) -> QTensor | None:
        """Codes and scales as stored; None where our Format cannot say them."""

    def dense(self, name: str) -> Tensor:
        """The weight [out, in] in float32, as the format's own package dequantizes it."""
        codes = self.linear(name)
        if codes is None:
            raise NotImplementedError(f"{type(self).__name__} has no dense weight of {name}.")
        return codes.dequantize()

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:  # noqa: ARG002 - most formats have none
        """How the linear's input is rounded, and its static scale; None where it stays as it is."""
        return None

    def nbytes(self, name: str) -> int:
        """Stored bytes of one linear: codes, scales, zero points and what else says its weight."""
        left_out = {f"{name}.{part}" for part in self.uncounted}
        found = [self.stored[key] for key in self.owned(name) if key not in left_out]
        return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in found)

    def owned(self, name: str) -> list[str]:
        """The stored tensors that make up this linear."""
        return [f"{name}.{part}" for part in self.parts if self.has(name, part)]

    def has(self, name: str, part: str) -> bool:
        return f"{name}.{part}" in self.stored

    def part(self, name: str, part: str) -> Tensor:
        """One stored tensor; raises ModelError where the checkpoint lacks it."""
        return self._part(name, part).read()

    def part_shape(self, name: str, part: str) -> tuple[int, ...]:
        """The shape of one stored tensor, which is not read."""
        return self._part(name, part).shape

    def _part(self, name: str, part: str) -> Stored:
        found = self.stored.get(f"{name}.{part}")
        if found is None:
            raise ModelError(f"The checkpoint lacks {name}.{part}, which its config asks for; is a shard missing?")
        return found


def require_parts(name: str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Raises ModelError, naming the tensor, where a stored part does not have the shape that the config asks for."""
    for part, shape in expected.items():
        if tuple(found[part]) != tuple(shape):
            raise ModelError(
                f"{name}.{part} has the shape {list(found[part])}, but the config asks for {list(shape)}; the "
                "checkpoint and its config do not belong together."
            )


def ordered(name: str, found: QTensor, order: Tensor) -> Tensor:
    """The dense weight [out, in] of codes whose column `i` has the scale of group `order[i]`."""
    columns = order.long()
    if len(order) != found.shape[1] or int(columns.max()) >= found.scales.shape[1] or int(columns.min()) < 0:
        raise ModelError(f"{name} has columns in groups for which it has no scales; the checkpoint is damaged.")
    values = found.format.values.values(found.codes)
    if found.zeros is not None:
        values = values - found.zeros.float()[:, columns]
    return values * found.scales[:, columns]


def int_words(bits: int, group: int, symmetric: bool, notes: Iterable[str]) -> str:
    """Such as `int4:g128:asym (gptq, act-order)`; a group of -1 is one scale per channel."""
    place = "channel" if group == -1 else f"g{group}"
    return f"int{bits}:{place}:{'sym' if symmetric else 'asym'} ({', '.join(notes)})"


def int_format(bits: int, group: int, symmetric: bool, scale_dtype: torch.dtype) -> Format:
    """The Format of integer codes; a group of -1 is one scale per channel."""
    if group == -1:
        return Format(f"int{bits}", "channel", None, symmetric, scale_dtype)
    return Format(f"int{bits}", "group", group, symmetric, scale_dtype)
