"""The linears of a compressed-tensors checkpoint as every reader offers them; what its config says is read in
`compressed_tensors`. Also columns in another order (actorder: group), which our Format cannot say.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.read import compressed_tensors
from subeight.models.read.reader import CodeReader, ordered
from subeight.models.read.safetensors import Stored


class CompressedReader(CodeReader):
    """Linears of a checkpoint in one of the compressed-tensors formats."""

    method = compressed_tensors.METHOD
    marks = ("weight_scale",)
    uncounted = ("weight_shape", "input_scale", "input_zero_point", "input_global_scale")
    parts = (
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_global_scale",
        "weight_g_idx",
        *uncounted,
    )

    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
        super().__init__(config, stored)
        self._reader = compressed_tensors.read(dict(config))

    def shape(self, name: str) -> tuple[int, int]:
        if self.has(name, "weight_shape"):
            rows, width = (int(size) for size in self.part(name, "weight_shape").tolist())
        elif self.has(name, "weight"):
            rows, width = self.part_shape(name, "weight")
        else:
            rows, width = self.part_shape(name, "weight_packed")
            width *= 2  # fp4: two codes to a byte
        return rows, width

    def words(self, name: str) -> str:
        notes = [self.method, *(["act-order"] if self.order(name) is not None else [])]
        return f"{self._format(name)} ({', '.join(notes)})"

    def order(self, name: str) -> Tensor | None:
        """The group of each column, where columns were reordered."""
        found = self.part(name, "weight_g_idx") if self.has(name, "weight_g_idx") else None
        return None if found is None or bool((found < 0).any()) else found

    def linear(self, name: str) -> QTensor | None:
        return None if self.order(name) is not None else self._grouped(name)

    def dense(self, name: str) -> Tensor:
        found, order = self._grouped(name), self.order(name)
        if order is not None:
            return ordered(name, found, order)
        return compressed_tensors.loaded(name, found, self._reader.inputs(name))

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        format = self._reader.inputs(name)
        if format is None:
            return None
        scale = self.part(name, "input_scale") if self.has(name, "input_scale") else None
        return format, None if scale is None else Scales(scale.float().reshape(1, 1))

    def _format(self, name: str) -> Format:
        scheme = self._reader.scheme(name)
        if scheme is None or scheme.weights is None:
            raise ModelError(f"{name} has scales in the checkpoint, but its config leaves it in full precision.")
        return compressed_tensors.from_args(scheme.weights)

    def _grouped(self, name: str) -> QTensor:
        self._format(name)
        found = self._reader.linear(name, lambda part: self.stored[part].read())
        assert found is not None, "_format has refused what is left in full precision"
        return found
