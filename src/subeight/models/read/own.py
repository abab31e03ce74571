"""Checkpoints of our own method, `subeight`: what compressed-tensors cannot say (codebooks, short groups, values set
apart, corrections of low rank), stored as it is.

config.json says for each linear its formats and shape; beside it lie `<linear>.weight_codes`, `.weight_scales` and
so on, the parts that `QTensor.stored` lists. The model type is `subeight` too, so plain loaders refuse it by name;
after `import subeight` transformers loads it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales, Sparse, Thin, unpack
from subeight.models.read.reader import CodeReader

METHOD = "subeight"
VERSION = 1
BASE_TYPE = "base_model_type"  # what the config's model_type was
PREFIX = "weight_"
WEIGHT_PARTS = ("codes", "scales", "zeros", "global_scale", "pointers", "columns", "values", "left", "right")


class OwnReader(CodeReader):
    """Linears of a checkpoint that `export/own.py` wrote."""

    method = METHOD
    marks = (f"{PREFIX}codes",)
    uncounted = ("input_scale",)
    parts = (*(PREFIX + part for part in WEIGHT_PARTS), "input_scale")

    def shape(self, name: str) -> tuple[int, int]:
        rows, width = self._said(name)["shape"]
        return int(rows), int(width)

    def words(self, name: str) -> str:
        notes = [self.method]
        notes += ["values apart"] if self.has(name, f"{PREFIX}values") else []
        notes += [f"rank {self.part_shape(name, f'{PREFIX}left')[1]}"] if self.has(name, f"{PREFIX}left") else []
        return f"{self._said(name)['weights']} ({', '.join(notes)})"

    def linear(self, name: str) -> QTensor:
        stored = {part: self.part(name, PREFIX + part) for part in WEIGHT_PARTS if self.has(name, PREFIX + part)}
        return weight_of(Format.parse(self._said(name)["weights"]), self.shape(name), stored)

    def inputs(self, name: str) -> tuple[Format, Scales | None] | None:
        said = self._said(name).get("inputs")
        if said is None:
            return None
        scale = self.part(name, "input_scale") if self.has(name, "input_scale") else None
        return Format.parse(said), None if scale is None else Scales(scale.float().reshape(1, 1))

    def _said(self, name: str) -> Mapping[str, Any]:
        if self.config.get("version") != VERSION:
            raise ModelError(
                f"The checkpoint is of version {self.config.get('version')} of the format {METHOD}, and this Subeight "
                f"reads version {VERSION}; quantize again, or install the Subeight that wrote it."
            )
        if name not in self.config["linears"]:
            raise ModelError(f"{name} is stored as codes, but the checkpoint's config does not say in which format.")
        return self.config["linears"][name]


def weight_of(format: Format, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QTensor:
    """The weight out of the parts that `QTensor.stored` lists."""
    codes, zeros, bits = stored["codes"], stored.get("zeros"), format.code_bits
    if bits < 8:
        codes = unpack(codes, bits, shape[1], signed=format.grid.startswith("int"))
    scales = stored["scales"]
    scales = (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()
    if zeros is not None:
        columns = scales.shape[0]
        zeros = (zeros if bits == 8 else unpack(zeros, bits, columns, signed=True)).T.contiguous()
    sparse = thin = None
    if "values" in stored:
        sparse = Sparse(stored["pointers"], stored["columns"], stored["values"].float())
    if "left" in stored:
        thin = Thin(stored["left"].float(), stored["right"].float())
    return QTensor(format, shape, codes, scales, zeros, stored.get("global_scale"), sparse, thin)
