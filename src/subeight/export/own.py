"""The target `subeight`: our own method, for what compressed-tensors cannot say, as large as the plan counts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.formats import QTensor
from subeight.models.linear_info import Decided
from subeight.models.read.own import BASE_TYPE, METHOD, PREFIX, VERSION


@dataclass(frozen=True)
class Own:
    """Writes QTensors part by part."""

    name: ClassVar[str] = METHOD

    def require(self, sites: tuple[Decided, ...]) -> None:
        """Holds whatever a plan can say."""

    def tensors(
        self, site: Decided, weight: QTensor, bias: Tensor | None = None, input_scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts of the weight under the linear's name."""
        name = site.linear.name
        found = {f"{name}.{PREFIX}{part}": _storable(value) for part, value in weight.stored().items()}
        if site.inputs is not None and site.inputs.per == "tensor":
            if input_scale is None:
                raise OutputError(f"{name} has static inputs ({site.inputs}), so its input scale is needed.")
            found[f"{name}.input_scale"] = input_scale.reshape(1).to(torch.float32)
        if bias is not None:
            found[f"{name}.bias"] = bias
        return found

    def as_loaded(self, site: Decided, weight: QTensor) -> Tensor:  # noqa: ARG002 - the same for all
        """The dequantized weight in float32."""
        return weight.dequantize()

    def quantization_config(self, sites: tuple[Decided, ...]) -> dict[str, Any] | None:
        """Formats and shape of every linear that is quantized; with `sites` the version that reads them."""
        linears = {
            site.linear.name: {
                "weights": str(site.weights),
                **({"inputs": str(site.inputs)} if site.inputs is not None else {}),
                "shape": list(site.linear.shape),
            }
            for site in sites
            if site.weights is not None
        }
        return {"quant_method": METHOD, "version": VERSION, "linears": linears} if linears else None

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """Under a model type of ours: transformers would skip an unknown quantization method and load noise."""
        return {**content, "model_type": METHOD, BASE_TYPE: content["model_type"]}


def _storable(value: Tensor) -> Tensor:
    # what the linears of a group share is one tensor here and one for each in the file; E8M0 is known to few readers
    return value.clone().view(torch.uint8) if value.dtype == torch.float8_e8m0fnu else value.clone()
