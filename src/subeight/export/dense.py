"""The dense target: dequantized weights in the baseline's dtype. Every program loads it; no size is saved."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.formats import QTensor
from subeight.models.linear_info import Decided


@dataclass(frozen=True)
class Dense:
    """Writes QTensors as the plain weights that they stand for.

    Quantized inputs cannot be said by plain weights, so a plan that has them is refused.
    """

    name: ClassVar[str] = "dense"

    def require(self, sites: tuple[Decided, ...]) -> None:
        """Raises OutputError for the first linear whose inputs are quantized."""
        for site in sites:
            if site.inputs is not None:
                raise OutputError(
                    f"{site.linear.name} has inputs in {site.inputs}, which plain weights cannot say; export "
                    "`--to compressed-tensors`, or use a recipe with inputs: null."
                )

    def tensors(
        self, site: Decided, weight: QTensor, bias: Tensor | None = None, input_scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weight in the checkpoint's dtype and layout (a Conv1D is stored transposed)."""
        if input_scale is not None:
            raise OutputError(f"{site.linear.name} has an input scale, which plain weights cannot say.")
        dense = weight.dequantize(site.linear.dtype)
        if site.linear.kind == "conv1d":
            dense = dense.T.contiguous()
        found = {f"{site.linear.name}.weight": dense}
        if bias is not None:
            found[f"{site.linear.name}.bias"] = bias
        return found

    def as_loaded(self, site: Decided, weight: QTensor) -> Tensor:
        """The dequantized weight, rounded once to the checkpoint's dtype."""
        return weight.dequantize(site.linear.dtype).to(torch.float32)

    def quantization_config(self, sites: tuple[Decided, ...]) -> dict[str, Any] | None:  # noqa: ARG002
        """Nothing: the checkpoint looks like any other."""
        return None

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return content
