"""The compressed-tensors target: checkpoints that vLLM, SGLang and plain transformers load without Subeight.

pack-quantized for integers (below 8 bits with quantized inputs too), int-quantized for 8-bit weights with quantized
inputs, float-quantized for fp8. See https://github.com/vllm-project/compressed-tensors.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.formats import Format, QTensor, pack
from subeight.models.linear_info import Decided, LinearInfo
from subeight.models.read.compressed_tensors import (
    METHOD,
    loaded,
    packed_zeros,
    storage,
    to_args,
    unsayable,
    unsayable_together,
)

_TARGETED = ("linear", "expert", "head", "tied", "router")  # what is an nn.Linear in the checkpoint's names


@dataclass(frozen=True)
class CompressedTensors:
    """Writes QTensors as compressed-tensors."""

    name: ClassVar[str] = METHOD

    def require(self, sites: tuple[Decided, ...]) -> None:
        """Raises OutputError for the first linear that the format cannot hold, with the way out."""
        for site in sites:
            if site.weights is not None:
                _require_sayable(site.linear, site.weights, site.inputs)
            if site.apart:
                raise OutputError(
                    f"compressed-tensors cannot hold what {site.linear.name} sets apart; export `--to subeight` or "
                    "`--to dense`, or leave outliers and lowrank out of the recipe."
                )
        reason = unsayable_together(sites)
        if reason is not None:
            raise OutputError(
                f"compressed-tensors cannot hold this: {reason}; change the recipe, or export `--to dense`."
            )

    def tensors(
        self, site: Decided, weight: QTensor, bias: Tensor | None = None, input_scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors of the checkpoint for one linear."""
        _require_sayable(site.linear, weight.format, site.inputs)
        return tensors(site.linear.name, weight, inputs=site.inputs, bias=bias, input_scale=input_scale)

    def as_loaded(self, site: Decided, weight: QTensor) -> Tensor:
        """The weight that plain transformers holds after loading in float32: what parity is measured against."""
        return loaded(site.linear.name, weight, site.inputs)

    def quantization_config(self, sites: tuple[Decided, ...]) -> dict[str, Any] | None:
        """The config's quantization_config."""
        return quantization_config(sites)

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return content


def tensors(
    name: str,
    weight: QTensor,
    *,
    inputs: Format | None = None,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """One linear's tensors under their names in the checkpoint; `input_scale` where inputs are static."""
    format = weight.format
    packed = storage(format, inputs) == "pack-quantized"
    parts = _packed(weight) if packed else {"weight": weight.codes}
    scales = weight.scales.to(format.scale_dtype)
    parts["weight_scale"] = scales.reshape(1) if format.per == "tensor" else scales
    if weight.zeros is not None:
        parts["weight_zero_point"] = _zero_points(weight.zeros, format, packed)
    if inputs is not None and inputs.per == "tensor":
        if input_scale is None:
            raise OutputError(f"{name} has static inputs ({inputs}), so its input scale is needed; calibrate it first.")
        parts["input_scale"] = input_scale.reshape(1).to(torch.float32)
    if bias is not None:
        parts["bias"] = bias
    return {f"{name}.{part}": value for part, value in parts.items()}


def quantization_config(sites: Sequence[Decided]) -> dict[str, Any] | None:
    """What config.json says: one group per pair of weight and input format, and every linear that is kept."""
    groups: dict[tuple[Format, Format | None], list[str]] = defaultdict(list)
    for site in sites:
        if site.weights is not None:
            groups[site.weights, site.inputs].append(site.linear.name)
    if not groups:
        return None
    kept = [site.linear.name for site in sites if site.weights is None and site.linear.kind in _TARGETED]
    # One group says "Linear", as llm-compressor does. With several that word would be wrong: vLLM compares it with its
    # fused classes before it looks at the names of what was fused, and would take this group for all of them.
    names = [site.linear.name for site in sites]
    formats = {storage(weights, inputs) for weights, inputs in groups}
    config_groups = {
        f"group_{at}": {
            "targets": ["Linear"] if len(groups) == 1 else _patterns(members, names),
            "weights": to_args(weights),
            "input_activations": to_args(inputs, inputs=True) if inputs is not None else None,
            "output_activations": None,
            "format": storage(weights, inputs),
        }
        for at, ((weights, inputs), members) in enumerate(groups.items())
    }
    said: dict[str, Any] = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": kept,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if any(packed_zeros(weights, inputs) for weights, inputs in groups):
        said["dequantize"] = True  # for transformers; vLLM and SGLang do not read it
    return said


def _require_sayable(linear: LinearInfo, weights: Format, inputs: Format | None) -> None:
    reason = unsayable(linear, weights, inputs)
    if reason is not None:
        raise OutputError(f"compressed-tensors cannot hold this: {reason}; use another format, or export `--to dense`.")


def _packed(weight: QTensor) -> dict[str, Tensor]:
    return {
        "weight_packed": pack(weight.codes, weight.format.code_bits),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }


def _zero_points(zeros: Tensor, format: Format, packed: bool) -> Tensor:
    if format.per == "tensor":
        return zeros.reshape(1).to(torch.int8)
    # packed along the rows, not the columns
    return pack(zeros.T.contiguous(), format.code_bits).T.contiguous() if packed else zeros


def _patterns(members: Sequence[str], names: Sequence[str]) -> list[str]:
    """Few targets that match just `members` among `names`: a pattern where all alike belong, else names."""
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names:
        alike[_template(name)].add(name)
    inside: dict[str, list[str]] = defaultdict(list)
    for name in members:
        inside[_template(name)].append(name)
    targets: list[str] = []
    for template, found in inside.items():
        if len(found) > 1 and set(found) == alike[template]:
            targets.append(f"re:{template}$")
        else:
            targets += found
    return targets


def _template(name: str) -> str:
    return re.sub(r"\d+", r"\\d+", re.escape(name))
